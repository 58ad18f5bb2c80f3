"""How large an image may be.  Imports nothing, so that settings need no image library."""

PILLOWS_LIMIT = 178_956_970  # pixels; of a larger image Pillow reads nothing, not even its size
MAX_PIXELS = 40_000_000  # width x height, read from the header before anything is decoded
MAX_FILE_BYTES = 256 * 2**20  # of one image file; none is a hundredth of it

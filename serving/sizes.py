"""How large an image may be.  Imports nothing, so that settings need no image library."""

MAX_PIXELS = 40_000_000  # width x height, read from the header before anything is decoded

// Bytes -> upright RGB levels, as `serving/preprocess.py` makes them, as near as a browser can.

const MAX_PIXELS = 40_000_000; // width x height, by the header
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** What is wrong with an image, in the words of Python's ImageError. */
export class ImageError extends Error {}

/** Decode a Blob of JPEG or PNG: {data: Uint8Array (height x width x 3), width, height}. */
export async function decode(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const count = bytes.length.toLocaleString("en-US");
  const damaged = new ImageError(`cannot decode the image (${count} bytes): it is damaged or cut short`);
  const jpeg = bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
  const png = PNG.every((byte, i) => bytes[i] === byte);
  if (!jpeg && !png) throw new ImageError(`not a JPEG or PNG image (${count} bytes)`);
  const view = new DataView(bytes.buffer);
  const size = jpeg ? sizeOfJpeg(view) : sizeOfPng(view);
  if (size === null) throw damaged;
  const [width, height] = size;
  if (width * height > MAX_PIXELS || width < 1 || height < 1) {
    const limit = MAX_PIXELS.toLocaleString("en-US");
    throw new ImageError(`the image is ${width} x ${height}; the limit is ${limit} pixels`);
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type: jpeg ? "image/jpeg" : "image/png" }), {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "default",
    });
  } catch {
    throw damaged;
  }
  try {
    return rgbOf(bitmap);
  } finally {
    bitmap.close();
  }
}

function rgbOf(bitmap) {
  const { width, height } = bitmap;
  const pen = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#ffffff"; // transparency is laid on white
  pen.fillRect(0, 0, width, height);
  pen.drawImage(bitmap, 0, 0);
  const shown = pen.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < data.length; from += 4, to += 3) {
    data[to] = shown[from];
    data[to + 1] = shown[from + 1];
    data[to + 2] = shown[from + 2];
  }
  return { data, width, height };
}

/** Return width and height by the header; null: it is cut short.  So are data without their end. */
function sizeOfPng(view) {
  if (view.byteLength < 33) return null;
  const size = [view.getUint32(16), view.getUint32(20)];
  for (let at = 8; at + 12 <= view.byteLength;) {
    const length = view.getUint32(at);
    const kind = view.getUint32(at + 4);
    if (kind === 0x49454e44) return size; // IEND
    at += 12 + length;
    if (kind === 0x49444154 && at > view.byteLength) return null; // IDAT
    if (at === view.byteLength) return size; // Pillow does not miss the end itself
  }
  return null;
}

function sizeOfJpeg(view) {
  let size = null;
  let at = 2;
  while (at + 4 <= view.byteLength) {
    if (view.getUint8(at) !== 0xff) return null;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1; // a filling byte
      continue;
    }
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame && at + 9 <= view.byteLength) size = [view.getUint16(at + 7), view.getUint16(at + 5)];
    if (marker === 0xda) return size && hasEnd(view, at) ? size : null;
    at += 2 + view.getUint16(at + 2);
  }
  return null;
}

/** Say whether the marker of the end comes somewhere behind the first scan's header. */
function hasEnd(view, start) {
  for (let at = start; at + 1 < view.byteLength; at += 1) {
    if (view.getUint8(at) === 0xff && view.getUint8(at + 1) === 0xd9) return true;
  }
  return false;
}

// Bytes -> upright sRGB levels, as `serving/preprocess.py` makes them: of PNG the very same, of JPEG
// as near as the browser's own decoder comes.

import { toSrgb } from "./color.js";
import { decodePng, readPngHeader } from "./png.js";
import { Damaged, ImageError, Unknown } from "./upright.js";

const MAX_PIXELS = 40_000_000; // width x height, by the header
const UNTOLD_PIXELS = 178_956_970; // of a larger one Pillow does not tell the size
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const ICC = "ICC_PROFILE\0"; // what a segment with a part of a color profile begins with
const TILE = 2048; // pixels; some browsers leave a larger canvas empty and do not say so

/** Decode a Blob of JPEG or PNG: {data: Uint8Array (height x width x 3), width, height}. */
export async function decode(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const count = grouped(bytes.length);
  try {
    if (PNG.every((byte, i) => bytes[i] === byte)) {
      const header = await readPngHeader(bytes);
      checkSize(header);
      return await decodePng(bytes, header);
    }
    if (bytes[0] !== 0xff || bytes[1] !== 0xd8 || bytes[2] !== 0xff) throw new Unknown();
    const header = readJpegHeader(bytes);
    checkSize(header);
    if (!header.scan || !hasEnd(bytes, header.scan)) throw new Damaged();
    return toSrgb(await decodeJpeg(bytes, header), header.profile, header.kind);
  } catch (error) {
    if (error instanceof Unknown) throw new ImageError(`not a JPEG or PNG image (${count} bytes)`);
    if (error instanceof Damaged) {
      throw new ImageError(`cannot decode the image (${count} bytes): it is damaged or cut short`);
    }
    throw error;
  }
}

function grouped(number) {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

function checkSize({ width, height }) {
  const limit = `the limit is ${grouped(MAX_PIXELS)} pixels`;
  if (width * height > UNTOLD_PIXELS) throw new ImageError(`the image is too large; ${limit}`);
  if (width * height > MAX_PIXELS) throw new ImageError(`the image is ${width} x ${height}; ${limit}`);
}

/**
 * Read {width, height, kind of color, profile, segments of it, scan}, the last being where image
 * data begin; throws Unknown or Damaged.
 */
function readJpegHeader(bytes) {
  const view = new DataView(bytes.buffer);
  const segments = []; // [start, end] of those that hold a color profile
  let size = null;
  let at = 2;
  while (at + 1 < bytes.length) {
    const marker = bytes[at] === 0xff ? bytes[at + 1] : 0;
    if (marker === 0 || marker === 0xff) {
      at += bytes[at] === 0xff && marker === 0 ? 2 : 1; // not a marker, or bytes that fill
      continue;
    }
    if (marker < 0xc0) throw new Unknown();
    at += 2;
    const alone = (marker >= 0xd0 && marker <= 0xd9) || (marker >= 0xf0 && marker <= 0xfd);
    if (alone || marker === 0xc8) continue;
    if (at + 2 > bytes.length) throw new Unknown();
    const length = view.getUint16(at);
    if (at + length > bytes.length) throw new Damaged();
    if (isFrame(marker)) {
      const layers = length >= 8 ? bytes[at + 7] : 0;
      if (bytes[at + 2] !== 8 || ![1, 3, 4].includes(layers)) throw new Unknown();
      const kind = { 1: "GRAY", 3: "RGB", 4: "CMYK" }[layers];
      const profile = profileOf(bytes, segments); // one that comes later does not count
      size = { width: view.getUint16(at + 5), height: view.getUint16(at + 3), kind, profile };
    }
    if (marker === 0xe2 && [...ICC].every((letter, i) => bytes[at + 2 + i] === letter.charCodeAt(0))) {
      segments.push([at - 2, at + length]);
    }
    at += Math.max(2, length);
    if (marker === 0xda) return checked({ ...size, segments, scan: at });
  }
  return checked({ ...size, scan: 0 });
}

/** Join the parts of a color profile: each has its number and how many there are. */
function profileOf(bytes, segments) {
  const parts = segments.map(([start, end]) => bytes.subarray(start + 4 + ICC.length, end));
  parts.sort((one, other) => one[0] - other[0]);
  if (!parts.length || parts[0][1] !== parts.length) return null;
  const profile = new Uint8Array(parts.reduce((sum, part) => sum + part.length - 2, 0));
  let at = 0;
  for (const part of parts) {
    profile.set(part.subarray(2), at);
    at += part.length - 2;
  }
  return profile;
}

function isFrame(marker) {
  return marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
}

function checked(header) {
  if (!header.width || !header.height) throw new Unknown();
  return header;
}

/** Say whether the marker of the end comes somewhere behind the first scan's header. */
function hasEnd(bytes, start) {
  for (let at = bytes.indexOf(0xff, start); at >= 0; at = bytes.indexOf(0xff, at + 1)) {
    if (bytes[at + 1] === 0xd9) return true;
  }
  return false;
}

async function decodeJpeg(bytes, { segments }) {
  checkCanvas();
  // Without its profile, as some browsers convert colors whatever they are told.
  const ends = segments.map(([, end]) => end);
  const starts = segments.map(([start]) => start);
  const plain = [0, ...ends].map((start, i) => bytes.subarray(start, starts[i] ?? bytes.length));
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob(plain, { type: "image/jpeg" }), {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
  } catch {
    throw new Damaged();
  }
  try {
    return rgbOf(bitmap);
  } finally {
    bitmap.close();
  }
}

/** Read the levels of a bitmap, a part at a time. */
function rgbOf(bitmap) {
  const { width, height } = bitmap;
  const data = new Uint8Array(3 * width * height);
  const pen = penOf(Math.min(TILE, width), Math.min(TILE, height));
  for (let top = 0; top < height; top += TILE) {
    for (let left = 0; left < width; left += TILE) {
      const [columns, rows] = [Math.min(TILE, width - left), Math.min(TILE, height - top)];
      pen.drawImage(bitmap, left, top, columns, rows, 0, 0, columns, rows);
      const shown = pen.getImageData(0, 0, columns, rows).data;
      for (let y = 0, from = 0; y < rows; y += 1) {
        let to = 3 * ((top + y) * width + left);
        for (let x = 0; x < columns; x += 1, from += 4, to += 3) {
          data[to] = shown[from];
          data[to + 1] = shown[from + 1];
          data[to + 2] = shown[from + 2];
        }
      }
    }
  }
  return { data, width, height };
}

function penOf(width, height) {
  return new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
}

/** Some browsers hand out altered pixels, against tracking; an answer for those would be wrong. */
function checkCanvas() {
  const drawn = new ImageData(64, 64);
  drawn.data.forEach((_, i) => {
    drawn.data[i] = i % 4 === 3 ? 255 : (i * i) >> 3;
  });
  const pen = penOf(64, 64);
  pen.putImageData(drawn, 0, 0);
  if (!pen.getImageData(0, 0, 64, 64).data.every((value, i) => value === drawn.data[i])) {
    throw new ImageError(
      "this browser alters the pixels that a page reads; let this page read them, or send a PNG",
    );
  }
}

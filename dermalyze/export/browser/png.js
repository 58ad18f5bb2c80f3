// PNG -> upright sRGB levels, the very ones that Pillow gives: a canvas would change those below
// transparency, and cut 16 bits.

import { toSrgb } from "./color.js";
import { Damaged, ImageError, orientationOf, turned, Unknown } from "./upright.js";

const TEXT_LIMIT = 2 ** 20; // bytes that a compressed text or profile may unpack to
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // by the kind of color
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const PASSES = [ // of an interlaced image: first column and row, steps between them
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];
const CRCS = Uint32Array.from({ length: 256 }, (_, i) => {
  let value = i;
  for (let k = 0; k < 8; k += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** Read what stands before the image data; throws Unknown or Damaged. */
export async function readPngHeader(bytes) {
  const header = { width: 0, height: 0, palette: null, transparency: null, exif: null, profile: null };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; ;) {
    const chunk = chunkAt(view, at);
    if (!chunk) throw new Unknown();
    const { kind, length, start } = chunk;
    if (kind === "IDAT" || kind === "IEND") {
      if (!header.depth || !header.width || !header.height) throw new Unknown();
      return { ...header, at };
    }
    if (start + length > bytes.length) throw new Damaged();
    const data = bytes.subarray(start, start + length);
    if (kind === "IHDR") Object.assign(header, sizeAndColor(view, start, length));
    if (kind === "PLTE") header.palette = data;
    if (kind === "tRNS") header.transparency = data;
    if (kind === "eXIf") header.exif = data;
    if (kind === "zTXt") await unpackedText(data);
    if (kind === "iCCP") header.profile = await unpackedText(data);
    at = start + length;
    if (at + 4 > bytes.length || crcOf(bytes, start - 4, at) !== view.getUint32(at)) {
      throw new Unknown();
    }
    at += 4;
  }
}

/** Decode what `readPngHeader` has read: {data, width, height}. */
export async function decodePng(bytes, header) {
  const { width, height, depth, channels, interlaced } = header;
  const bits = depth * channels;
  const parts = (interlaced ? PASSES : [[0, 0, 1, 1]])
    .map(([left, top, across, down]) => ({
      left, top, across, down,
      columns: Math.ceil((width - left) / across),
      rows: Math.ceil((height - top) / down),
    }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0)
    .map((part) => ({ ...part, stride: Math.ceil((part.columns * bits) / 8) }));
  const needed = parts.reduce((sum, { rows, stride }) => sum + rows * (stride + 1), 0);
  const { packed, exif } = imageData(bytes, header.at);
  const raw = await unpacked(packed, needed);
  if (raw.length < needed) throw new Damaged();
  const data = new Uint8Array(3 * width * height);
  const alphas = header.color >= 4 || header.transparency ? new Uint8Array(width * height) : null;
  const put = painter(header, data, alphas);
  let at = 0;
  for (const { left, top, across, down, columns, rows, stride } of parts) {
    unfilter(raw, at, rows, stride, Math.max(1, bits >> 3));
    for (let y = 0; y < rows; y += 1) {
      const to = width * (top + y * down) + left;
      put(raw, at + y * (stride + 1) + 1, columns, to, across);
    }
    at += rows * (stride + 1);
  }
  toSrgb({ data }, header.profile, header.color % 4 ? "RGB" : "GRAY");
  alphas?.forEach((alpha, i) => {
    if (alpha < 255) for (let k = 3 * i; k < 3 * i + 3; k += 1) data[k] = onWhite(data[k], alpha);
  });
  return turned({ data, width, height }, orientationOf(exif || header.exif));
}

function chunkAt(view, at) {
  if (at + 8 > view.byteLength) return null;
  const kind = String.fromCharCode(...[4, 5, 6, 7].map((i) => view.getUint8(at + i)));
  return /^\w{4}$/.test(kind) ? { kind, length: view.getUint32(at), start: at + 8 } : null;
}

function sizeAndColor(view, start, length) {
  if (length < 13) throw new Damaged();
  const [depth, color] = [view.getUint8(start + 8), view.getUint8(start + 9)];
  if (view.getUint8(start + 11) || !DEPTHS[color]?.includes(depth)) throw new Unknown();
  return {
    width: view.getUint32(start),
    height: view.getUint32(start + 4),
    depth,
    color,
    channels: CHANNELS[color],
    interlaced: view.getUint8(start + 12) !== 0,
  };
}

/** Join the chunks of image data; what stands behind them may only turn the image. */
function imageData(bytes, first) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const packed = [];
  let exif = null;
  let at = first;
  let behind = false;
  for (let chunk = chunkAt(view, at); chunk && chunk.kind !== "IEND"; chunk = chunkAt(view, at)) {
    const { kind, length, start } = chunk;
    const data = bytes.subarray(start, start + length);
    behind ||= kind !== "IDAT";
    if (!behind) packed.push(data);
    else if (data.length < length) throw new Damaged();
    if (kind === "eXIf") exif = data;
    at = start + length + 4;
  }
  return { packed, exif };
}

/** Unpack what follows a name; throws ImageError where it is too large. */
async function unpackedText(data) {
  const end = data.indexOf(0);
  if (end < 0) return null;
  if (data[end + 1]) throw new Unknown(); // a way of packing that nobody knows
  const content = await unpacked([data.subarray(end + 2)], TEXT_LIMIT + 1);
  if (content.length > TEXT_LIMIT) {
    const limit = TEXT_LIMIT.toLocaleString("en-US");
    throw new ImageError(
      `the image has a color profile or a text of more than ${limit} bytes; save it without`,
    );
  }
  return content;
}

/** Unpack up to `most` bytes; what is damaged is unpacked as far as it goes. */
async function unpacked(parts, most) {
  const out = new Uint8Array(most);
  let length = 0;
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  try {
    while (length < most) {
      const { done, value } = await reader.read();
      if (done) break;
      out.set(value.subarray(0, most - length), length);
      length += Math.min(value.length, most - length);
    }
  } catch {
    // Cut short, damaged, or with more behind its end: what came before it counts.
  }
  reader.cancel().catch(() => {});
  return out.subarray(0, length);
}

/** Undo the filter of each row, in place; rows above the first and bytes before it count as 0. */
function unfilter(raw, start, rows, stride, step) {
  let above = new Uint8Array(stride);
  for (let y = 0; y < rows; y += 1) {
    const at = start + y * (stride + 1);
    const row = raw.subarray(at + 1, at + 1 + stride);
    const kind = raw[at];
    if (kind > 4) throw new Damaged();
    if (kind === 1) for (let i = step; i < stride; i += 1) row[i] += row[i - step];
    if (kind === 2) for (let i = 0; i < stride; i += 1) row[i] += above[i];
    if (kind > 2) {
      for (let i = 0; i < stride; i += 1) {
        const left = i < step ? 0 : row[i - step];
        const corner = i < step ? 0 : above[i - step];
        row[i] += kind === 3 ? (left + above[i]) >> 1 : paeth(left, above[i], corner);
      }
    }
    above = row;
  }
}

function paeth(left, above, corner) {
  const a = Math.abs(above - corner);
  const b = Math.abs(left - corner);
  const c = Math.abs(left + above - 2 * corner);
  if (a <= b && a <= c) return left;
  return b <= c ? above : corner;
}

/** Return what writes a row of samples as RGB, and how opaque each is. */
function painter({ depth, color, channels, palette, transparency: clear }, data, alphas) {
  const wide = depth === 16 ? 2 : 1; // bytes a sample; of two the first counts
  const largest = 2 ** depth - 1;
  const keyed = clear && color < 3;
  if (keyed && clear.length < 2 * channels) throw new Damaged();
  // The color that is clear, in whole samples: 16-bit ones are compared before they are cut.
  const key = Array.from({ length: keyed ? channels : 0 }, (_, i) => largest & (256 * clear[2 * i] + clear[2 * i + 1]));
  const sample = (raw, i) => (wide === 2 ? 256 * raw[i] + raw[i + 1] : raw[i]);
  return (raw, from, columns, to, across) => {
    for (let x = 0, pixel = to; x < columns; x += 1, pixel += across) {
      let [red, green, blue, alpha] = [0, 0, 0, 255];
      if (depth < 8) {
        const bit = x * depth;
        red = (raw[from + (bit >> 3)] >> (8 - depth - (bit & 7))) & largest;
        if (keyed && red === key[0]) alpha = 0;
        if (color === 0) red = (255 / largest) * red;
      } else {
        const i = from + x * channels * wide;
        if (keyed && key.every((value, k) => sample(raw, i + k * wide) === value)) alpha = 0;
        red = raw[i];
        if (color === 0 && wide === 2) red = Math.floor((sample(raw, i) + 128) / 257);
        if (channels >= 3) {
          green = raw[i + wide];
          blue = raw[i + 2 * wide];
        }
        if (color >= 4) alpha = raw[i + (channels - 1) * wide];
      }
      if (color === 3) {
        alpha = clear && red < clear.length ? clear[red] : 255;
        green = palette?.[3 * red + 1] ?? 0;
        blue = palette?.[3 * red + 2] ?? 0;
        red = palette?.[3 * red] ?? 0;
      } else if (channels < 3) {
        green = red;
        blue = red;
      }
      data[3 * pixel] = red;
      data[3 * pixel + 1] = green;
      data[3 * pixel + 2] = blue;
      if (alphas) alphas[pixel] = alpha;
    }
  };
}

/** Lay a level on white, in whole numbers as Pillow does. */
function onWhite(value, alpha) {
  const sum = 128 * (value * alpha + 255 * (255 - alpha) + 128);
  return (((sum >> 8) + sum) >> 8) >> 7;
}

function crcOf(bytes, start, end) {
  let value = 0xffffffff;
  for (let i = start; i < end; i += 1) value = CRCS[(value ^ bytes[i]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// Levels that an ICC profile describes -> sRGB, as `serving/color_profiles.py` converts them.  What needs a
// table of colors (inks, some scanners) is refused: only Python converts it.

import { ImageError } from "./upright.js";

const MAX_PROFILE_BYTES = 4 * 2 ** 20;
const MAX_TAGS = 100;
const MAX_CURVE = 0x7fff; // entries of a curve
const DEVICES = ["mntr", "scnr", "prtr", "spac"];
const SAME = 1; // level; a profile that moves no color further is one of sRGB
const STEPS = 2 ** 14; // between linear 0 and 1; a step is at most a fifth of a level
const FROM_XYZ = [ // XYZ under D50 to linear sRGB
  [3.1338561, -1.6168667, -0.4906146],
  [-0.9787684, 1.9161415, 0.033454],
  [0.0719453, -0.2289914, 1.4052427],
];
const LEVELS = Uint8Array.from({ length: STEPS + 1 }, (_, i) => {
  const value = i / STEPS;
  return Math.round(255 * (value > 0.0031308 ? 1.055 * value ** (1 / 2.4) - 0.055 : 12.92 * value));
});

/** Convert {data, width, height} in place; `kind` is what its file stores: RGB, GRAY or CMYK. */
export function toSrgb(image, profile, kind) {
  if (!profile) return image;
  if (profile.length > MAX_PROFILE_BYTES) {
    const size = profile.length.toLocaleString("en-US");
    const limit = MAX_PROFILE_BYTES.toLocaleString("en-US");
    throw new ImageError(`the image has a color profile of ${size} bytes; the limit is ${limit}`);
  }
  let convert = null;
  try {
    convert = converter(profile, kind);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // cut short: as in browsers, it is ignored
  }
  if (convert && !keepsColors(convert)) convert(image.data);
  return image;
}

/** Return what converts levels in place, or null where the profile is broken or for other pixels. */
function converter(profile, kind) {
  const view = new DataView(profile.buffer, profile.byteOffset, profile.byteLength);
  const name = (at) => String.fromCharCode(...[0, 1, 2, 3].map((i) => view.getUint8(at + i)));
  const [space, connection, count] = [name(16), name(20), view.getUint32(128)];
  if (name(36) !== "acsp" || view.getUint8(8) > 5 || !DEVICES.includes(name(12)) || count > MAX_TAGS) return null;
  if (space.trim() !== kind && !(space === "RGB " && kind === "GRAY")) return null;
  const tags = {};
  for (let at = 132; at < 132 + 12 * count; at += 12) {
    const [start, length] = [view.getUint32(at + 4), view.getUint32(at + 8)];
    if (start + length <= profile.length) tags[name(at)] = start;
  }
  if ("A2B0" in tags || "A2B1" in tags || (connection === "Lab " && kind !== "CMYK")) {
    throw new ImageError(
      "the image has a color profile that this page cannot convert; save the image as sRGB",
    );
  }
  if (connection !== "XYZ " || kind === "CMYK") return null;
  if (space === "GRAY") {
    const curve = curveAt(view, tags.kTRC);
    return curve && ((data) => data.forEach((value, i) => { data[i] = levelOf(curve[value]); }));
  }
  const curves = ["rTRC", "gTRC", "bTRC"].map((tag) => curveAt(view, tags[tag]));
  const colors = ["rXYZ", "gXYZ", "bXYZ"].map((tag) => colorAt(view, tags[tag]));
  return [...curves, ...colors].every(Boolean) ? throughMatrix(curves, colors) : null;
}

function throughMatrix([red, green, blue], colors) {
  const [[a, b, c], [d, e, f], [g, h, k]] = FROM_XYZ.map((row) =>
    colors.map((color) => row.reduce((sum, weight, i) => sum + weight * color[i], 0)),
  );
  return (data) => {
    for (let i = 0; i < data.length; i += 3) {
      const [x, y, z] = [red[data[i]], green[data[i + 1]], blue[data[i + 2]]];
      data[i] = levelOf(a * x + b * y + c * z);
      data[i + 1] = levelOf(d * x + e * y + f * z);
      data[i + 2] = levelOf(g * x + h * y + k * z);
    }
  };
}

function levelOf(value) {
  return LEVELS[Math.round(STEPS * Math.min(1, Math.max(0, value)))];
}

function keepsColors(convert) {
  const probes = [];
  for (let value = 0; value < 256; value += 1) probes.push(value, value, value);
  const sides = Array.from({ length: 9 }, (_, i) => Math.round((255 * i) / 8));
  for (const x of sides) for (const y of sides) for (const z of sides) probes.push(x, y, z);
  const found = Uint8Array.from(probes);
  convert(found);
  return found.every((value, i) => Math.abs(value - probes[i]) <= SAME);
}

function colorAt(view, at) {
  if (at === undefined || view.getUint32(at) !== 0x58595a20) return null; // "XYZ "
  return [8, 12, 16].map((i) => view.getInt32(at + i) / 65536);
}

/** Return the linear value of each level, or null. */
function curveAt(view, at) {
  if (at === undefined) return null;
  const kind = view.getUint32(at);
  const value = { 0x63757276: tableAt, 0x70617261: formulaAt }[kind]?.(view, at); // curv, para
  if (!value) return null;
  const curve = Float64Array.from({ length: 256 }, (_, level) => value(level / 255));
  return curve.every(Number.isFinite) ? curve : null;
}

function tableAt(view, at) {
  const count = view.getUint32(at + 8);
  if (count > MAX_CURVE) return null;
  if (count === 0) return (x) => x;
  const table = Array.from({ length: count }, (_, i) => view.getUint16(at + 12 + 2 * i));
  if (count === 1) return (x) => x ** (table[0] / 256);
  return (x) => {
    const place = x * (count - 1);
    const i = Math.min(Math.floor(place), count - 2);
    return (table[i] + (place - i) * (table[i + 1] - table[i])) / 65535;
  };
}

function formulaAt(view, at) {
  const kind = view.getUint16(at + 8);
  const size = [1, 3, 4, 5, 7][kind];
  if (!size) return null;
  const numbers = Array.from({ length: size }, (_, i) => view.getInt32(at + 12 + 4 * i) / 65536);
  const [g, a = 1, b = 0, c = 0, d = -b / a, e = 0, f = 0] = numbers;
  const power = (x) => Math.max(0, a * x + b) ** g;
  if (kind < 3) return (x) => (x >= d ? power(x) : 0) + c; // below d the formula is constant
  return (x) => (x >= d ? power(x) + e : c * x + f);
}

// What both kinds of files share: how an EXIF tag turns an image, and what may be wrong with it.

/** What is wrong with an image, in the words of Python's ImageError. */
export class ImageError extends Error {}

/** The bytes are no image of their kind. */
export class Unknown extends Error {}

/** The bytes are an image that is damaged or cut short. */
export class Damaged extends Error {}

/** Read how an image is turned, 1 to 8, from EXIF's directory; 1 where it does not say. */
export function orientationOf(exif) {
  if (!exif || exif.length < 14) return 1;
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = view.getUint16(0) === 0x4949;
  if (!little && view.getUint16(0) !== 0x4d4d) return 1;
  const first = view.getUint32(4, little);
  if (first + 2 > exif.length) return 1;
  const count = view.getUint16(first, little);
  for (let i = 0, at = first + 2; i < count && at + 12 <= exif.length; i += 1, at += 12) {
    const short = view.getUint16(at + 2, little) === 3 && view.getUint32(at + 4, little) === 1;
    if (view.getUint16(at, little) === 0x0112 && short) {
      const turn = view.getUint16(at + 8, little);
      return turn >= 1 && turn <= 8 ? turn : 1;
    }
  }
  return 1;
}

/** Turn an image upright: {data, width, height}. */
export function turned(image, turn) {
  if (turn === 1) return image;
  const { data, width, height } = image;
  const across = turn > 4; // rows become columns
  const [newWidth, newHeight] = across ? [height, width] : [width, height];
  const out = new Uint8Array(data.length);
  for (let y = 0; y < newHeight; y += 1) {
    for (let x = 0; x < newWidth; x += 1) {
      let [fromX, fromY] = across ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(turn)) fromX = width - 1 - fromX;
      if ([3, 4, 6, 7].includes(turn)) fromY = height - 1 - fromY;
      const [from, to] = [3 * (fromY * width + fromX), 3 * (y * newWidth + x)];
      for (let i = 0; i < 3; i += 1) out[to + i] = data[from + i];
    }
  }
  return { data: out, width: newWidth, height: newHeight };
}

// Pillow's resize of 8-bit images, byte for byte: two passes, each with its own filter weights.

const BITS = 22; // of the fixed-point weights
const HALF = 2 ** (BITS - 1);

const FILTERS = {
  bilinear: [1, (x) => (Math.abs(x) < 1 ? 1 - Math.abs(x) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function cubic(value) {
  const a = -0.5;
  const x = Math.abs(value);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI);
}

/** Resize RGB levels: {data: (height x width x 3), width, height} -> Uint8Array (H x W x 3). */
export function resize(image, [height, width], { mode, filter }) {
  const box = mode === "center_crop"
    ? middle(image, height, width)
    : [0, 0, image.width, image.height];
  const [left, top, right, bottom] = box.map(Math.fround); // Pillow keeps single precision
  const wide = width !== image.width || left !== 0 || right !== width;
  const high = height !== image.height || top !== 0 || bottom !== height;
  const across = wide ? weights(image.width, left, right, width, filter) : null;
  const down = high ? weights(image.height, top, bottom, height, filter) : null;
  if (!down) return across ? horizontal(image, across) : Uint8Array.from(image.data);
  if (!across) return vertical(image, down);
  if (verticalFirst(image, height, width)) {
    return horizontal({ data: vertical(image, down), width: image.width, height }, across);
  }
  // Only the rows that the second pass looks at.
  const first = Math.min(...down.map((one) => one.start));
  const last = Math.max(...down.map((one) => one.start + one.values.length));
  const rows = image.data.subarray(3 * image.width * first, 3 * image.width * last);
  const data = horizontal({ data: rows, width: image.width, height: last - first }, across);
  const shifted = down.map(({ start, values }) => ({ start: start - first, values }));
  return vertical({ data, width }, shifted);
}

/** Say which pass Pillow 13 makes first (before 13: never this one); found by trying sizes. */
function verticalFirst(image, height, width) {
  return image.height > height && 2 * (image.width - width) < image.height - height;
}

/** Return the box of the largest middle part that has the target's shape. */
function middle(image, height, width) {
  const scale = Math.min(image.width / width, image.height / height);
  const cropWidth = Math.min(width * scale, image.width);
  const cropHeight = Math.min(height * scale, image.height);
  const [left, top] = [(image.width - cropWidth) / 2, (image.height - cropHeight) / 2];
  return [left, top, left + cropWidth, top + cropHeight];
}

/** Return for each target position where its source begins and the weights from there on. */
function weights(size, low, high, target, name) {
  const [reach, filter] = FILTERS[name];
  const scale = Math.fround(high - low) / target;
  const stretch = Math.max(scale, 1);
  const support = reach * stretch;
  return Array.from({ length: target }, (_, i) => {
    const center = low + (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(size, Math.trunc(center + support + 0.5));
    const plain = [];
    let sum = 0;
    for (let k = 0; k < end - start; k += 1) {
      const weight = filter((k + start - center + 0.5) * (1 / stretch));
      plain.push(weight);
      sum += weight;
    }
    const values = plain.map((weight) => {
      const fixed = (sum === 0 ? weight : weight / sum) * 2 ** BITS;
      return Math.trunc(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    });
    return { start, values };
  });
}

function horizontal({ data, width: sourceWidth, height }, across) {
  const width = across.length;
  const out = new Uint8Array(height * width * 3);
  for (let y = 0; y < height; y += 1) {
    const row = y * sourceWidth;
    for (let x = 0; x < width; x += 1) {
      const { start, values } = across[x];
      let [red, green, blue] = [HALF, HALF, HALF];
      for (let k = 0, at = 3 * (row + start); k < values.length; k += 1, at += 3) {
        red += data[at] * values[k];
        green += data[at + 1] * values[k];
        blue += data[at + 2] * values[k];
      }
      const to = 3 * (y * width + x);
      out[to] = level(red);
      out[to + 1] = level(green);
      out[to + 2] = level(blue);
    }
  }
  return out;
}

function vertical({ data, width }, down) {
  const stride = 3 * width;
  const out = new Uint8Array(down.length * stride);
  const sums = new Float64Array(stride);
  down.forEach(({ start, values }, y) => {
    sums.fill(HALF);
    for (let k = 0; k < values.length; k += 1) {
      const from = (start + k) * stride;
      for (let x = 0; x < stride; x += 1) sums[x] += data[from + x] * values[k];
    }
    for (let x = 0; x < stride; x += 1) out[y * stride + x] = level(sums[x]);
  });
  return out;
}

function level(sum) {
  return Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));
}

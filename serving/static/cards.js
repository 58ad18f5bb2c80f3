// One photograph and what was answered for it, as a card.

const DECISIONS = {
  answer: "Answer",
  uncertain: "Uncertain",
  out_of_scope: "Out of scope",
};
// A scale that darkens evenly and that the color-blind can read: dark blue to yellow.
const ANCHORS = [
  [12, 12, 60], [60, 30, 130], [150, 40, 120], [220, 80, 70], [250, 160, 40], [252, 250, 160],
];
const STRENGTH = 45; // percent, at first
const MAP_WIDTH = 400; // pixels of the drawn map

/** Make the card of a photograph that waits for its answer. */
export function makeCard(name, url, remove) {
  const image = element("img", { src: url, alt: `Photograph ${name}` });
  const frame = element("div", { className: "frame" }, image);
  const body = element("div", { className: "said" }, element("p", {}, "Waiting …"));
  const close = element("button", { type: "button", className: "remove" }, "Remove");
  close.setAttribute("aria-label", `Remove ${name}`);
  close.addEventListener("click", remove);
  const card = element(
    "li",
    { className: "card" },
    element("h3", {}, name),
    element("div", { className: "photograph" }, frame),
    body,
    close,
  );
  card.setAttribute("aria-busy", "true");
  return card;
}

/** Say in a card why there is no answer. */
export function showError(card, message) {
  said(card).replaceChildren(element("p", { className: "error" }, message));
  const image = card.querySelector("img");
  const drop = () => card.querySelector(".photograph").remove();
  if (image.complete && !image.naturalWidth) drop();
  else image.addEventListener("error", drop);
  done(card, "failed");
}

/** Show an answer in its card; `model` is what the backend described. */
export function showAnswer(card, answer, model) {
  const words = Object.fromEntries(
    model.class_names.map((name, i) => [name, model.class_descriptions[i]]),
  );
  const parts = [
    ...headline(answer),
    bars(answer, words),
    ...predictionSet(answer, words),
    ...hints(answer),
    ...spread(answer),
    element("p", { className: "disclaimer" }, answer.disclaimer),
  ];
  said(card).replaceChildren(...parts);
  if (answer.saliency) showMap(card, answer, model);
  done(card, answer.decision || "answer");
}

function headline(answer) {
  const [first, ...rest] = answer.predicted_class_description;
  const name = `${first.toUpperCase()}${rest.join("")}`;
  const best = element(
    "p",
    { className: "best" },
    element("strong", {}, name),
    ` ${percent(answer.confidence)}`,
  );
  if (!answer.decision) return [best];
  const decision = element(
    "p",
    { className: `decision ${answer.decision}` },
    element("strong", {}, DECISIONS[answer.decision]),
    `: ${answer.decision_reason}.`,
  );
  return [decision, best];
}

function bars(answer, words) {
  const rows = Object.entries(answer.probabilities).map(([name, prob]) => {
    const fill = element("span", { className: "fill" });
    fill.style.inlineSize = `${100 * prob}%`;
    const bar = element("td", { className: "bar", role: "cell" }, fill);
    bar.setAttribute("aria-hidden", "true");
    const row = element(
      "tr",
      { className: name === answer.predicted_class ? "predicted" : "", role: "row" },
      Object.assign(element("th", {}, words[name], " ", element("small", {}, name)), {
        scope: "row",
        role: "rowheader",
      }),
      bar,
      element("td", { className: "number", role: "cell" }, percent(prob)),
    );
    return row;
  });
  return element(
    "table",
    { className: "probabilities", role: "table" }, // said aloud as one, however it is laid out
    element("caption", {}, "Probabilities"),
    element("tbody", { role: "rowgroup" }, ...rows),
  );
}

function predictionSet(answer, words) {
  if (!answer.prediction_set) return [];
  const level = `${+(100 * answer.set_level).toFixed(1)} %`;
  const names = answer.prediction_set.map((name) => words[name]).join(", ");
  const note = answer.set_note ? [element("p", { className: "note" }, `${answer.set_note}.`)] : [];
  return [
    element("p", {}, element("strong", {}, `Prediction set at ${level}`), `: ${names}.`),
    ...note,
  ];
}

function hints(answer) {
  if (!answer.quality?.length) return [];
  const items = answer.quality.map((hint) => element("li", {}, hint));
  return [
    element("p", {}, element("strong", {}, "About the photograph:")),
    element("ul", { className: "hints" }, ...items),
  ];
}

function spread(answer) {
  if (answer.spread === undefined) return [];
  return [element("p", {}, element("strong", {}, "Spread"), `: ${percent(answer.spread)}.`)];
}

/** Lay the map over the photograph, with a slider for its strength. */
function showMap(card, answer, model) {
  const image = card.querySelector("img");
  const canvas = element("canvas", { className: "map" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Map of the evidence for ${answer.predicted_class}`);
  const slider = element("input", { type: "range", min: 0, max: 100, value: STRENGTH });
  const label = element("label", { className: "strength" }, "Strength of the map ", slider);
  slider.addEventListener("input", () => {
    canvas.style.opacity = slider.value / 100;
  });
  canvas.style.opacity = STRENGTH / 100;
  const draw = () => drawMap(canvas, answer.saliency, image, model);
  if (image.complete && image.naturalWidth) draw();
  else image.addEventListener("load", draw, { once: true });
  card.querySelector(".frame").append(canvas);
  const name = answer.predicted_class_description;
  const legend = `The lighter the map, the more evidence for ${name}; without color: none.`;
  card.querySelector(".photograph").append(label, element("p", { className: "note" }, legend));
}

/** Draw the map at the shape of the photograph: color by evidence, nothing where there is none. */
function drawMap(canvas, saliency, image, model) {
  const { naturalWidth, naturalHeight } = image;
  canvas.width = MAP_WIDTH;
  canvas.height = Math.max(1, Math.round((MAP_WIDTH * naturalHeight) / naturalWidth));
  const [rows, columns] = [saliency.length, saliency[0].length];
  const largest = Math.max(...saliency.flat());
  if (!(largest > 0)) return;
  const small = new OffscreenCanvas(columns, rows);
  const levels = new ImageData(columns, rows);
  saliency.flat().forEach((value, i) => {
    levels.data.set([0, 0, 0, Math.round((255 * value) / largest)], 4 * i);
  });
  small.getContext("2d").putImageData(levels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, ...seenPart(canvas, model));
  const drawn = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < drawn.data.length; i += 4) {
    const share = drawn.data[i + 3] / 255;
    drawn.data.set([...colorOf(share), Math.round(255 * Math.sqrt(share))], i);
  }
  pen.putImageData(drawn, 0, 0);
}

/** Return left, top, width and height of what the network sees of the photograph. */
function seenPart(canvas, model) {
  if (model.resize_mode !== "center_crop") return [0, 0, canvas.width, canvas.height];
  const [height, width] = model.input_size;
  const scale = Math.min(canvas.width / width, canvas.height / height);
  const [seenWidth, seenHeight] = [width * scale, height * scale];
  return [
    (canvas.width - seenWidth) / 2, (canvas.height - seenHeight) / 2, seenWidth, seenHeight,
  ];
}

function colorOf(share) {
  const place = share * (ANCHORS.length - 1);
  const i = Math.min(Math.floor(place), ANCHORS.length - 2);
  return ANCHORS[i].map((low, k) => Math.round(low + (place - i) * (ANCHORS[i + 1][k] - low)));
}

function done(card, state) {
  card.setAttribute("aria-busy", "false");
  card.dataset.state = state;
}

function said(card) {
  return card.querySelector(".said");
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function element(tag, values, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

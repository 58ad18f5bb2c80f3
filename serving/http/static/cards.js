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
const FEW = 12; // classes that are shown in their own order; of more, the most probable first
const FIRST = 8; // of many classes, those that are shown at once
const LONG = 300; // characters of a note

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
  const words = new Map(
    model.class_names.map((name, i) => [name, model.class_descriptions[i] || name]),
  );
  const parts = [
    ...headline(answer, words),
    ...bars(answer, model),
    ...referral(answer),
    ...predictionSet(answer, words),
    ...hints(answer),
    ...spread(answer),
    element("p", { className: "disclaimer" }, answer.disclaimer),
  ];
  said(card).replaceChildren(...parts);
  if (answer.saliency) showMap(card, answer, model, words.get(answer.predicted_class));
  done(card, answer.decision || "answer");
}

/** Return a class in words and by name, isolated: a name may be written from right to left. */
export function nameOf(name, description) {
  if (!description) return [element("bdi", {}, name)];
  const small = element("small", {}, element("bdi", {}, name));
  return [element("bdi", {}, description), " ", small];
}

function headline(answer, words) {
  const [first, ...rest] = words.get(answer.predicted_class);
  const name = `${first.toUpperCase()}${rest.join("")}`;
  const best = element(
    "p",
    { className: "best" },
    element("strong", {}, element("bdi", {}, name)),
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

function bars(answer, model) {
  const classes = model.class_names.map((name, i) => ({
    name, description: model.class_descriptions[i], prob: answer.probabilities[name],
  }));
  if (classes.length <= FEW) return [tableOf(classes, answer, "Probabilities")];
  classes.sort((one, other) => other.prob - one.prob);
  const [first, rest] = [classes.slice(0, FIRST), classes.slice(FIRST)];
  return [
    tableOf(first, answer, `Probabilities of the ${FIRST} most probable classes`),
    folded(`${rest.length} other classes`, tableOf(rest, answer, "Probabilities of the others")),
  ];
}

function tableOf(classes, answer, caption) {
  const rows = classes.map(({ name, description, prob }) => {
    const fill = element("span", { className: "fill" });
    fill.style.inlineSize = `${100 * prob}%`;
    const bar = element("td", { className: "bar", role: "cell" }, fill);
    bar.setAttribute("aria-hidden", "true");
    return element(
      "tr",
      { className: name === answer.predicted_class ? "predicted" : "", role: "row" },
      element("th", { scope: "row", role: "rowheader" }, ...nameOf(name, description)),
      bar,
      element("td", { className: "number", role: "cell" }, percent(prob)),
    );
  });
  return element(
    "table",
    { className: "probabilities", role: "table" }, // said aloud as one, however it is laid out
    element("caption", {}, caption),
    element("tbody", { role: "rowgroup" }, ...rows),
  );
}

function referral({ referral: refer, referral_reason: reason }) {
  if (reason === undefined) return [];
  const flag = { true: "Refer", false: "No referral", undefined: "No referral threshold" }[refer];
  const className = `referral ${refer ? "refer" : ""}`;
  return [element("p", { className }, element("strong", {}, flag), `: ${reason}.`)];
}

function predictionSet(answer, words) {
  if (!answer.prediction_set) return [];
  const title = `Prediction set, right for ${+(100 * answer.set_level).toFixed(1)} % of each class`;
  const names = answer.prediction_set.map((name) => words.get(name));
  const note = answer.set_note ? `${answer.set_note}.` : "";
  return [
    ...(names.length <= FEW
      ? [element("p", {}, element("strong", {}, title), ": ", ...joined(names), ".")]
      : [folded(`${title}: ${names.length} classes`, element("p", {}, ...joined(names), "."))]),
    ...(note.length > LONG ? [folded("About this set", element("p", {}, note))] : []),
    ...(note && note.length <= LONG ? [element("p", { className: "note" }, note)] : []),
  ];
}

function joined(names) {
  return names.flatMap((name, i) => [i ? ", " : "", element("bdi", {}, name)]);
}

function folded(title, content) {
  return element("details", {}, element("summary", {}, title), content);
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
function showMap(card, answer, model, name) {
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
  const legend = element(
    "p",
    { className: "note" },
    "The lighter the map, the more evidence for ",
    element("bdi", {}, name),
    "; without color: none.",
  );
  card.querySelector(".photograph").append(label, legend);
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

export function element(tag, values, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

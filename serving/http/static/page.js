// The page: photographs in, cards out.  Who answers is `backend.js`: a service, or this browser.

import * as backend from "./backend.js";
import { element, makeCard, nameOf, showAnswer, showError } from "./cards.js";
import { asCsv, asJson, save } from "./saved.js";

const AT_ONCE = 2; // photographs that are asked about at a time
const $ = (id) => document.getElementById(id);

const state = {
  model: null,
  results: [], // {name, blob, url, card, answer | error, level, sensitivity, metadata}
  waiting: [],
  working: 0,
  asked: 0, // since the page was last at rest
  answered: 0,
  stop: new AbortController(),
};

listen();
load();

/** Ask the backend what the model is, then about what waits. */
async function load() {
  say("Loading the model …");
  try {
    state.model = await backend.describe((share) => showProgress(share, 1));
  } catch (error) {
    if (error.needsKey) askForKey();
    else say(error.message);
    return;
  } finally {
    $("progress").hidden = true;
  }
  introduce(state.model);
  say("");
  refresh();
  work();
}

/** Show what the model is and what may be asked of it. */
function introduce(model) {
  $("disclaimer").textContent = model.disclaimer;
  if (model.data_title) document.title = `Dermalyze: ${model.data_title}`;
  $("classes").hidden = false;
  const trained = model.data_title ? `, as in ${model.data_title}` : "";
  $("classes-title").textContent =
    `Distinguishes ${model.class_names.length} classes in photographs${trained}`;
  $("class-list").replaceChildren(
    ...model.class_names.map((name, i) => {
      const malignant = model.malignant?.includes(name) ? " (malignant)" : "";
      return element("li", {}, ...nameOf(name, model.class_descriptions[i]), malignant);
    }),
  );
  $("map-words").textContent = model.saliency_in_words || "This model has no map.";
  $("model").textContent = [
    model.run_id ? `Model of run ${model.run_id}.` : "Model of an unknown run.",
    model.calibrated_on && `Calibrated on ${model.calibrated_on}.`,
    model.data_license && `Trained on data under ${model.data_license}.`,
  ].filter(Boolean).join(" ");
  $("referral-words").hidden = !model.malignant;
  offer("level", model.levels, 0.9);
  offer("sensitivity", model.sensitivities, 0.95);
  $("metadata").hidden = model.metadata === null;
  const { age = false, sexes = [], localizations = [] } = model.metadata || {};
  $("age").closest("label").hidden = !age;
  for (const [id, words] of [["sex", sexes], ["localization", localizations]]) {
    $(id).closest("label").hidden = words.length === 0;
    $(id).replaceChildren(new Option("unknown", ""), ...words.map((word) => new Option(word)));
  }
  const choices = model.levels.length + model.sensitivities.length;
  $("options").hidden = choices === 0 && model.metadata === null;
  if (model.local) {
    $("privacy").textContent = "JPEG or PNG. Photographs never leave this device.";
  }
}

/** Let one of some shares be chosen; the usual one is, or the highest below it. */
function offer(id, shares, usual) {
  $(`${id}-field`).hidden = shares.length === 0;
  const chosen = Math.max(...shares.filter((share) => share <= usual));
  $(id).replaceChildren(
    ...shares.map((share) => {
      const shown = `${+(100 * share).toFixed(1)} %`;
      return new Option(shown, share, share === chosen, share === chosen);
    }),
  );
}

function listen() {
  for (const id of ["files", "camera"]) {
    $(id).addEventListener("change", (event) => {
      add(event.target.files);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) add(event.clipboardData.files);
  });
  $("cancel").addEventListener("click", cancel);
  $("clear").addEventListener("click", () => {
    cancel();
    [...state.results].forEach(remove);
    $("results").focus();
  });
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll(".card details").forEach((part) => { part.open = true; });
  });
  $("print").addEventListener("click", () => window.print());
  $("save-json").addEventListener("click", () => {
    save(asJson(finished()), "dermalyze.json", "application/json");
  });
  $("save-csv").addEventListener("click", () => {
    const { class_names: names, disclaimer } = state.model;
    save(asCsv(finished(), names, disclaimer), "dermalyze.csv", "text/csv");
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    backend.useKey($("key").value);
    $("key-form").hidden = true;
    if (state.model) work();
    else load();
  });
}

function askForKey() {
  $("key-form").hidden = false;
  say("This service requires an API key.");
  $("key").focus();
}

function add(files) {
  const metadata = metadataGiven();
  for (const blob of files) {
    const result = { name: blob.name || "pasted", blob, url: URL.createObjectURL(blob), metadata };
    result.level = Number($("level").value) || 0.9;
    result.sensitivity = Number($("sensitivity").value) || 0.95;
    result.card = makeCard(result.name, result.url, () => {
      const next = result.card.nextElementSibling || result.card.previousElementSibling;
      remove(result);
      (next?.querySelector(".remove") || $("results")).focus();
    });
    state.results.push(result);
    state.waiting.push(result);
    state.asked += 1;
    $("cards").append(result.card);
  }
  refresh();
  work();
}

/** Return what the form says of the patient and the site; null: nothing. */
function metadataGiven() {
  if (!state.model?.metadata) return null;
  const given = ["age", "sex", "localization"]
    .map((id) => [id, $(id).value])
    .filter(([, value]) => value !== "");
  return given.length ? Object.fromEntries(given) : null;
}

/** Ask about what waits, a few at a time. */
function work() {
  if (!state.model) return;
  while (state.working < AT_ONCE && state.waiting.length) answer(state.waiting.shift());
}

async function answer(result) {
  const { signal } = state.stop;
  state.working += 1;
  try {
    result.answer = await backend.predict(result.blob, {
      level: result.level,
      sensitivity: result.sensitivity,
      metadata: result.metadata,
      explain: state.model.saliency !== "",
      signal,
    });
    showAnswer(result.card, result.answer, state.model);
  } catch (error) {
    if (signal.aborted) return;
    if (error.needsKey) {
      state.waiting.unshift(result);
      askForKey();
      return;
    }
    result.error = error instanceof backend.BackendError
      ? error.message
      : "Something went wrong in this page. Load it again.";
    showError(result.card, result.error);
  } finally {
    state.working -= 1;
    if (result.answer || result.error) state.answered += 1;
    refresh();
    if ($("key-form").hidden) work();
  }
}

/** Stop asking; what has no answer yet leaves the page. */
function cancel() {
  state.stop.abort();
  state.stop = new AbortController();
  state.waiting = [];
  state.results.filter((result) => !result.answer && !result.error).forEach(remove);
}

function remove(result) {
  URL.revokeObjectURL(result.url);
  result.card.remove();
  state.results = state.results.filter((other) => other !== result);
  state.waiting = state.waiting.filter((other) => other !== result);
  refresh();
}

function finished() {
  return state.results.filter((result) => result.answer || result.error);
}

function refresh() {
  const open = state.results.filter((result) => !result.answer && !result.error).length;
  $("empty").hidden = state.results.length > 0;
  $("tools").hidden = finished().length === 0;
  if (open) {
    showProgress(state.answered, state.answered + open);
    say(`${state.answered} of ${state.answered + open} photographs answered.`);
  } else if (state.asked) {
    $("progress").hidden = true;
    const failed = state.results.filter((result) => result.error).length;
    const count = state.results.length;
    const noun = count === 1 ? "photograph" : "photographs";
    say(`${count} ${noun} shown${failed ? `, ${failed} of them without an answer` : ""}.`);
    state.asked = 0;
    state.answered = 0;
  }
}

function showProgress(value, max) {
  $("progress").hidden = false;
  Object.assign($("bar"), { value, max });
}

function say(text) {
  $("status").textContent = text;
}

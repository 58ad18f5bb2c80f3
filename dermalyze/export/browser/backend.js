// This browser answers by itself: the model lies beside the page, photographs stay here.

const FILES = { model: "model.onnx", spec: "spec.json", description: "description.json" };
const tasks = new Map(); // id -> {resolve, reject}
let worker;
let broken = null; // why the worker cannot be asked any more
let count = 0;

export class BackendError extends Error {}

/** Load the model and say what it is and can; `tell` hears which part has been loaded. */
export async function describe(tell = () => {}) {
  worker ??= startWorker();
  const [description, spec, model] = await Promise.all([
    load(FILES.description, (response) => response.json()),
    load(FILES.spec, (response) => response.json()),
    load(FILES.model, (response) => wholeOf(response, tell)),
  ]);
  await ask("load", { model, spec });
  keepForLater();
  return { ...description, local: true };
}

/** Answer for one photograph, a Blob, or for its RGB levels: {data, width, height}. */
export async function predict(
  photograph,
  { level = 0.9, sensitivity = 0.95, metadata = null, explain = true, signal } = {},
) {
  signal?.throwIfAborted();
  const answered = ask("answer", { photograph, level, sensitivity, metadata, explain });
  if (!signal) return answered;
  const left = new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  return Promise.race([answered, left]);
}

/** Let the service worker keep all files; only now, or each would be fetched twice at a time. */
async function keepForLater() {
  try {
    const registration = await navigator.serviceWorker?.register("service_worker.js");
    await registration?.update(); // a new export is found at once, not when the browser likes
  } catch {
    // Without it, or without a network, the page works as it is.
  }
}

function startWorker() {
  const made = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  made.addEventListener("message", ({ data: { id, result, error } }) => {
    const { resolve, reject } = tasks.get(id);
    tasks.delete(id);
    if (error === undefined) resolve(result);
    else reject(new BackendError(`${error[0].toUpperCase()}${error.slice(1)}.`));
  });
  made.addEventListener("error", (event) => {
    broken = new BackendError("This browser cannot run the model. A newer one may.");
    tasks.forEach(({ reject }) => reject(broken));
    tasks.clear();
    event.preventDefault();
  });
  return made;
}

function ask(task, values) {
  if (broken) return Promise.reject(broken);
  count += 1;
  const id = count;
  return new Promise((resolve, reject) => {
    tasks.set(id, { resolve, reject });
    worker.postMessage({ id, task, values });
  });
}

async function load(name, read) {
  let response;
  try {
    response = await fetch(name);
    if (response.ok) return await read(response);
  } catch {
    throw new BackendError("The model cannot be loaded. Is there a network?");
  }
  throw new BackendError(`The model cannot be loaded (${response.status}).`);
}

async function wholeOf(response, tell) {
  const length = Number(response.headers.get("content-length"));
  const reader = response.body.getReader();
  const parts = [];
  let received = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    if (length) tell(Math.min(1, received / length));
  }
  return new Blob(parts).arrayBuffer();
}

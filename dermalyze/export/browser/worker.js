// The network, away from the page, so that the page never freezes.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { answerOf, encode } from "./answering.js";
import { decode } from "./decode.js";
import { resize } from "./resample.js";

let session;
let spec;
let last = Promise.resolve(); // the runtime takes one image at a time

self.addEventListener("message", ({ data: { id, task, values } }) => {
  const work = task === "load" ? load : answer;
  last = last.then(() => work(values)).then(
    (result) => self.postMessage({ id, result }),
    (error) => self.postMessage({ id, error: error.message }),
  );
});

async function load({ model, spec: given }) {
  spec = given;
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", import.meta.url).href };
  // Threads need a page that is isolated from all others, which only a server's headers can say.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  try {
    session = await ort.InferenceSession.create(new Uint8Array(model), {
      executionProviders: ["wasm"],
    });
  } catch (error) {
    console.warn(error); // the runtime's own words are for those who look after the page
    throw new Error("this browser cannot run the model; load the page again, or try a newer one");
  }
}

async function answer({ photograph, metadata, explain, ...asked }) {
  if (metadata && !spec.metadata) {
    throw new Error(
      "this model takes no metadata, only images; leave age, sex and localization out",
    );
  }
  const opened = photograph instanceof Blob ? await decode(photograph) : photograph;
  const pixels = resize(opened, spec.input_size, {
    mode: spec.resize_mode,
    filter: spec.resize_filter,
  });
  const feeds = { image: new ort.Tensor("uint8", pixels, [1, ...spec.input_size, 3]) };
  if (spec.metadata) {
    const row = encode(metadata, spec.metadata);
    feeds.metadata = new ort.Tensor("float32", row, [1, row.length]);
  }
  const mapped = explain && spec.saliency !== "";
  const wanted = session.outputNames.filter(
    (name) => !["saliency", "attention"].includes(name) || (mapped && name === "saliency"),
  );
  const found = await run(feeds, wanted);
  const outputs = Object.fromEntries(wanted.map((name) => [name, found[name].data]));
  if (!wanted.every((name) => outputs[name].every(Number.isFinite))) {
    throw new Error(
      "the model returned values that are not finite numbers; train or export it again",
    );
  }
  const size = [opened.width, opened.height];
  const said = answerOf(outputs, pixels, size, spec, asked);
  if (mapped) {
    const index = spec.taxonomy.names.indexOf(said.predicted_class);
    said.saliency = rowsOf(found.saliency, index);
  }
  return said;
}

async function run(feeds, wanted) {
  try {
    return await session.run(feeds, wanted);
  } catch (error) {
    console.warn(error);
    throw new Error("the model failed in this browser; load the page again, or try a newer one");
  }
}

/** Return the map of one class as rows, of (1, C, h, w). */
function rowsOf({ data, dims: [, , height, width] }, index) {
  const start = index * height * width;
  return Array.from({ length: height }, (_, y) => [
    ...data.slice(start + y * width, start + (y + 1) * width),
  ]);
}

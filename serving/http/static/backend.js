// The service that this page came from: what it is, and its answers.

const WAITS = 5; // how often a busy service is asked again
let apiKey = "";

export class BackendError extends Error {
  constructor(message, { needsKey = false } = {}) {
    super(message);
    this.needsKey = needsKey;
  }
}

/** Ask with this API key from now on; it is kept in memory only. */
export function useKey(key) {
  apiKey = key;
}

/** Say what the model is and can. */
export async function describe() {
  const response = await ask("version", { cache: "no-store" });
  return { ...(await response.json()), local: false };
}

/** Answer for one photograph, a Blob. */
export async function predict(
  blob,
  { level = 0.9, sensitivity = 0.95, metadata = null, explain = true, signal } = {},
) {
  const query = new URLSearchParams({ level, sensitivity, explain, ...metadata });
  const response = await ask(`predict?${query}`, {
    method: "POST",
    body: blob,
    headers: { "content-type": blob.type === "image/png" ? "image/png" : "image/jpeg" },
    signal,
  });
  return (await response.json()).predictions[0];
}

async function ask(path, options) {
  const headers = { ...options.headers, ...(apiKey && { authorization: `Bearer ${apiKey}` }) };
  for (let i = 0; ; i += 1) {
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new BackendError(
        "The service does not answer. Is it still running, and is there a network?",
      );
    }
    if (response.ok) return response;
    if (response.status === 503 && i < WAITS) {
      await pause(1000 * (Number(response.headers.get("retry-after")) || 1), options.signal);
      continue;
    }
    throw await errorOf(response);
  }
}

async function errorOf(response) {
  if (response.status === 401) {
    return new BackendError("This service requires an API key.", { needsKey: true });
  }
  let sentence = "";
  try {
    sentence = (await response.json()).message;
  } catch {
    // Something between the page and the service answered; it has no sentence of ours.
  }
  const words = {
    408: "The photograph took too long to arrive. Try again, or send a smaller one.",
    413: "The photograph is larger than this service takes. Send a smaller one.",
    503: "The service is busy. Try again in a minute.",
    504: "The service took too long. Try again, or send a smaller photograph.",
  };
  const said = (sentence || "").replace(/^image 1 of 1: /, "");
  const shown = words[response.status] || (said && `${said[0].toUpperCase()}${said.slice(1)}.`);
  return new BackendError(shown || `The service failed (${response.status}). Try again later.`);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

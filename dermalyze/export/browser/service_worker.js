// Keeps every file of this folder, so that the page works without a network once it was loaded.

const CACHE = "dermalyze-@DIGEST@";
const FILES = ["@FILES@"];

self.addEventListener("install", (event) => {
  const fresh = FILES.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(
    caches.open(CACHE).then((cache) => cache.addAll(fresh)).then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(dropOthers().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(
    caches
      .open(CACHE)
      .then((cache) => cache.match(nameOf(event.request), { ignoreSearch: true, ignoreVary: true }))
      .then((kept) => kept || fetch(event.request)),
  );
});

/** The page has two names; some servers send whoever asks for one of them to the other. */
function nameOf(request) {
  return new URL(request.url).pathname.endsWith("/index.html") ? "./" : request;
}

/** Forget what earlier exports kept at this address. */
async function dropOthers() {
  const scope = await caches.keys();
  const others = scope.filter((name) => name.startsWith("dermalyze-") && name !== CACHE);
  await Promise.all(others.map((name) => caches.delete(name)));
}

"""How near the page without a server comes to Python, on real images, and how fast it is.

    python -m benchmarks.web MODEL [MODEL ...] [--data-dir demo]

Each image goes to `serving.Predictor` and to the exported page in Chromium: as the JPEG file that
it is, and as the pixels that Pillow decoded, so that the share of the browser's decoder is told.
"""

import argparse
import base64
import io
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Page

from benchmarks.report import Figure, publish
from dermalyze.data.location import find_data
from dermalyze.data.readers.dataset import ImageReader, open_dataset
from dermalyze.export.web import export_web
from serving import Predictor
from tests.support.browsers import Opened, chromium, files_of

NUM_IMAGES = 50
ANSWER = """async ([text, width, height]) => {
  const backend = await import(new URL("backend.js", location.href));
  const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const photograph = width ? { data, width, height } : new Blob([data]);
  const start = performance.now();
  const answer = await backend.predict(photograph, { explain: false });
  return [answer, performance.now() - start];
}"""
DECODE = """async (text) => {
  const { decode } = await import(new URL("decode.js", location.href));
  const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return [...(await decode(new Blob([data]))).data];
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    args = parser.parse_args()
    images = some_images(args.data_dir)
    figures, context = [], {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        browser = stack.enter_context(chromium())
        for model in args.models:
            export_web(model, Path(folder) / model.stem)
            address = stack.enter_context(files_of(Path(folder) / model.stem))
            with Opened(browser, address) as page:
                found, context[model.name] = beside_python(model, images, page)
                figures += found
    publish("web", figures, images=len(images), **context)


def some_images(data_dir: str) -> list[bytes]:
    dataset = open_dataset(find_data(data_dir, make=True)[0])
    names = sorted(dataset.files)
    with ImageReader() as reader:
        return [reader.read(dataset.files[n]) for n in names[:: len(names) // NUM_IMAGES]]


def beside_python(
    model: Path, images: list[bytes], page: Page
) -> tuple[list[Figure], dict[str, Any]]:
    predictor = Predictor(model)
    whole, decoded, levels, here, there = [], [], [], [], []
    changed = 0
    for data in images:
        start = time.perf_counter()
        expected = predictor.predict(data)
        here.append(1000 * (time.perf_counter() - start))
        text = base64.b64encode(data).decode()
        answer, taken = page.evaluate(ANSWER, [text, 0, 0])
        there.append(taken)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        raw = base64.b64encode(pixels.tobytes()).decode()
        same, _ = page.evaluate(ANSWER, [raw, pixels.shape[1], pixels.shape[0]])
        theirs = np.array(page.evaluate(DECODE, text)).reshape(pixels.shape)
        levels.append(np.abs(theirs - pixels.astype(int)))
        for kept, found in ((whole, answer), (decoded, same)):
            probs, known = found["probabilities"], expected.probabilities
            kept.append(max(abs(probs[name] - known[name]) for name in known))
        changed += answer["predicted_class"] != expected.predicted_class
    every = np.stack([difference.reshape(-1) for difference in levels])
    figure = Figure(
        what=f"{model.name}, ms an image",
        ours=statistics.median(there),
        baseline=statistics.median(here),
        unit="ms",
        against="Predictor, all cores",
        ratio=statistics.median(there) / statistics.median(here),
        goal="",
    )
    limit = Figure(
        what=f"{model.name}, largest difference of a probability",
        ours=max(whole),
        baseline=1e-3,
        unit="",
        against="the bound",
        ratio=max(whole) / 1e-3,
        goal="<= 1.0",
    )
    told = {
        "largest_difference": max(whole),
        "with_pixels_of_pillow": max(decoded),
        "changed_classes": changed,
        "largest_level": int(every.max()),
        "mean_level": float(every.mean()),
        "share_of_levels_that_differ": float((every > 0).mean()),
    }
    print(model.name, told, flush=True)
    return [figure, limit], told


if __name__ == "__main__":
    main()

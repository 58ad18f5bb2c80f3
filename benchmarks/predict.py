"""Predicting: one image, a folder of 1,000, and what a JPEG decoder's own down-scaling would do.

    python -m benchmarks.predict [--data-dir demo]

Answers for one image are compared with what cannot be left out: Pillow's decoding and resizing, and
the network, in the same session.  A folder is compared with the loop that one would write first:
open, decode, resize, run, one image after the other.  All images are 600 x 450, enlarged from the
data where those are smaller.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.models import SIZE, model_files
from benchmarks.report import Figure, publish
from dermalyze.data.location import find_data
from dermalyze.data.readers.dataset import ImageReader, open_dataset
from serving.batch import predict_files
from serving.ham10000_taxonomy import HAM10000
from serving.output_formats import render
from serving.predictor import Predictor
from serving.preprocess import to_pixels
from serving.session import share_cores
from serving.spec import RESIZE_FILTERS, ModelSpec

BICUBIC = Image.Resampling.BICUBIC
LARGE = (4000, 3000)  # pixels, 12 megapixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    parser.add_argument("--images", type=int, default=1000, help="in the folder")
    parser.add_argument("--rounds", type=int, default=3, help="of each side of the folders")
    args = parser.parse_args()
    data_dir, _ = find_data(args.data_dir, make=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(data_dir, Path(folder), args.images)
        figures = [one_image(paths[:50])]
        curve: list[float] = []
        figures += a_folder("MobileNetV2", paths, args.rounds, ">= 1.6", curve)
        figures += a_folder("MobileNetV3-Small", paths, args.rounds, ">= 1.6", [])
        figures += a_folder("EfficientNetV2-S", paths[:150], args.rounds, ">= 1.1", [])
        growth = Figure(
            what=f"memory, last of {len(paths):,} images",
            ours=curve[-1],
            baseline=curve[1],
            unit="MB",
            against="after a tenth of them",
            ratio=curve[-1] / curve[1],
            goal="<= 1.05",
        )
        table = draft_table(paths)
    publish(
        "predict",
        [*figures, growth],
        images=len(paths),
        memory_mb=[round(value, 1) for value in curve],
        draft=table,
    )


def write_images(data_dir: Path, folder: Path, count: int) -> list[Path]:
    """Write `count` images of the data as JPEG files of 600 x 450; few of them are repeated."""
    dataset = open_dataset(data_dir)
    files = [dataset.files[name] for name in sorted(dataset.files)][:count]
    written = []
    with ImageReader() as reader:
        for i, file in enumerate(files):
            image = Image.open(io.BytesIO(reader.read(file))).convert("RGB")
            written.append(folder / f"{i:05d}.jpg")
            image.resize((600, 450), BICUBIC).save(written[-1], quality=90)
    while len(written) < count:  # of demo data there are fewer
        written.append(folder / f"{len(written):05d}.jpg")
        written[-1].write_bytes(written[len(written) - 1 - len(files)].read_bytes())
    return written


def one_image(paths: Sequence[Path]) -> Figure:
    """Time `Predictor.predict` and its unavoidable parts in turn."""
    predictor = Predictor(model_files("EfficientNetV2-S")[0])
    session = predictor._session  # the same one: what differs is only what surrounds it

    def bare(path: Path) -> None:
        pixels = np.asarray(Image.open(path).resize((SIZE, SIZE), BICUBIC))
        session.run(["logits"], {"image": pixels[None]})

    sides: tuple[Callable[[Path], object], ...] = (predictor.predict, bare)
    times: list[list[float]] = [[], []]
    for path in [*paths[:3], *paths]:  # the first three warm up
        for side, values in zip(sides, times, strict=True):
            start = time.perf_counter()
            side(path)
            values.append((time.perf_counter() - start) * 1000)
    ours, baseline = (float(np.median(values[3:])) for values in times)
    return Figure(
        what="one image, EfficientNetV2-S, p50",
        ours=ours,
        baseline=baseline,
        unit="ms",
        against="Pillow + session.run",
        ratio=ours / baseline,
        goal="<= 1.10",
    )


def a_folder(
    name: str, paths: Sequence[Path], rounds: int, goal: str, curve: list[float]
) -> list[Figure]:
    """Time a folder both ways, in turn; the first round of ours writes the memory's `curve`.

    The limit is what all cores could do if none ever waited, and if neither memory nor caches
    were shared: their number over the seconds that one thread needs for one image.
    """
    model, _ = model_files(name)
    workers, num_threads = share_cores(len(paths))
    predictor = Predictor(model, num_threads=num_threads)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def one_after_the_other() -> None:
        for path in paths:
            image = Image.open(path).convert("RGB").resize((SIZE, SIZE), BICUBIC)
            session.run(None, {"image": np.asarray(image)[None]})

    def ours() -> None:
        memory = []
        for i, _ in enumerate(render(predict_files(predictor, paths, workers=workers), "json", ())):
            if i % max(1, len(paths) // 10) == 0 or i == len(paths) - 1:
                memory.append(resident_mb())
        if not curve:
            curve.extend(memory)

    def alone() -> None:
        for path in paths[:100]:
            predictor.logits(predictor.pixels(path)[None])

    sides = ((ours, len(paths)), (one_after_the_other, len(paths)), (alone, len(paths[:100])))
    speeds: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for (side, count), values in zip(sides, speeds, strict=True):
            start = time.perf_counter()
            side()
            values.append(count / (time.perf_counter() - start))
    speed, baseline, one_core = (float(np.median(values)) for values in speeds)
    what, limit = f"{len(paths):,} images, {name}", one_core * workers * num_threads
    common = {"what": what, "ours": speed, "unit": "images/s"}
    return [
        Figure(
            **common,
            baseline=baseline,
            against="one after the other",
            ratio=speed / baseline,
            goal=goal,
        ),
        Figure(
            **common,
            baseline=limit,
            against="every core busy, all the time",
            ratio=speed / limit,
            goal="",
        ),
    ]


def resident_mb() -> float:
    """Return the memory of this process, in MB, where the system tells it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 1.0
    return pages * 4096 / 1e6


def draft_table(paths: Sequence[Path]) -> list[dict[str, object]]:
    """Compare a decoding at a half, a quarter, an eighth with the whole one, on 12 megapixels."""
    predictor = Predictor(model_files("EfficientNetV2-S")[0])
    pictures = {f"photograph {i}": Image.open(path).resize(LARGE, BICUBIC) for i, path in
                enumerate(paths[:3])}  # fmt: skip
    pictures |= sharp_pictures()
    rows: list[dict[str, object]] = []
    for name, picture in pictures.items():
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        start = time.perf_counter()
        whole = Image.open(data)
        whole.load()
        whole_ms = (time.perf_counter() - start) * 1000
        for divisor in (2, 4, 8):
            start = time.perf_counter()
            small = Image.open(data)
            small.draft("RGB", (LARGE[0] // divisor, LARGE[1] // divisor))
            small.load()
            ratio = whole_ms / ((time.perf_counter() - start) * 1000)
            for filter_name in RESIZE_FILTERS:
                spec = ModelSpec(
                    taxonomy=HAM10000, input_size=(SIZE, SIZE), resize_filter=filter_name
                )
                both = np.stack([to_pixels(small, spec), to_pixels(whole, spec)])
                levels = np.abs(both[0].astype(int) - both[1]).max()
                first, second = predictor.predict_batch(list(both))
                probs = [list(answer.probabilities.values()) for answer in (first, second)]
                difference = float(np.abs(np.subtract(*probs)).max())
                rows.append(
                    {
                        "picture": name,
                        "scale": f"1/{divisor}",
                        "filter": filter_name,
                        "levels": int(levels),
                        "probability": difference,
                        "decoding": ratio,
                    }
                )
    print(
        "\nlargest difference of a JPEG decoded at a fraction, over all pictures of 12 megapixels"
    )
    for divisor in ("1/2", "1/4", "1/8"):
        for filter_name in RESIZE_FILTERS:
            for kind in ("photograph", "sharp"):
                chosen = [
                    row for row in rows
                    if (row["scale"], row["filter"]) == (divisor, filter_name)
                    and str(row["picture"]).startswith(kind)
                ]  # fmt: skip
                levels = max(int(str(row["levels"])) for row in chosen)
                probs = max(float(str(row["probability"])) for row in chosen)
                speed = np.median([float(str(row["decoding"])) for row in chosen])
                print(
                    f"{divisor}  {filter_name:<8}  {kind:<10}  {levels:>3} levels  "
                    f"{probs:.1e} in a probability  decoded {speed:.1f} times as fast"
                )
    return rows


def sharp_pictures() -> dict[str, Image.Image]:
    """Draw what a decoder's blocks of 8 x 8 pixels find hardest: edges, lines, noise."""
    rng = np.random.default_rng(0)
    width, height = LARGE
    rows, columns = np.ogrid[:height, :width]
    shades = {
        "sharp board": (rows // 3 + columns // 3) % 2 * 255,
        "sharp rays": (np.arctan2(rows - height / 2, columns - width / 2) * 60 % 2 > 1) * 255,
        "sharp noise": rng.integers(0, 256, (height, width)),
    }
    return {name: Image.fromarray(shade.astype(np.uint8)).convert("RGB") for name, shade in
            shades.items()}  # fmt: skip


if __name__ == "__main__":
    main()

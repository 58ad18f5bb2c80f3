"""Preparing: images into a pixel store, by one process and by two, and what cannot be left out.

    python -m benchmarks.prepare [--data-dir demo] [--images 2000]

The bare loop is two processes that read their JPEGs, decode and resize them with Pillow, and keep
nothing.  It is also run with a memory-mapped file that gets the pixels, which is nearer to what has
to be done.  Larger images are enlarged from the data.  Each side is measured in turn; the best of
the rounds counts, since a neighbour only ever takes time away.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from benchmarks.report import Figure, publish
from dermalyze.config.schema import DataConfig
from dermalyze.data.location import find_data
from dermalyze.data.pixel_store import builder
from dermalyze.data.pixel_store.builder import build_pixels
from dermalyze.data.pixel_store.decoder import RowDecoder
from dermalyze.data.pixel_store.store import Preprocessing
from dermalyze.data.preparation import prepare
from dermalyze.data.readers.dataset import ImageFile, ImageReader, open_dataset
from serving.preprocess import decode_image

SIDE = 224  # pixels
SQUASH = Preprocessing(image_size=SIDE, resize_mode="squash", resize_filter="bicubic")
BARE = f"""
import io, json, sys, zipfile
import numpy as np
from PIL import Image
jobs, row, pixels, archives = json.load(sys.stdin), int(sys.argv[1]), None, {{}}
if sys.argv[2]:
    pixels = np.lib.format.open_memmap(sys.argv[2], mode="r+")
while row < len(jobs):
    path, member = jobs[row]
    if not member:
        with open(path, "rb") as file:
            data = file.read()
    else:
        if path not in archives:
            archives[path] = zipfile.ZipFile(path)
        data = archives[path].read(member)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    array = np.asarray(image.resize(({SIDE}, {SIDE}), Image.Resampling.BICUBIC))
    if pixels is not None:
        pixels[row] = array
    row += 2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    parser.add_argument("--images", type=int, default=0, help="as they are; 0: all")
    parser.add_argument("--large", type=int, default=1500, help="images of 600 x 450")
    parser.add_argument("--huge", type=int, default=24, help="images of 6000 x 4000")
    parser.add_argument("--rounds", type=int, default=3, help="of each side")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)  # how it calls itself
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(peak_memory(args.memory)))
        return
    data_dir, _ = find_data(args.data_dir, make=True)
    files = dict(sorted(open_dataset(data_dir).files.items()))
    files = dict(list(files.items())[: args.images or None])
    figures: list[Figure] = []
    context: dict[str, object] = {"images": len(files), "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures += compare("as they are", files, folder, args.rounds, context)
        figures.append(one_added(files, folder))
        figures += second_call(data_dir, folder, context)
        large = enlarge(files, folder / "large", (600, 450), args.large)
        figures += compare("600 x 450", large, folder, args.rounds, context)
        huge = enlarge(files, folder / "huge", (6000, 4000), args.huge)
        figures += compare("6000 x 4000", huge, folder, args.rounds, context)
        figures += memory(folder, args.huge)
    publish("prepare", figures, **context)


def compare(
    what: str,
    files: Mapping[str, ImageFile],
    folder: Path,
    rounds: int,
    context: dict[str, object],
) -> list[Figure]:
    """Time both sides in turn."""
    sides: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(files, ""),
        "two": lambda: ours(files, folder, 2),
        "one": lambda: ours(files, folder, 1),
        "bare into a file": lambda: bare(files, str(empty_file(folder, len(files)))),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, run in sides.items():
            if number < 2 or side in ("bare", "two"):
                seconds[side].append(run())
    context[f"seconds, {what}"] = seconds
    rate = {side: len(files) / min(values) for side, values in seconds.items()}
    limits = [
        ("one", "one process", ">= 1.8"),
        ("bare", "bare decode + resize, two processes", ">= 0.90"),
        ("bare into a file", "the same into a memory map", ""),
    ]
    return [
        Figure(
            what=f"{len(files):,} images {what}, two workers",
            ours=rate["two"],
            baseline=rate[side],
            unit="images/s",
            against=against,
            ratio=rate["two"] / rate[side],
            goal=goal,
        )
        for side, against, goal in limits
    ]


def ours(files: Mapping[str, ImageFile], folder: Path, workers: int) -> float:
    """Return the seconds that a store takes."""
    output = folder / "stores"
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    build_pixels(files, output, SQUASH, workers=workers)
    return time.perf_counter() - started


def bare(files: Mapping[str, ImageFile], pixels: str) -> float:
    """Return the seconds that two processes take from their start to their end."""
    jobs = json.dumps([(str(file.path), file.member) for file in files.values()]).encode()
    started = time.perf_counter()
    processes = [
        subprocess.Popen([sys.executable, "-c", BARE, str(k), pixels], stdin=subprocess.PIPE)
        for k in (0, 1)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(jobs)
        process.stdin.close()
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], codes
    return time.perf_counter() - started


def empty_file(folder: Path, num_images: int) -> Path:
    path = folder / "bare.npy"
    shutil.rmtree(folder / "stores", ignore_errors=True)
    code = (
        "import sys, numpy as np; np.lib.format.open_memmap(sys.argv[1], mode='w+', "
        f"dtype=np.uint8, shape=({num_images}, {SIDE}, {SIDE}, 3))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    return path


def one_added(files: Mapping[str, ImageFile], folder: Path) -> Figure:
    """Build a store of all images but one, then of all; count what is decoded."""
    image_ids = list(files)
    left_out = image_ids[len(image_ids) // 2]
    fewer = {image_id: file for image_id, file in files.items() if image_id != left_out}
    whole = ours(fewer, folder, 2)
    decoded = []
    decode = RowDecoder.decode

    def counted(self: RowDecoder, row: int, image_id: str, read: Callable[[], bytes]) -> bytes:
        decoded.append(image_id)
        return decode(self, row, image_id, read)

    RowDecoder.decode = counted  # type: ignore[method-assign]
    started = time.perf_counter()
    build_pixels(files, folder / "stores", SQUASH, workers=2)
    seconds = time.perf_counter() - started
    RowDecoder.decode = decode  # type: ignore[method-assign]
    assert decoded == [left_out], decoded
    return Figure(
        what="one image added, only it is decoded",
        ours=seconds,
        baseline=whole,
        unit="s",
        against="a store from scratch",
        ratio=seconds / whole,
        goal="",
    )


def second_call(data_dir: Path, folder: Path, context: dict[str, object]) -> list[Figure]:
    """Time the function and the command where nothing has changed."""
    output = folder / "prepared"
    settings = DataConfig(prepared=str(output), allow_problems=True)
    started = time.perf_counter()
    prepare(data_dir, settings, workers=2)
    context["seconds of the first call, with audit and near duplicates"] = (
        time.perf_counter() - started
    )
    seconds: dict[str, list[float]] = {"function": [], "command": []}
    command = [sys.executable, "-c", "from dermalyze.cli.main import main; main()", "prepare-data"]
    command += ["--data-dir", str(data_dir), "--output", str(output), "--allow-problems"]
    command += ["--resize-filter", "bicubic"]
    for _ in range(3):
        started = time.perf_counter()
        prepare(data_dir, settings, workers=2)
        seconds["function"].append(time.perf_counter() - started)
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds["command"].append(time.perf_counter() - started)
    shutil.rmtree(output)
    return [
        Figure(
            what=f"second call, the {side}",
            ours=min(values),
            baseline=1.0,
            unit="s",
            against="one second",
            ratio=min(values),
            goal="<= 1.0",
        )
        for side, values in seconds.items()
    ]


def enlarge(
    files: Mapping[str, ImageFile], folder: Path, size: tuple[int, int], number: int
) -> dict[str, ImageFile]:
    """Write enlarged copies; of the hugest six, over and over."""
    folder.mkdir()
    different = number if size[0] < 1000 else 6
    enlarged: dict[str, ImageFile] = {}
    with ImageReader() as reader:
        for position, file in enumerate(list(files.values())[:different]):
            image = decode_image(reader.read(file)).resize(size, Image.Resampling.BICUBIC)
            for copy in range(position, number, different):
                path = folder / f"I{copy:05d}.jpg"
                if copy == position:
                    image.save(path, quality=90)
                else:
                    shutil.copy(folder / f"I{position:05d}.jpg", path)
                enlarged[path.stem] = listed(path)
    return dict(sorted(enlarged.items()))


def listed(path: Path) -> ImageFile:
    status = path.stat()
    return ImageFile(path, "", status.st_size, status.st_mtime_ns)


def memory(folder: Path, num_images: int) -> list[Figure]:
    """Compare the peak of many huge images with that of two a worker, in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--memory"]
    few = folder / "few"
    few.mkdir()
    for path in sorted((folder / "huge").iterdir())[:4]:
        shutil.copy(path, few)
    peaks = [
        json.loads(subprocess.run([*command, str(f)], check=True, capture_output=True).stdout)
        for f in (folder / "huge", few)
    ]
    return [
        Figure(
            what=f"peak memory of {who}, {num_images} images of 6000 x 4000",
            ours=peaks[0][who],
            baseline=peaks[1][who],
            unit="MB",
            against="of 4 such images",
            ratio=peaks[0][who] / max(peaks[1][who], 1),
            goal="<= 1.25",
        )
        for who in ("a worker", "the caller")
    ]


def peak_memory(images: Path) -> dict[str, float]:
    """Build a store of a folder by two workers; return the largest resident sets, in MB."""
    peaks = {"a worker": 0.0, "the caller": 0.0}
    builder._SECONDS_WORTH_A_PROCESS = 1e-6  # four images are worth them as well
    ended = threading.Event()

    def watch() -> None:
        own = Path("/proc/self/task")
        while not ended.wait(0.02):
            children = " ".join((t / "children").read_text() for t in list(own.iterdir())).split()
            for who, pids in (("a worker", children), ("the caller", ["self"])):
                for pid in pids:
                    try:
                        status = (Path("/proc") / pid / "status").read_text()
                    except OSError:  # it has just ended
                        continue
                    for line in status.splitlines():
                        if line.startswith("VmHWM"):  # since it runs the code of a worker
                            peaks[who] = max(peaks[who], int(line.split()[1]) / 1024)

    thread = threading.Thread(target=watch)
    thread.start()
    with tempfile.TemporaryDirectory() as output:
        files = {path.stem: listed(path) for path in images.iterdir()}
        build_pixels(files, Path(output), SQUASH, workers=2)
    ended.set()
    thread.join()
    return peaks


if __name__ == "__main__":
    main()

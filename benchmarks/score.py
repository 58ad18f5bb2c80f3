"""`dermalyze score` with Spark and `dermalyze predict` on the same folder, side by side.

    python -m benchmarks.score [--data-dir demo] [--images 1000] [--cores 2]

Both are timed as a user starts them, in turn, on JPEGs of 600 x 450; `score` also prints its speed
without the start of Spark.  The processor's seconds of all processes, Java included, tell the two
apart also where other programs take turns with them.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.predict import write_images
from benchmarks.report import Figure, publish
from dermalyze.data.location import find_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="demo", help="a folder, demo or auto")
    parser.add_argument("--images", type=int, default=1000, help="in the folder")
    parser.add_argument("--cores", type=int, default=2, help="for either side")
    parser.add_argument("--rounds", type=int, default=3, help="of each side")
    args = parser.parse_args()
    data_dir, _ = find_data(args.data_dir, make=True)
    sides: tuple[list[list[float]], list[list[float]]] = ([], [])
    with tempfile.TemporaryDirectory() as name:
        images = Path(name, "photographs")
        images.mkdir()
        write_images(data_dir, images, args.images)
        predict = ["predict", images, "--threads", args.cores, "--format", "csv"]
        for number in range(args.rounds):
            score = ["score", "--input", images, "--output", Path(name, f"out-{number}")]
            score += ["--master", f"local[{args.cores}]", "--partition-images", 50]
            for command, found in zip((score, predict), sides, strict=True):
                found.append(timed(command))
                print(f"{command[0]}: {found[-1]}")
    (wall, cpu, inside), (predict_wall, predict_cpu, _) = (
        np.median(np.array(side), axis=0).tolist() for side in sides
    )
    what = f"score, {args.images:,} images, {args.cores} cores"
    figures = [
        Figure(
            what=f"{what}: {how}",
            ours=ours,
            baseline=baseline,
            unit=unit,
            against="predict",
            ratio=ours / baseline,
            goal="",
        )
        for how, ours, baseline, unit in (
            ("with the start", args.images / wall, args.images / predict_wall, "images/s"),
            ("without that of Spark", inside, args.images / predict_wall, "images/s"),
            ("processor", cpu * 1000 / args.images, predict_cpu * 1000 / args.images, "ms/image"),
        )
    ]
    publish("score", figures, images=args.images, rounds=args.rounds, sides=sides)


def timed(words: list[object]) -> list[float]:
    """Run a command; return seconds, seconds of the processor, and images/s as it says."""
    command = [sys.executable, "-m", "dermalyze", *map(str, words)]
    start, used = time.perf_counter(), {}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def watch() -> None:
        while process.poll() is None:
            used.update(processor_seconds(process.pid))
            time.sleep(0.2)

    watching = threading.Thread(target=watch)
    watching.start()
    output = process.stdout.read().decode() if process.stdout else ""
    assert process.wait() == 0, output
    wall = time.perf_counter() - start
    watching.join()
    said = re.search(r"([\d.,]+) images/s", output)
    return [wall, sum(used.values()), float(said[1].replace(",", "")) if said else 0.0]


def processor_seconds(session: int) -> dict[int, float]:
    """Return the seconds that each process of a session has used up to now."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            found[int(place.name)] = (int(fields[11]) + int(fields[12])) / 100
    return found


if __name__ == "__main__":
    main()

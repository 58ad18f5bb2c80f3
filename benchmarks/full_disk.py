"""Each command that writes, on disks that get full: what is said, and what is left.

`python -m benchmarks.full_disk [--steps 8] [COMMAND ...]` trains a small run, then runs each
command on a file system with too little room, in equal steps up to what it needs.  As root that is
a tmpfs; else files above a size cannot be written, which fails with an error in the same places.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from benchmarks.forked import Commands, Done, commands
from serving.predictor import Predictor

PAGE = 4096  # bytes; a tmpfs has whole pages
SETTINGS = (
    "model.name=test_efficientnet",
    "model.pretrained=false",
    "data.image_size=32",
    "training.epochs=1",
    "training.batch_size=16",
    "training.device=cpu",
    "evaluation.replicates=100",
)
TRAIN = ("train", "--data-dir", "./demo", *(word for s in SETTINGS for word in ("--set", s)))
RUN, OTHER, LEFT = "RUN", "OTHER", "LEFT"  # runs; the last was left by its store at the end
WORK, TEMPORARY = ".dermalyze/runs", "temporary"
COMMANDS = {
    "demo-data zips": ("demo-data", "new/demo", "--images", "42"),
    "demo-data folders": ("demo-data", "new/demo", "--images", "42", "--layout", "folders"),
    "prepare-data": ("prepare-data", "--data-dir", "./demo", "--output", "new"),
    "train": TRAIN,
    "train --folds": (*TRAIN, "--folds", "2"),
    "evaluate": ("evaluate", "--run-id", RUN, "--output", "new"),
    "report": ("report", "--run-id", RUN, "--output", "new"),
    "evaluate again": ("evaluate", "--run-id", RUN, "--output", "old"),
    "report again": ("report", "--run-id", RUN, "--output", "old"),
    "compare again": ("compare", RUN, OTHER, "--output", "old"),
    "plot-training": ("plot-training", "--run-id", RUN, "--output", "new.png"),
    "export-onnx float32": ("export-onnx", "--run-id", RUN, "--output", "new.onnx"),
    "export-onnx float16": (
        *("export-onnx", "--run-id", RUN, "--output", "new.onnx", "--precision", "float16"),
    ),
    "export-onnx int8": (
        *("export-onnx", "--run-id", RUN, "--output", "new.onnx", "--precision", "int8"),
    ),
    "export-web": ("export-web", "--model", "model.onnx", "--output", "new"),
    "predict --explain": ("predict", "images", "--model", "model.onnx", "--explain", "new"),
    "leakage": ("leakage", "--run-id", RUN),
    "compare": ("compare", RUN, OTHER, "--output", "new"),
    "promote": ("promote", "2", "--anyway"),
    "sync": ("sync", LEFT),
}


@dataclass(frozen=True)
class Made:
    """A copy of the disk with demo data, a trained run, its model and some images."""

    folder: Path
    runs: Mapping[str, str]  # RUN, OTHER or LEFT -> its id

    def words(self, words: Sequence[str]) -> list[str]:
        """Return a command with the ids of the runs."""
        return [self.runs.get(word, word) for word in words]


@dataclass(frozen=True)
class Disk:
    """A place with a bound: a tmpfs, or any folder and a bound for each file."""

    folder: Path
    is_mounted: bool
    temporary: Path | None = None  # for temporary files; None: there as well

    def fill(self, made: Made) -> None:
        """Put a fresh copy there, with room around it."""
        self._resize(2**31)
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(made.folder, self.folder, dirs_exist_ok=True)

    def used(self) -> int:
        """Return the bytes that are taken; without a tmpfs those of the largest file."""
        if self.is_mounted:
            status = os.statvfs(self.folder)
            return (status.f_blocks - status.f_bfree) * status.f_frsize
        return max(len(content) for content in contents(self.folder).values())

    def run(self, program: Commands, words: Sequence[object], room: int | None) -> Done:
        """Run a command with that many bytes of room; None: without a bound."""
        temporary = self.temporary or self.folder / TEMPORARY
        temporary.mkdir(exist_ok=True)
        if room is not None and self.is_mounted:
            self._resize(self.used() + room)
        done = program.run(
            words,
            self.folder,
            environment={"TMPDIR": str(temporary)},
            max_file_bytes=-1 if room is None or self.is_mounted else room,
        )
        self._resize(2**31)
        return done

    def _resize(self, size: int) -> None:
        if self.is_mounted:
            options = ["mount", "-o", f"remount,size={size}", str(self.folder)]
            subprocess.run(options, check=True)


@contextlib.contextmanager
def disk() -> Iterator[Disk]:
    """Mount a tmpfs where that is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2g", "none", folder]
        try:
            is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except OSError:
            is_mounted = False
        try:
            yield Disk(Path(folder), is_mounted)
        finally:
            if is_mounted:
                subprocess.run(["umount", folder], check=True)


def make(
    program: Commands, place: Disk, copy: Path, names: Collection[str] = (RUN, OTHER, LEFT)
) -> Made:
    """Train small runs there, since MLflow notes where its files are, and copy all of it."""
    folder, runs = place.folder, {}
    done = place.run(program, ("demo-data", "demo", "--images", "98"), None)
    assert done.status == 0, done.stderr
    for name, lr in ((RUN, "0.0003"), (OTHER, "0.001")):
        if name not in names:
            continue
        done = place.run(program, (*TRAIN, "--lr", lr), None)
        assert done.status == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("run id: ")]
        runs[name] = line.removeprefix("run id: ")
    if LEFT in names:
        with _locked(folder):
            done = place.run(program, (*TRAIN, "--set", "tracking.timeout_seconds=8"), None)
        assert "dermalyze sync" in done.stderr, done.stderr
        runs[LEFT] = next(iter(_begun(folder))).name
    model = next(folder.glob("mlruns/**/model.onnx"))
    shutil.copyfile(model, folder / "model.onnx")
    (folder / "old").mkdir()  # as if of an earlier evaluation
    for path in (*folder.glob("mlruns/**/evaluation/*"), Path("comparison.json"), Path("mine.txt")):
        (folder / "old" / path.name).write_text("old\n")
    (folder / "images").mkdir()
    with zipfile.ZipFile(next((folder / "demo").glob("*_part_1.zip"))) as archive:
        for name in archive.namelist()[:4]:
            archive.extract(name, folder / "images")
    shutil.copytree(folder, copy)
    return Made(copy, runs)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the tracking database once a run has begun, until the block ends."""
    ended = threading.Event()

    def lock() -> None:
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=60)) as database:
            while not _begun(folder) and not ended.wait(0.01):
                pass
            database.execute("begin exclusive")
            ended.wait()

    thread = threading.Thread(target=lock)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _begun(folder: Path) -> list[Path]:
    return [path.parent for path in (folder / WORK).glob("*/outbox.jsonl")]


def needed(program: Commands, place: Disk, made: Made, words: Sequence[str]) -> int:
    """Return the room that a command takes: of all that it writes, or of its largest file."""
    place.fill(made)
    before = place.used()
    done = place.run(program, made.words(words), None)
    assert done.status == 0, done.stderr
    new = set(contents(place.folder)) - set(contents(made.folder))
    sizes = [(place.folder / name).stat().st_size for name in new]
    if place.is_mounted:  # some is removed once all is done
        return max(place.used() - before, sum(sizes))
    return max(sizes)


def faults(
    program: Commands, place: Disk, made: Made, words: Sequence[str], room: int
) -> tuple[Done, list[str]]:
    """Run a command with that many bytes of room; return what it did wrong, in words."""
    place.fill(made)
    before = contents(place.folder)
    done = place.run(program, made.words(words), room)
    after = contents(place.folder)
    found = []
    lines = done.stderr.splitlines()
    if "Traceback" in done.stderr or done.status not in (0, 1):
        found.append(f"status {done.status}: {(lines or ['nothing'])[-1]}")
    elif done.status == 1 and not any(line.startswith("Error: ") for line in lines):
        found.append(f"no sentence: {(lines or ['nothing'])[-1]}")
    for name in sorted(before):
        if after.get(name) != before[name] and not _is_tracked(name):
            found.append(f"{name} is not as it was")
    locks = f"{TEMPORARY}/dermalyze-{os.getuid()}/"  # who works on a run; kept, as `held.py` says
    for name in sorted(set(after) - set(before)):
        if name.startswith(locks):
            continue
        if name.startswith(TEMPORARY) or ".partial" in name:
            found.append(f"{name} is left")
        elif not _is_tracked(name) and not is_whole(place.folder / name):
            found.append(f"{name} is half written")
    return done, found


def resumed(program: Commands, place: Disk, made: Made) -> Done | None:
    """Go on with the run that a fault has stopped, with room again; None: it had not begun."""
    begun = [path for path in (place.folder / WORK).glob("*") if path.is_dir()]
    new = [path.name for path in begun if path.name not in made.runs.values()]
    if not new:
        return None
    return place.run(program, ("train", "--resume", new[0], "--data-dir", "./demo"), None)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def is_whole(path: Path) -> bool:
    """Say whether a file can be read to its end, by its kind."""
    data = path.read_bytes()
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(data)
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        elif path.suffix == ".onnx":
            Predictor(path)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix in (".csv", ".md", ".html", ".yaml"):
            return data.endswith(b"\n")
    except Exception:
        return False
    return True


def _is_tracked(name: str) -> bool:
    """Whether MLflow writes a file: its database, and its copies of a run's files."""
    return name.startswith(("mlflow.db", "mlruns/"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--steps", type=int, default=8, help="sizes for each command")
    arguments = parser.parse_args()
    with commands() as program, disk() as place, tempfile.TemporaryDirectory() as folder:
        made = make(program, place, Path(folder) / "made")
        print("tmpfs" if place.is_mounted else "bound for each file")
        for name in arguments.commands or COMMANDS:
            words = COMMANDS[name]
            need = needed(program, place, made, words)
            refused, wrong, finished = 0, [], 0
            said: set[str] = set()
            for step in range(arguments.steps):
                room = need * step // arguments.steps // PAGE * PAGE
                done, found = faults(program, place, made, words, room)
                refused += done.status != 0
                said |= {line for line in done.stderr.splitlines() if line.startswith("Error: ")}
                wrong += [f"{room:,} bytes: {text}" for text in found]
                if words[0] == "train" and (again := resumed(program, place, made)):
                    finished += again.status == 0
                    if again.status != 0:
                        wrong.append(f"{room:,} bytes, resumed: {again.stderr.splitlines()[-1]}")
            resumes = f", {finished} resumed" if words[0] == "train" else ""
            print(
                f"{name:<22} {need:>12,} bytes  {refused} of {arguments.steps} refused{resumes}, "
                f"{len(wrong)} faults",
                *(f"    {text}" for text in (*wrong, *sorted(said))),
                sep="\n",
                flush=True,
            )


if __name__ == "__main__":
    main()

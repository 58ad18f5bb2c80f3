"""SIGKILL at random moments of every phase, then resume: does it end as if nothing had happened?

    python -m benchmarks.kill_campaign [--moments 20] [--phases train folds] [--seed 0]

Each moment is uniform over the time that its phase took without interruption.  The real command is
started as a process group, killed, then resumed or repeated until it ends well, and compared with
the uninterrupted one: weights and predictions in all bits, the history, every epoch's metrics once,
one registered version, one logged model, nothing left half written.  Exits with 1 if not.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dermalyze.data.demo.dataset import make_demo_data

ROOT = Path(__file__).parents[1]
CONFIG = """
model: {name: test_efficientnet, pretrained: false}
data: {image_size: 32}
training: {epochs: 3, batch_size: 16, lr: 3.0e-3, fast_mode: false, device: cpu}
evaluation: {replicates: 100}
"""
EPOCHS = 3
TIMED = ("epoch_seconds", "images_per_second")
FILES = ("predictions.csv", "val_predictions.csv")
SECONDS = 600.0  # no command takes longer, on however busy a machine
TRIES = 3  # commands after a kill; one should do
RUN = "select run_uuid from runs where lifecycle_stage = 'active' and run_uuid not in "
STEPS = "select step from metrics where key = 'train/loss' and run_uuid = ? order by step"
PARENTS = RUN + "(select run_uuid from tags where key = 'mlflow.parentRunId')"

Outcome = dict[str, Any]
Command = list[str | Path]


@dataclass(frozen=True)
class Phase:
    """A part of a command, from one sign to another, perhaps in two pieces."""

    pieces: tuple[tuple[str, str], ...]
    command: Callable[[Path], Command]
    outcome: Callable[[Path], Outcome]
    begin: Callable[[Path], None]  # puts into a new folder what the command finds there


def signs(place: Path, text: str) -> dict[str, bool]:
    """Say what a training has reached, by what it has printed and written."""
    work = next(iter((place / ".dermalyze" / "runs").glob("*/")), place / "none")
    return {
        "start": True,
        "trained": f"epoch {EPOCHS}/{EPOCHS}" in text,
        "resumed": "resumed run" in text,
        "scored": (work / "training_curves.png").exists(),
        "logged": "evaluating: " in text,
        "judged": (work / "evaluation" / "model_card.md").exists(),
    }


def start(place: Path, command: Command) -> "subprocess.Popen[bytes]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    env |= {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=place, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def times_of(place: Path, command: Command) -> dict[str, float]:
    """Run a command to its end; return the seconds after which it gave each sign."""
    began, seen = time.monotonic(), {}
    process = start(place, command)
    while process.poll() is None and time.monotonic() - began < SECONDS:
        for name, reached in signs(place, (place / "log").read_text()).items():
            if reached:
                seen.setdefault(name, time.monotonic() - began)
        time.sleep(0.005)
    if process.poll() != 0:
        raise SystemExit(f"without any kill: {(place / 'log').read_text()}")
    return seen | {"end": time.monotonic() - began}


def kill_after(place: Path, command: Command, sign: str, seconds: float) -> bool:
    """Kill a command's process group some time after a sign; False: it had ended before."""
    process = start(place, command)
    began = time.monotonic()
    while process.poll() is None and not signs(place, (place / "log").read_text())[sign]:
        time.sleep(0.002)
        if time.monotonic() - began > SECONDS:
            raise SystemExit(f"no sign of {sign!r} in {SECONDS:.0f} s, see {place / 'log'}")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    ended = process.poll() is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return not ended


def finish(place: Path, command: Command) -> str:
    """Resume or repeat a killed command until it ends well; return what was wrong about that."""
    for number in range(TRIES):
        run_ids = active_runs(place) if "prepare-data" not in command else []
        words = [*dermalyze("train"), "--resume", run_ids[-1]] if run_ids else command
        process = start(place, words)
        process.wait(SECONDS)
        text = (place / "log").read_text()
        if number == 0 and "Traceback" in text and delete_half_made(place):
            return finish(place, command)  # MLflow was killed while it created its database
        if "Traceback" in text:
            return f"traceback: {text.strip().splitlines()[-1]}"
        if process.returncode == 0:
            return "" if number == 0 else f"took {number + 1} commands"
        if run_ids and "is already finished" in text:
            return ""  # the kill came when all was done
    return f"not resumed: {text.strip().splitlines()[-1]}"


def delete_half_made(place: Path) -> bool:
    """Do what our commands say of a database that MLflow left half made; False: they do not."""
    process = start(place, dermalyze("sync", "0" * 32))
    process.wait(SECONDS)
    if "mlflow.db is incomplete" not in (place / "log").read_text():
        return False
    (place / "mlflow.db").unlink()
    (place / "mlflow.db-journal").unlink(missing_ok=True)
    return True


def ask(place: Path, question: str, *values: str) -> list[Any]:
    """Ask the store, without MLflow, which would keep the database of an earlier moment open."""
    with contextlib.closing(sqlite3.connect(f"file:{place}/mlflow.db?mode=rw", uri=True)) as store:
        return store.execute(question, values).fetchall()


def active_runs(place: Path) -> list[str]:
    """Return the ids of the runs that stand for themselves, the newest last."""
    try:
        return [row[0] for row in ask(place, PARENTS + " order by start_time")]
    except sqlite3.Error:  # there is no store yet
        return []


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def weights_digest(path: Path) -> str:
    weights = torch.load(path, weights_only=True)["weights"]
    return digest(b"".join(v.numpy().tobytes() for _, v in sorted(weights.items())))


def outcome_of_runs(place: Path) -> Outcome:
    """Return all that must be the same however often the command was killed."""
    outcome: Outcome = {
        "versions": len(ask(place, "select 1 from model_versions")),
        "logged models": len(
            ask(place, "select 1 from logged_models where lifecycle_stage = 'active'")
        ),
        "partial files": sum(1 for _ in place.rglob("*.partial*")),
        "work folders": sum(1 for _ in (place / ".dermalyze").glob("runs/*")),
    }
    for run_id, status, uri in ask(
        place, "select run_uuid, status, artifact_uri from runs where lifecycle_stage = 'active'"
    ):
        tags = dict(ask(place, "select key, value from tags where run_uuid = ?", run_id))
        name = f"fold {tags['dermalyze.fold']}" if "dermalyze.fold" in tags else "run"
        name = name if f"{name}: status" not in outcome else f"another run {run_id}"
        folder = Path(uri.removeprefix("file://"))
        outcome[f"{name}: status"] = status
        for file in FILES:
            if (path := folder / "evaluation" / file).exists():
                outcome[f"{name}: {file}"] = digest(path.read_bytes())
        for file in ("checkpoint_best.pt", "checkpoint_latest.pt"):
            if (folder / file).exists():
                outcome[f"{name}: {file}"] = weights_digest(folder / file)
        if (path := folder / "training_history.json").exists():
            entries = json.loads(path.read_text())
            outcome[f"{name}: history"] = [
                {k: v for k, v in entry.items() if k not in TIMED} for entry in entries
            ]
            outcome[f"{name}: epochs logged"] = [step for (step,) in ask(place, STEPS, run_id)]
    return outcome


def outcome_of_prepare(place: Path) -> Outcome:
    folder = place / "data" / "prepared"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in files}


def dermalyze(*words: str | Path) -> Command:
    return [sys.executable, "-m", "dermalyze", *words]


def phases_of(folder: Path, wanted: Sequence[str]) -> dict[str, Phase]:
    """Draw the images and return the phases; those of a run's end begin with all epochs done."""
    data, trained = make_demo_data(folder / "demo", num_images=140), folder / "place"
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    train = dermalyze("train", "--data-dir", data, "--config", config)
    project: Command = ["mlflow", "run", ROOT, "--env-manager", "local", "-P", f"data_dir={data}"]
    project += ["-P", f"config={config}"]
    prepare = dermalyze("prepare-data", "--data-dir", "data", "--image-size", "64", "--workers=1")
    if {"evaluate", "export", "register"} & set(wanted):
        trained.mkdir()
        kill_after(trained, train, "trained", 0.0)
        trained.rename(folder / "trained")

    def resume(place: Path) -> Command:
        return dermalyze("train", "--resume", active_runs(place)[-1])

    def ending(*pieces: tuple[str, str]) -> Phase:
        return Phase(pieces, resume, outcome_of_runs, lambda place: copy(folder / "trained", place))

    def whole(command: Command, *pieces: tuple[str, str]) -> Phase:
        return Phase(pieces, lambda _: command, outcome_of_runs, Path.mkdir)

    return {
        "train": whole(train, ("start", "trained")),
        "evaluate": ending(("resumed", "scored"), ("logged", "judged")),
        "export": ending(("scored", "logged")),
        "register": ending(("judged", "end")),
        "folds": whole([*train, "--folds", "2"], ("start", "end")),
        "mlflow-run": whole(project, ("start", "end")),
        "prepare": Phase(
            (("start", "end"),),
            lambda _: prepare,
            outcome_of_prepare,
            lambda place: copy(data, place / "data"),
        ),
    }


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("prepared"))


def campaign(name: str, phase: Phase, folder: Path, moments: int, seed: int) -> list[str]:
    """Kill at each moment; return a line for each one after which something differs."""
    place = folder / "place"  # always the same: a store holds absolute paths
    phase.begin(place)
    seen = times_of(place, phase.command(place))
    expected = phase.outcome(place)
    shutil.rmtree(place)
    lengths = [seen[end] - seen[begin] for begin, end in phase.pieces]
    draws, failures = random.Random(f"{seed} {name}"), []
    for number in range(moments):
        moment = draws.uniform(0, sum(lengths))
        piece = 0 if moment < lengths[0] else 1
        seconds = moment - sum(lengths[:piece])
        sign = phase.pieces[piece][0]
        phase.begin(place)
        command = phase.command(place)
        while not kill_after(place, command, sign, seconds):  # faster than the first time
            shutil.rmtree(place)
            phase.begin(place)
            seconds *= 0.7
        wrong = finish(place, command)
        found = phase.outcome(place) if not wrong.startswith(("trace", "not")) else expected
        keys = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        wrong = "; ".join([wrong] * bool(wrong) + [f"{k} is {found.get(k)}" for k in keys])
        said = f"{name} {number + 1}: {seconds:.2f} s after {sign}"
        print(f"{said}: {wrong or 'identical'}", flush=True)
        if wrong:
            failures.append(f"{said}: {wrong}")
            kept = Path(f"killed-{name}-{number + 1}")
            shutil.copytree(place, folder.parent / kept, dirs_exist_ok=True)
        shutil.rmtree(place)
    identical = moments - len(failures)
    print(f"{name:<11}{sum(lengths):>8.1f} s{moments:>5} kills{identical:>5} identical", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("train", "evaluate", "export", "register", "folds", "mlflow-run", "prepare")
    parser.add_argument("--moments", type=int, default=20, help="In each phase.")
    parser.add_argument("--phases", nargs="+", choices=names, default=names)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    failures = []
    with tempfile.TemporaryDirectory(prefix="kill-campaign-") as folder:
        phases = phases_of(Path(folder), arguments.phases)
        for name in arguments.phases:
            failures += campaign(
                name, phases[name], Path(folder), arguments.moments, arguments.seed
            )
    print("\n".join(failures) or "all identical")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""`dermalyze doctor`: what works here, what is missing, and what to type."""

import json
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from serving.errors import DermalyzeError

HUB = "https://huggingface.co"
_SECONDS = 5.0  # for the tracking store and the hub
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "firefox", "safari")
_FREE_GB = 2.0  # a training on all of HAM10000 at 224 px writes about as much
_INSTALL = "pip install 'dermalyze[train]' (in a clone: make install)"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was found of one thing."""

    name: str
    works: bool
    found: str
    hint: str = ""  # what to do; empty: nothing
    is_needed: bool = False  # without it no command works


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def doctor(as_json: bool) -> None:
    """Say what works here and what is missing.

    Asks the tracking store and the hub of pretrained weights whether they answer.  Exit status 1:
    something is missing without which no command works.
    """
    checks = []
    for look in (_python, _runtime, _reference, _training, _device, _disk, _store, _hub, _tools):
        for check in look():
            checks.append(check)
            if not as_json:
                mark = "ok" if check.works else "no" if check.is_needed else "--"
                hint = f"; {check.hint}" if check.hint else ""
                click.echo(f"{mark}  {check.name:<16}  {check.found}{hint}")
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=1))
    if any(check.is_needed and not check.works for check in checks):
        raise SystemExit(1)


def _python() -> Iterator[Check]:
    works = sys.version_info >= (3, 11)
    hint = "" if works else "install Python 3.11 or newer"
    found = f"{platform.python_version()}, {platform.system()}, {platform.machine()}"
    yield Check(name="Python", works=works, found=found, hint=hint, is_needed=True)


def _packages(names: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return the versions of packages in words, and those that are missing."""
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return ", ".join(found), missing


def _runtime() -> Iterator[Check]:
    found, missing = _packages(("dermalyze", "onnxruntime", "fastapi"))
    yield Check(
        name="prediction",
        works=not missing,
        found=f"without {', '.join(missing)}" if missing else found,
        hint="pip install dermalyze" if missing else "",
        is_needed=True,
    )


def _reference() -> Iterator[Check]:
    from serving.reference import in_words

    def look() -> str:
        from serving.predictor import Predictor

        predictor = Predictor()
        return in_words("", predictor.spec).partition(", ")[2]

    yield _tried("reference model", look, "install dermalyze again, or name a file with --model")


def _training() -> Iterator[Check]:
    found, missing = _packages(("torch", "timm", "mlflow", "onnx"))
    yield Check(
        name="training",
        works=not missing,
        found=f"without {', '.join(missing)}" if missing else found,
        hint=_INSTALL if missing else "",
    )


def _device() -> Iterator[Check]:
    try:
        from dermalyze.config.schema import TrainingConfig
        from dermalyze.training.device import choose_device
    except ModuleNotFoundError:
        return  # said by the check before
    device = choose_device(TrainingConfig())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = device.torch_device.type
    slow = "; a GPU is not found, or torch was built without one" if kind == "cpu" else ""
    found = f"{kind}, computes in {device.precision}, {cores} CPU cores{slow}"
    yield Check(name="device", works=True, found=found)


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    works = free >= _FREE_GB
    hint = "" if works else f"make room: a training may write {_FREE_GB:.0f} GB"
    yield Check(name="disk", works=works, found=f"{free:.0f} GB free here", hint=hint)


def _store() -> Iterator[Check]:
    try:
        from dermalyze.tracking import BoundedClient, limit_calls, use_store
    except ModuleNotFoundError:
        return
    if not os.environ.get("MLFLOW_TRACKING_URI") and not Path("mlflow.db").exists():
        found = "mlflow.db, which the first training here makes"
        yield Check(name="tracking store", works=True, found=found)
        return

    def look() -> str:
        limit_calls(_SECONDS)
        address = use_store()
        BoundedClient("cannot reach the tracking store").search_experiments(max_results=1)
        return f"{address} answers"

    yield _tried("tracking store", look, "start the server, or unset MLFLOW_TRACKING_URI")


def _hub() -> Iterator[Check]:
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        found = "not asked, because HF_HUB_OFFLINE is set; weights come from the cache"
        yield Check(name="weight hub", works=True, found=found)
        return

    def look() -> str:
        address = os.environ.get("HF_ENDPOINT") or HUB
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return "answers"

    hint = "--set model.name=tf_efficientnet_lite0 needs none: its weights are in this package"
    yield _tried("weight hub", look, hint)


def _tools() -> Iterator[Check]:
    for name, commands, use in (
        ("browser", _BROWSERS, "the pages open in any browser"),
        ("npm", ("npm",), "`dermalyze export-web` fetches onnxruntime-web with it once"),
        ("git", ("git",), "`mlflow run` records the commit with it"),
    ):
        there = next((command for command in commands if shutil.which(command)), "")
        hint = "" if there else f"install it: {use}"
        yield Check(name=name, works=bool(there), found=there or "not found", hint=hint)


def _tried(name: str, look: Callable[[], str], hint: str) -> Check:
    """Look; what a user can put right is a check that does not work."""
    try:
        return Check(name=name, works=True, found=look())
    except (DermalyzeError, OSError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        return Check(name=name, works=False, found=f"{reason}".splitlines()[0], hint=hint)

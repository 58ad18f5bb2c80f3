"""The end of a run: the best epoch evaluated on the test split, exported, compared, registered."""

import base64
import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermalyze import tracking
from dermalyze.data.splits import split_digest
from dermalyze.evaluation.evaluate import Evaluation, Predictions
from dermalyze.evaluation.report.figures import save_png, training_curves
from dermalyze.evaluation.report.folder import CONFUSION, PREDICTIONS
from dermalyze.evaluation.report.text import MISSING, cell
from dermalyze.evaluation.scores import read_scored
from dermalyze.evaluation.statistics.bootstrap import Interval
from dermalyze.evaluation.statistics.noninferiority import Rule
from dermalyze.evaluation.text import TITLES, things
from dermalyze.models.checkpoint import load_member
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.tracking.untracked import UntrackedRun
from dermalyze.training.device import in_full_precision
from dermalyze.training.state import TrainingState
from dermalyze.workflows.finished_run import FinishedRun
from dermalyze.workflows.report import MODEL_CARD, REPORT, write_evaluation
from dermalyze.workflows.run_context import (
    AUDIT,
    BEST,
    CURVES,
    EVALUATION,
    MODEL,
    Job,
    save_limits,
)
from dermalyze.workflows.run_lock import hold
from dermalyze.workflows.uncertainty import Runner, with_limits
from serving.atomic_write import write_text
from serving.errors import TrackingError
from serving.os_errors import make_folder
from serving.taxonomy import DISCLAIMER, Taxonomy

if TYPE_CHECKING:
    from dermalyze.tracking.registry import Registered

logger = logging.getLogger(__name__)

REQUEST = Path(".dermalyze/request.json")  # one test image, as `curl` can send it
_REGISTRATION = "registration.json"  # what `conclude` needs to know beside the run's files
_NOTE = "mlflow.note.content"  # the description of a run, with these numbers
_TOLD = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc", "malignant_auc", "ece")
_NUM_CHECK_IMAGES = 32  # test images that the exported file is checked on beside the drawn ones


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    run_id: str
    metrics: dict[str, float]  # test/...
    intervals: Mapping[str, Interval]
    taxonomy: Taxonomy
    parity: str  # how far ONNX and PyTorch are apart, in words
    registered: "Registered | None"
    folder: Path | None = None  # of a run without MLflow
    report: Path | None = None  # of a run whose files are on this machine


def ship(job: Job, state: TrainingState) -> RunResult:
    """Evaluate, export, log and register the best epoch."""
    run = job.run
    predictions = _predict(job, state)
    parity = _export(job)
    evaluation = _evaluate(job, predictions)
    metrics = evaluation.logged()
    run.log_metrics({**metrics, "best_epoch": state.best_epoch})
    result = RunResult(
        run_id=run.run_id,
        metrics=metrics,
        intervals=evaluation.intervals,
        taxonomy=evaluation.taxonomy,
        parity=parity,
        registered=None,
        folder=job.folder,
    )
    if isinstance(run, UntrackedRun):
        return result
    registered = _deliver(job, run, metrics, parity)
    files = tracking.local_artifacts(run.run_id)
    report = None if files is None else files / REPORT
    return replace(result, registered=registered, folder=None, report=report)


def _deliver(
    job: Job, run: "tracking.TrackedRun", metrics: Mapping[str, float], parity: str
) -> "Registered | None":
    """Log the exported file as a model, and do what needs the tracking store."""
    from dermalyze.export.mlflow_arguments import pyfunc_arguments
    from dermalyze.tracking.registry import rule_of

    config = job.config
    if not run.tag(tracking.MODEL_URI_TAG):
        run.log_model(pyfunc_arguments(job.folder / MODEL), metrics)
    if config.tracking.register:
        wanted = {
            "name": config.tracking.registered_model,
            "test_split": split_digest(job.prepared.manifest, job.splits.test),
            "demo_data": job.began.demo_data,
            "parity": parity,
            "rule": asdict(rule_of(config.tracking, must_be_better=True)),
        }
        write_text(job.folder / _REGISTRATION, json.dumps(wanted))
    return conclude(run)


def conclude(run: "tracking.TrackedRun") -> "Registered | None":
    """Do what needs the tracking store at the end of a run: deliver all of it, register its model.

    All else is done by then, and everything that this takes is in the run's folder.

    Raises:
        StoreAwayError: the store is away; `sync` does it later.
    """
    run.deliver()
    path = run.folder / _REGISTRATION
    if not path.exists():
        return None
    wanted = json.loads(path.read_text(encoding="utf-8"))
    with run.left_to_sync("registered"):
        registered = _registered(run, wanted)
    run.set_tags({"dermalyze.champion_reason": registered.reason})
    return registered


def _registered(run: "tracking.TrackedRun", wanted: Mapping[str, Any]) -> "Registered":
    from dermalyze.tracking.registry import Candidate, register

    uri = tracking.tags_of(run.run_id).get(tracking.MODEL_URI_TAG)
    if uri is None:
        raise TrackingError(
            f"the tracking store refused the model of run {run.run_id}, which is kept in "
            f"{run.folder}; when the cause is fixed, run `dermalyze train --resume {run.run_id}`"
        )
    return register(
        wanted["name"],
        Candidate(
            model_uri=uri,
            run_id=run.run_id,
            test_split=wanted["test_split"],
            demo_data=wanted["demo_data"],
            parity=wanted["parity"],
            description=(run.folder / EVALUATION / MODEL_CARD).read_text(encoding="utf-8"),
            predictions=read_scored(run.folder / EVALUATION / PREDICTIONS),
        ),
        Rule(**wanted["rule"]),
    )


def sync(run_id: str) -> str:
    """Deliver what a run could not, while the tracking store was away; say what was done.

    A run whose work is done is registered and ends, as it would have.

    Raises:
        TrackingError: the store is still away, or there is no such run.
        TrainingError: the run is still going on.
    """
    with hold(run_id), tracking.open_undelivered(run_id) as run:
        if run is None:
            return f"run {run_id} has nothing left to deliver"
        if not run.is_complete:
            return (
                f"run {run_id} is delivered up to its last epoch; continue with `dermalyze train "
                f"--resume {run_id}`"
            )
        registered = conclude(run)
    if registered is None:
        return f"run {run_id} is delivered and finished"
    return (
        f"run {run_id} is delivered and finished; registered: {registered.name} version "
        f"{registered.version} ({registered.reason})"
    )


def _predict(job: Job, state: TrainingState) -> Predictions:
    """Fit the best epoch's limits on val, and run it on the test split."""
    member, spec = load_member(job.folder / BEST)
    runner = Runner(
        prepared=job.prepared,
        device=in_full_precision(job.device),
        batch_size=job.config.training.batch_size,
    )
    limited = with_limits(ShippedNetwork([member]), spec, runner, job.splits.val)
    save_limits(job, limited.network.only, limited.spec)
    save_png(
        job.folder / CURVES, training_curves(state.history, state.best_epoch), disclaimer=False
    )
    job.run.log_file(job.folder / CURVES)
    return runner.predictions(limited, job.splits.test, "test", {
        "run_id": job.run.run_id,
        "data_fingerprint": job.prepared.fingerprint,
        "best_epoch": state.best_epoch,
    })  # fmt: skip


def _evaluate(job: Job, predictions: Predictions) -> Evaluation:
    """Evaluate the test split with intervals; log the folder, the report and the cards."""
    run = job.run
    write_text(job.folder / AUDIT, job.prepared.audit.to_json())
    run.log_file(job.folder / AUDIT)
    logger.info("evaluating: intervals, subgroups, report")
    finished, settings = FinishedRun(RunFolder.of(run)), job.config.evaluation
    evaluation = write_evaluation(
        job.folder / EVALUATION, predictions, finished, settings, job.prepared.read_image_bytes
    )
    log_evaluation(run, evaluation)
    return evaluation


def log_evaluation(run: "tracking.TrackedRun | UntrackedRun", evaluation: Evaluation) -> None:
    """Log the folder, the report at the top, and a description unless the user gave one."""
    folder = run.folder / EVALUATION
    run.log_file(folder, EVALUATION)
    run.log_file(folder / REPORT)
    if isinstance(run, UntrackedRun) or run.tag(_NOTE):
        return
    place = f"#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/{REPORT}"
    image = f"get-artifact?path={EVALUATION}%2F{CONFUSION}&run_uuid={run.run_id}"
    known = {name: cell(evaluation.intervals.get(name)) for name in _TOLD}
    told = [
        f"- {TITLES[name]}: **{c.value}** {c.bounds}" for name, c in known.items() if c != MISSING
    ]
    lines = [f"On {things(evaluation.num_images, 'test image')}:", "", *told, ""]
    lines += [f"[report]({place})", "", f"![confusion matrix]({image})", "", DISCLAIMER]
    run.set_tags({_NOTE: "\n".join(lines)})


def _export(job: Job) -> str:
    """Export the best epoch and prove it; return parity in words.

    A run without MLflow leaves it to `export-onnx` where the packages for it are missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing and isinstance(job.run, UntrackedRun):
        return (
            f"{MODEL} was not written: {missing[0]} is not installed; where onnx and onnxscript "
            f"are, run `dermalyze export-onnx --checkpoint {job.folder / BEST}`"
        )
    from dermalyze.export.onnx import export_onnx

    member, spec = load_member(job.folder / BEST)
    manifest = job.prepared.manifest
    test_ids = [str(image_id) for image_id in manifest["image_id"].iloc[job.splits.test]]
    chosen = test_ids[:: max(1, len(test_ids) // _NUM_CHECK_IMAGES)][:_NUM_CHECK_IMAGES]
    images = [(name, job.prepared.read_image_bytes(name)) for name in chosen]
    path = job.folder / MODEL
    report = export_onnx(ShippedNetwork([member]), spec, path, extra_images=images)
    parity = (
        f"ONNX and PyTorch differ by at most {report.max_difference:.1e} in a probability on "
        f"{report.num_images} images"
    )
    logger.info(parity)
    job.run.set_tags({"dermalyze.parity": parity})
    if not isinstance(job.run, UntrackedRun):
        make_folder(REQUEST.parent)
        record = {"image": base64.b64encode(images[0][1]).decode("ascii")}
        write_text(REQUEST, json.dumps({"dataframe_records": [record]}))
    return parity

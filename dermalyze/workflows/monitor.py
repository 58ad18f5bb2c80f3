"""Answers of a service, compared with the run or model file that gave them."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.monitoring import Monitored, Reference, Schedule, monitor
from dermalyze.evaluation.report.monitoring import write_monitored
from dermalyze.evaluation.text import things
from dermalyze.evaluation.uncertainty.limits import fit_limits
from serving.errors import DataError
from serving.prediction_log import Entry, model_name, read_log
from serving.predictor import Predictor

logger = logging.getLogger(__name__)


def monitor_logs(
    addresses: Sequence[str],
    reference: str,
    schedule: Schedule,
    *,
    truth: Path | None,
    output: Path,
) -> Monitored:
    """Look at the answers in logs, and write `monitoring.html` and `monitoring.json`.

    Args:
        addresses: files or databases, of one or several services.
        reference: an ONNX file, or a run.
        schedule: when to look.
        truth: a CSV of later diagnoses.
        output: the folder.

    Raises:
        DataError: there is no log, or nothing in it of this model.
        StorageError: a log cannot be read.
        ArtifactError, TrackingError: the reference cannot be used.
    """
    entries: list[Entry] = []
    for number, address in enumerate(addresses, 1):
        found, damaged = read_log(address)
        entries += found
        if damaged:
            logger.warning(f"log {number}: skipped {things(damaged, 'damaged line')}")
    if not entries:
        raise DataError("the log has no answer yet; send images to the service first")
    found_out = monitor(entries, reference_of(reference), schedule, truth)
    write_monitored(output, found_out)
    return found_out


def reference_of(text: str) -> Reference:
    """Find out what validation images of a model were like: an ONNX file, or a run.

    Raises:
        ArtifactError, TrackingError: it cannot be used.
    """
    path = Path(text)
    if path.exists() or path.suffix == ".onnx":
        spec = Predictor(path, num_threads=1).spec
        return Reference(
            name=f"the model {path.name}",
            taxonomy=spec.taxonomy,
            known=spec.monitoring,
            logged_as=model_name(spec),
        )
    from dermalyze.workflows.finished_run import open_finished  # which needs torch

    with open_finished(text) as run:
        validation = run.predictions.validation
        known = None
        if validation is not None:  # as what travels in the model file
            known = fit_monitoring(validation, fit_limits(validation).temperature)
        taxonomy = run.predictions.scored.taxonomy
    return Reference(name=f"run {text}", taxonomy=taxonomy, known=known, logged_as=f"{run.run_id}:")

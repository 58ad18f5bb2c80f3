"""A run that has ended, or several of them, as one ONNX file.

What was calibrated for one network as it was trained is calibrated anew for what answers
otherwise: an ensemble, eight views, int8.  N images, C classes.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dermalyze import tracking
from dermalyze.data.patient_metadata import conversion, fields_of_members, metadata_of
from dermalyze.data.sampling import Rows
from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.predictions import MEASURED, predictions_table
from dermalyze.evaluation.scores import scored_of
from dermalyze.export.float16 import export_float16
from dermalyze.export.int8 import Int8Images, LabelledImages, describe, export_int8
from dermalyze.export.onnx import export_onnx
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.test_time_augmentation import NUM_VIEWS
from dermalyze.workflows.finished_run import FinishedRun, of_checkpoint, open_finished
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    EVALUATION,
    FOLD_TAG,
    FOLDS_TAG,
    Here,
)
from dermalyze.workflows.uncertainty import Runner, limits_in, with_limits
from serving.errors import ArtifactError, DataError
from serving.spec import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of some runs, and which of them all have learned from, or none has."""

    runner: Runner  # that runs networks over them
    train: Rows
    val: Rows

    def labelled(self, rows: Rows, spec: ModelSpec) -> LabelledImages:
        """Return some of them as int8 wants them."""
        manifest = self.runner.manifest(rows)
        return LabelledImages(
            self.runner.prepared.store,
            rows,
            np.array([spec.class_names.index(label) for label in manifest["label"]]),
            None if spec.metadata is None else metadata_of(manifest, spec.metadata),
        )


def export_runs(
    run_ids: Sequence[str],
    output: Path,
    *,
    tta: bool,
    precision: str,
    here: Here = AS_IN_THE_RUN,
) -> str:
    """Write the best epochs of runs as one ONNX file; return what was measured, in words.

    Args:
        run_ids: one run, or those of an ensemble; a run of folds stands for its folds.
        output: the file.
        tta: answer with the mean of eight views.
        precision: float32, float16 or int8.
        here: this machine's settings, and where the images are.

    Raises:
        ArtifactError: the runs cannot be in one file, or the file does not pass its proof.
        DataError: images are needed and are not those of the runs.
    """
    folds = _folds_of(run_ids)
    with ExitStack() as stack:
        runs = [stack.enter_context(open_finished(run_id, here)) for run_id in folds or run_ids]
        return _export(runs, output, tta=tta, precision=precision, are_folds=bool(folds))


def export_checkpoint(
    checkpoint: Path,
    output: Path,
    *,
    tta: bool,
    precision: str,
    here: Here = AS_IN_THE_RUN,
) -> str:
    """Do what `export_runs` does with a checkpoint file; what else it needs is beside that file.

    Limits that are not in the checkpoint yet need the settings, the splits and `here.data_dir`.
    """
    run = of_checkpoint(checkpoint, here)
    return _export([run], output, tta=tta, precision=precision, are_folds=False)


def _export(
    runs: Sequence[FinishedRun], output: Path, *, tta: bool, precision: str, are_folds: bool
) -> str:
    """Write opened runs as one ONNX file; as `export_runs`."""
    spec = _common_spec(runs, num_views=NUM_VIEWS if tta else 1)
    network = ShippedNetwork([_member_of(run, spec) for run in runs], num_views=spec.num_views)
    images: _Images | None = None
    tables: list[pd.DataFrame] | None = None
    if precision == "int8":
        images = _images_of(runs)
        if len(images.val) == 0:
            raise DataError(
                "int8 needs validation images that none of these runs was trained on, and "
                "there are none; export one run, or pass --precision float32"
            )
    if are_folds and not tta:
        # What each network said of the images that it had not seen.
        answers = pd.concat([run.predictions.scored.table for run in runs], ignore_index=True)
        scored = scored_of(answers, spec.taxonomy)
        spec = limits_in(spec, scored, "out of fold, one network each")
    elif len(runs) > 1 or tta:
        images = images or _images_of(runs)
        spec = _limits_together(runs, network, spec, images)
    elif spec.scope is None:  # trained before there were limits, or stopped before them
        try:
            images = images or _images_of(runs)
            limited = with_limits(network, spec, images.runner, images.val)
            network, spec, tables = limited.network, limited.spec, [limited.validation]
        except DataError as error:
            logger.warning(f"without prediction sets and decisions: {error}")
    if spec.monitoring is None and not tta and len(runs) == 1:  # trained before it was kept
        kept = runs[0].stored.find(EVALUATION)
        validation = None if kept is None else runs[0].predictions.validation
        if validation is not None:
            spec = replace(spec, monitoring=fit_monitoring(validation, spec.temperature))
    network.cpu()
    if precision == "int8":
        assert images is not None
        return describe(
            export_int8(
                network,
                spec,
                output,
                Int8Images(
                    training=images.labelled(images.train, spec),
                    validation=images.labelled(images.val, spec),
                ),
                respec=lambda logits: _limits_of(tables or _validation(runs), spec, images, logits),
            )
        )
    if precision == "float16":
        return f"{_what(spec)}, {export_float16(network, spec, output)}"
    report = export_onnx(network, spec, output)
    return (
        f"{_what(spec)}; differs from PyTorch by at most {report.max_difference:.1e} in a "
        f"probability on {report.num_images} images; no class changed"
    )


def _folds_of(run_ids: Sequence[str]) -> list[str]:
    """Return the runs of the folds below a run; nothing if these are other runs.

    Raises:
        ArtifactError: a run of folds is one of several, or not all its folds are finished.
    """
    number = {run_id: tracking.tags_of(run_id).get(FOLDS_TAG) for run_id in run_ids}
    if not any(number.values()):
        return []
    if len(run_ids) > 1:
        raise ArtifactError(
            "a cross-validation run is already an ensemble; pass it alone, or pass other runs"
        )
    (run_id,) = run_ids
    children = tracking.children_of(run_id, FOLD_TAG)
    wanted = [str(i + 1) for i in range(int(number[run_id] or 0))]
    if unfinished := [i for i in wanted if not children.get(i, ("", False))[1]]:
        raise ArtifactError(
            f"fold {unfinished[0]} of run {run_id} is not finished; continue with `dermalyze train "
            f"--resume {run_id}`"
        )
    return [children[i][0] for i in wanted]


def _member_of(run: FinishedRun, spec: ModelSpec) -> Member:
    """Return a run's network, which takes metadata as all of them together do."""
    own = run.spec.metadata
    if own is not None and spec.metadata is not None and own != spec.metadata:
        run.member.conversion = torch.from_numpy(conversion(spec.metadata, own))
    return run.member


def _common_spec(runs: Sequence[FinishedRun], *, num_views: int) -> ModelSpec:
    """Return the spec of all runs together, as far as it follows from theirs.

    Raises:
        ArtifactError: they take different images, or answer with different classes.
    """
    first = runs[0].spec
    if len({run.run_id for run in runs}) < len(runs):
        raise ArtifactError("a run is named twice; name each run of an ensemble once")
    for run in runs[1:]:
        for name in ("class_names", "input_size", "resize_mode", "resize_filter"):
            ours, theirs = getattr(first, name), getattr(run.spec, name)
            if ours != theirs:
                raise ArtifactError(
                    f"runs {runs[0].run_id} and {run.run_id} cannot be in one file: their {name} "
                    f"is {ours} and {theirs}; name runs that take the same images"
                )
        if (first.metadata is None) != (run.spec.metadata is None):
            raise ArtifactError(
                f"runs {runs[0].run_id} and {run.run_id} cannot be in one file: one takes "
                "metadata, the other images alone; name runs that take the same"
            )
    fields = [run.spec.metadata for run in runs if run.spec.metadata is not None]
    if num_views > 1 and first.input_size[0] != first.input_size[1]:
        raise ArtifactError("quarter turns need square images; leave out --tta")
    kinds = {run.spec.saliency for run in runs}
    return replace(
        first,
        metadata=fields_of_members(fields) if fields else None,
        num_views=num_views,
        member_run_ids=tuple(run.run_id for run in runs) if len(runs) > 1 else (),
        saliency=first.saliency if len(kinds) == 1 else "",
        scope=first.scope if all(run.spec.scope is not None for run in runs) else None,
    )


def _images_of(runs: Sequence[FinishedRun]) -> _Images:
    """Find the images of runs.

    Raises:
        DataError: the data is not what one of them was trained on.
    """
    train, val = runs[0].splits.train, runs[0].splits.val
    for run in runs[1:]:
        train = np.intersect1d(train, run.splits.train)
        val = np.intersect1d(val, run.splits.val)
    return _Images(runner=runs[0].runner, train=train, val=val)


def _limits_together(
    runs: Sequence[FinishedRun], network: ShippedNetwork, spec: ModelSpec, images: _Images
) -> ModelSpec:
    """Fit the limits on images that are validation images of all runs."""
    if len(images.val) == 0:
        raise DataError(
            "these runs share no validation image, so nothing can "
            "be calibrated; train them with the same training.seed or data.splits"
        )
    outputs = images.runner.outputs(network, spec, images.val, ("logits",), "val")
    return _limits_of(_validation(runs), spec, images, outputs["logits"])


def _validation(runs: Sequence[FinishedRun]) -> list[pd.DataFrame]:
    tables = [run.predictions.validation for run in runs]
    return [scored.table for scored in tables if scored is not None]


def _limits_of(
    tables: Sequence[pd.DataFrame], spec: ModelSpec, images: _Images, logits: NDArray[np.float32]
) -> ModelSpec:
    """Fit the limits to logits on the validation images.

    The scope scores are those of each run's own validation, by fits that had not seen the image.
    """
    manifest = images.runner.manifest(images.val)
    measured: dict[str, NDArray[np.float64]] = {}
    if spec.scope is not None:
        found = [table.set_index("image_id").loc[manifest["image_id"]] for table in tables]
        measured = {
            name: np.mean([table[name].to_numpy(np.float64) for table in found], axis=0)
            for name in MEASURED
        }
    taxonomy = images.runner.prepared.taxonomy
    table = predictions_table(manifest, logits, taxonomy, measured)
    return limits_in(spec, scored_of(table, taxonomy), "the validation split")


def _what(spec: ModelSpec) -> str:
    """Say what is in a file."""
    networks = max(1, len(spec.member_run_ids))
    parts = ["one network" if networks == 1 else f"{networks} networks"]
    if spec.num_views > 1:
        parts.append(f"{spec.num_views} views")
    return " with ".join(parts)

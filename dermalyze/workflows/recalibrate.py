"""The limits of a model file fitted anew on labelled images of another source; no training.

N images, C classes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd

from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.metrics.classification import Counts
from dermalyze.evaluation.predictions import MEASURED, read_predictions
from dermalyze.evaluation.report.text import cell
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.bootstrap import MIN_LESIONS, Interval, intervals
from dermalyze.evaluation.text import listed, percent, things
from dermalyze.evaluation.uncertainty.limits import Limits, check_limits, fit_limits, limits_of
from dermalyze.export.onnx import write_model
from dermalyze.workflows.external import Source, answers_elsewhere, model_of_file
from dermalyze.workflows.run_context import AS_IN_THE_RUN, Here
from serving.atomic_write import whole_file
from serving.errors import ConfigError, DataError
from serving.os_errors import make_folder
from serving.predictor import Predictor
from serving.spec import ModelSpec
from serving.taxonomy import Taxonomy
from serving.uncertainty import DEFAULT_SENSITIVITY

PARTS = ("temperature", "prediction_sets", "abstention", "referral")
_REPLICATES = 1000
_IDS = ("image_id", "lesion_id", "group")
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What a model says of images whose class is known."""

    scored: Scored
    source: str  # what they are, in words


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measure on images that the new limits were not fitted on, before and after."""

    title: str
    before: Interval | None  # None: the file has no such limits
    after: Interval | None


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What a file with new limits is worth, measured with limits of one half on the other."""

    fitted: Scored
    held_out: Scored
    rows: list[Row]
    spec: ModelSpec  # with limits of both halves
    lacking: list[str]  # why there is no referral, in a sentence each

    def __str__(self) -> str:
        """Show it as a table."""
        halves = [
            f"{things(len(half), 'image')} of {things(half.num_lesions, half.group_by)}"
            for half in (self.fitted, self.held_out)
        ]
        cells = [("measure", "before", "after")]
        cells += [(row.title, _shown(row.before), _shown(row.after)) for row in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(2)]
        return "\n".join(
            [
                f"measured on {halves[1]} with limits fitted on {halves[0]}:",
                *(
                    f"{title:<{widths[0]}}  {before:<{widths[1]}}  {after}"
                    for title, before, after in cells
                ),
                f"the file has limits fitted on both halves: {self.spec.calibrated_on}",
                *self.lacking,
            ]
        )


def _shown(interval: Interval | None) -> str:
    found = cell(interval)
    return f"{found.value} ({found.bounds})" if found.bounds else found.value


def recalibrate(
    model: Path, labelled: Labelled, output: Path, *, only: Sequence[str] = ()
) -> Recalibration:
    """Write a model file with limits fitted on labelled images; its graph stays as it is.

    Args:
        model: the file.
        labelled: what it says of the images; or what other networks with its classes say.
        output: the file to write.
        only: the parts to fit, of `PARTS`; empty: all.

    Raises:
        DataError: there are too few lesions.
        ArtifactError: the model cannot be used.
    """
    spec, scored = Predictor(model, num_threads=1).spec, labelled.scored
    parts = only or PARTS
    if scored.num_lesions < 2 * MIN_LESIONS:
        raise DataError(
            f"there are {things(scored.num_lesions, scored.group_by)} with labels, expected at "
            f"least {2 * MIN_LESIONS}, half of them to measure on; add labelled images"
        )
    halves = _halves(scored)
    fitted, held_out = (scored.take(halves == half) for half in (0, 1))
    old = limits_of(spec)
    if old is None and set(parts) < set(PARTS):
        raise ConfigError("the model has no limits of its own; leave out --only to fit all of them")
    words = f"{labelled.source}: {len(scored):,} images of "
    words += things(scored.num_lesions, scored.group_by)
    if only:
        words = f"{spec.calibrated_on}; {', '.join(only)} on {words}"
    final = _fit(scored, old, parts)
    half = _fit(fitted, old, parts)
    result = Recalibration(
        fitted=fitted,
        held_out=held_out,
        rows=_rows(held_out, old, half),
        lacking=[
            f"referral of {what}: {limits.referral.lacking(DEFAULT_SENSITIVITY)}"
            for what, limits in (("the half", half), ("the file", final))
            if limits.referral and limits.referral.column(DEFAULT_SENSITIVITY) is None
        ],
        spec=replace(
            spec,
            **{name: getattr(final, name) for name in PARTS},
            monitoring=fit_monitoring(scored, final.temperature)
            if "temperature" in parts
            else spec.monitoring,
            calibrated_on=words,
        ),
    )
    graph = onnx.load(model)
    make_folder(output.parent)
    with whole_file(output) as partial:
        write_model(partial, graph, result.spec)
        Predictor(partial, num_threads=1)  # refuses what does not fit its graph
    return result


def answers_of_images(
    model: Path,
    sources: Sequence[Source],
    maps: Mapping[str, Mapping[str, str]],
    here: Here = AS_IN_THE_RUN,
) -> Labelled:
    """Let a model answer for the labelled images of sources.

    Args:
        model: the file.
        sources: where the images are.
        maps: as `maps_of` gives them.
        here: where the images are that the model was trained on.

    Raises:
        DataError: a source cannot be read, or none of its images can be used.
        ConfigError: a class map cannot be used.
    """
    tables = []
    with model_of_file(model, here) as opened:
        for found in answers_elsewhere(opened, sources, maps):
            name, table = found.images.source.name, found.scored.table
            for sentence in found.unchecked:
                logger.info(f"{name}: {sentence}")
            for reason, number in found.reasons.items():
                logger.info(f"{name}: left out {things(number, 'image')}: {reason}")
            ids = {key: f"{name}/" + table[key] for key in _IDS if key in table}
            tables.append(table.assign(**ids))
    names = [source.name for source in sources]
    return Labelled(scored=_together(tables, opened.taxonomy), source=listed(names))


def stored_answers(model: Path, paths: Sequence[Path]) -> Labelled:
    """Read stored predictions for the classes of a model: tables that evaluations have written.

    Raises:
        DataError: one is not such a table, or an image is in two.
    """
    taxonomy = Predictor(model, num_threads=1).spec.taxonomy
    tables = [read_predictions(path, taxonomy)[0] for path in paths]
    # The scope scores may be those of other networks.
    tables = [table.drop(columns=list(MEASURED), errors="ignore") for table in tables]
    scored = _together(tables, taxonomy)
    if (twice := scored.table["image_id"].duplicated()).any():
        raise DataError(
            f"image {scored.table['image_id'][int(twice.to_numpy().argmax())]!r} is in two tables "
            "of predictions; give each image once"
        )
    return Labelled(scored=scored, source=listed([path.name for path in paths]))


def _together(tables: Sequence[pd.DataFrame], taxonomy: Taxonomy) -> Scored:
    """Put tables of predictions under each other."""
    grouped = [table.assign(group=table.get("group", table["lesion_id"])) for table in tables]
    return scored_of(pd.concat(grouped, ignore_index=True), taxonomy)


def _halves(scored: Scored) -> Counts:
    """Deal whole lesions into two halves, class by class and always alike: 0 or 1, (N,)."""
    _, first = np.unique(scored.lesions, return_index=True)
    order = np.random.default_rng(0).permutation(len(first))
    order = order[np.argsort(scored.targets[first][order], kind="stable")]
    halves = np.empty(len(first), np.int64)
    halves[order] = np.arange(len(first)) % 2
    return halves[scored.lesions]


def _fit(scored: Scored, old: Limits | None, parts: Sequence[str]) -> Limits:
    """Fit some parts of the limits; the scope and the other parts stay as they were."""
    given = None if old is None or "temperature" in parts else old.temperature
    new = fit_limits(scored, temperature=given)
    return new if old is None else replace(old, **{name: getattr(new, name) for name in parts})


def _rows(held_out: Scored, old: Limits | None, new: Limits) -> list[Row]:
    """Measure both limits on images that the new ones were not fitted on."""
    before, after = ({} if limits is None else _measures(held_out, limits) for limits in (old, new))
    return [Row(title=title, before=before.get(title), after=after[title]) for title in after]


def _measures(held_out: Scored, limits: Limits) -> dict[str, Interval | None]:
    known = intervals(
        held_out.with_logits(held_out.logits.astype(np.float64) / limits.temperature),
        replicates=_REPLICATES,
    )
    check = check_limits(held_out, replace(limits, scope=None), replicates=_REPLICATES)
    level = percent(check.prediction_sets.level)
    found = {
        "log loss": known["loss"],
        "calibration error (ECE)": known["ece"],
        f"coverage of prediction sets at {level}": check.prediction_sets.coverage,
        "share answered": check.abstention.coverage,
        "error rate among answered": check.abstention.risk,
    }
    referral = check.referral and check.referral.at(DEFAULT_SENSITIVITY)
    of_all = percent(DEFAULT_SENSITIVITY)
    return found | {
        f"malignant found by referral at {of_all}": referral.sensitivity if referral else None,
        f"benign spared by referral at {of_all}": referral.specificity if referral else None,
    }

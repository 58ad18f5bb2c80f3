"""From a trained network to what is shipped: its limits fitted on validation images.

N images of H x W pixels, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dermalyze.data.lesion_masks import find_masks, read_mask
from dermalyze.data.patient_metadata import metadata_of
from dermalyze.data.preparation import Prepared
from dermalyze.data.readers.dataset import ImageFile, ImageReader
from dermalyze.data.sampling import Rows
from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.evaluate import Predictions
from dermalyze.evaluation.predictions import group_numbers, predictions_table
from dermalyze.evaluation.saliency_check import measure_maps
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.text import things
from dermalyze.evaluation.uncertainty.limits import fit_limits
from dermalyze.evaluation.uncertainty.out_of_distribution import (
    cross_fitted,
    fit_quality,
    fit_scope,
    problems_of,
)
from dermalyze.models.ensemble import Member, ShippedNetwork
from dermalyze.models.out_of_distribution import ScopeScore
from dermalyze.training.device import Device, enough_memory
from dermalyze.training.feed import open_feed
from dermalyze.training.loop import on_device
from serving.base_predictor import Outputs
from serving.errors import ImageError
from serving.photo_quality import Measures, measure
from serving.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How to run networks over stored images."""

    prepared: Prepared
    device: Device
    batch_size: int

    def outputs(
        self, network: ShippedNetwork, spec: ModelSpec, rows: Rows, names: Sequence[str], what: str
    ) -> Outputs:
        """Run a network over stored images: (N,) rows -> what `ShippedNetwork.forward` gives.

        Args:
            network: in evaluation mode afterwards, and on the device.
            spec: its contract.
            rows: of the store.
            names: the outputs that are wanted.
            what: shown beside the progress.
        """
        target = self.device.torch_device
        network.to(target).eval()
        feed = open_feed(self.prepared.store, target, passes=1)
        known = None
        if spec.metadata is not None:
            known = on_device(metadata_of(self.prepared.manifest, spec.metadata), self.device)
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        batches = feed.batches(tqdm(self.parts(rows), what, leave=False, disable=None))
        with enough_memory(self.device, self.batch_size):
            for pixels, numbers in batches:
                metadata = None if known is None else known.index_select(0, numbers)
                with torch.inference_mode(), self.device.autocast():
                    outputs = network(pixels, metadata, names)
                for name, values in outputs.items():
                    found[name].append(values.float().cpu().numpy())
        return {name: np.concatenate(values) for name, values in found.items()}

    def measures(self, rows: Rows) -> Measures:
        """Measure the photographs themselves."""
        parts = [measure(self.prepared.store.batch(part)) for part in self.parts(rows)]
        return Measures(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("sharpness", "brightness", "color")
            )
        )

    def predictions(
        self, limited: "Limited", rows: Rows, split: str, context: Mapping[str, object]
    ) -> Predictions:
        """Run a network that knows its limits over a split: what `evaluate` takes.

        What its limits were fitted on goes along for the test split alone.
        """
        network, spec, taxonomy = limited.network, limited.spec, self.prepared.taxonomy
        assert spec.quality is not None
        outputs = self.outputs(network, spec, rows, ("logits", "scope_score"), split)
        problems = problems_of(self.measures(rows), spec.quality).astype(np.float32)
        measured = {"scope_score": outputs["scope_score"], "photo_problem": problems}
        table = predictions_table(self.manifest(rows), outputs["logits"], taxonomy, measured)
        return Predictions(
            scored=scored_of(table, taxonomy),
            split=split,
            validation=scored_of(limited.validation, taxonomy) if split == "test" else None,
            explanations=self.explanations(network, spec, rows),
            context=context,
        )

    def explanations(self, network: ShippedNetwork, spec: ModelSpec, rows: Rows) -> pd.DataFrame:
        """Measure the map of each image's predicted class on its lesion mask.

        Images without a mask are left out; without any the table is empty.
        """
        ids = self.prepared.manifest["image_id"].to_numpy()
        masks = find_masks(self.prepared.data_dir, ids.tolist())
        rows = rows[[ids[row] in masks for row in rows]]
        if len(rows) == 0 or not spec.saliency:
            return measure_maps([], [], np.zeros((0, 1, 1), np.float32), [])
        outputs = self.outputs(network, spec, rows, ("logits", "saliency"), "maps")
        predicted = outputs["logits"].argmax(axis=1)
        with ImageReader() as reader:
            drawn = [_mask(reader, masks[ids[row]], spec) for row in rows]
        manifest = self.manifest(rows)
        return measure_maps(
            manifest["image_id"].tolist(),
            manifest["lesion_id"].tolist(),
            outputs["saliency"][np.arange(len(rows)), predicted],
            drawn,
        )

    def manifest(self, rows: Rows) -> pd.DataFrame:
        """Return the manifest's rows."""
        return self.prepared.manifest.iloc[rows]

    def parts(self, rows: Rows) -> list[Rows]:
        """Cut rows into batches."""
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]


@dataclass(frozen=True, kw_only=True)
class Limited:
    """A network that knows its limits, and the table that they were fitted on."""

    network: ShippedNetwork
    spec: ModelSpec
    validation: pd.DataFrame  # as `predictions_table` makes it


def _mask(reader: ImageReader, file: ImageFile, spec: ModelSpec) -> NDArray[np.bool_]:
    """Read a lesion mask; a damaged one is empty, and so is not measured."""
    try:
        return read_mask(reader.read(file), spec.input_size, mode=spec.resize_mode)
    except ImageError:
        return np.zeros(spec.input_size, np.bool_)


def with_limits(network: ShippedNetwork, spec: ModelSpec, runner: Runner, rows: Rows) -> Limited:
    """Fit scope, photograph checks, temperature, sets and abstention of one network.

    Args:
        network: of one member, whose scope is replaced.
        spec: its contract so far.
        runner: what runs it.
        rows: of the validation split.
    """
    classifier = network.only.classifier
    outputs = runner.outputs(network, spec, rows, ("logits", "early"), "val")
    manifest = runner.manifest(rows)
    lesions = group_numbers(manifest)
    measures = runner.measures(rows)
    quality = fit_quality(measures, lesions, min(spec.input_size))
    fit = fit_scope(outputs["early"], lesions)
    table = predictions_table(
        manifest,
        outputs["logits"],
        runner.prepared.taxonomy,
        {
            "scope_score": cross_fitted(outputs["early"], lesions),
            "photo_problem": problems_of(measures, quality).astype(np.float32),
        },
    )
    scored = scored_of(table, runner.prepared.taxonomy)
    scope = ScopeScore(torch.from_numpy(fit.mean), torch.from_numpy(fit.projection))
    return Limited(
        network=ShippedNetwork([Member(classifier, scope)]).eval(),
        spec=replace(limits_in(spec, scored, "the validation split"), quality=quality),
        validation=table,
    )


def limits_in(spec: ModelSpec, scored: Scored, source: str) -> ModelSpec:
    """Fit what follows from validation predictions, and put it into the spec."""
    limits = fit_limits(scored)
    units = things(scored.num_lesions, scored.group_by)
    return replace(
        spec,
        temperature=limits.temperature,
        prediction_sets=limits.prediction_sets,
        abstention=limits.abstention,
        scope=limits.scope,
        referral=limits.referral,
        monitoring=fit_monitoring(scored, limits.temperature),
        calibrated_on=f"{source}: {len(scored):,} images of {units}",
    )

"""A run that is over, opened once: its settings, what it keeps, its images and its network."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dermalyze import tracking
from dermalyze.config.loading import load_config
from dermalyze.config.schema import Config
from dermalyze.data.preparation import Prepared
from dermalyze.data.splits import Splits, read_split, read_splits
from dermalyze.evaluation.evaluate import Predictions
from dermalyze.evaluation.report.folder import read_folder
from dermalyze.models.checkpoint import load_checkpoint, load_member
from dermalyze.models.ensemble import Member
from dermalyze.tracking.run_folder import RunFolder
from dermalyze.training.device import choose_device, in_full_precision
from dermalyze.workflows.run_context import (
    AS_IN_THE_RUN,
    AUDIT,
    BEST,
    CONFIG,
    CORRECTIONS,
    EVALUATION,
    HISTORY,
    SPLIT_FILES,
    Here,
    prepare_again,
    usable_config,
)
from dermalyze.workflows.uncertainty import Runner
from serving.errors import ArtifactError, TrackingError
from serving.spec import ModelSpec

_DAMAGED = "expected what the training wrote; restore it from a copy or train again"
_FACTS = {  # parameter of a run -> what the report calls it
    "resolved.backbone": "backbone",
    "resolved.pretrained": "initial weights",
    "resolved.num_parameters": "parameters of the network",
    "resolved.num_images": "usable images",
    "resolved.device": "trained on",
    "resolved.precision": "precision in training",
    "resolved.data_fingerprint": "fingerprint of the images",
}


@dataclass(frozen=True)
class FinishedRun:
    """A run whose training is over.  What it keeps is read when it is first asked for."""

    stored: RunFolder
    here: Here = AS_IN_THE_RUN
    checkpoint: str = BEST  # the file of its network

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.stored.run_id

    @property
    def demo_data(self) -> bool:
        """Whether the images are drawn."""
        return self.stored.tags.get("dermalyze.demo_data") == "true"

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the training warned of."""
        return tuple(self.stored.tags.get("dermalyze.warnings", "").splitlines())

    @property
    def facts(self) -> dict[str, object]:
        """What a report lists: what it is called -> what it is."""
        params, tags = self.stored.params, self.stored.tags
        facts: dict[str, object] = {"run id": self.run_id}
        facts |= {name: params[key] for key, name in _FACTS.items() if key in params}
        if parity := tags.get("dermalyze.parity"):
            facts["exported file"] = parity
        return facts

    @cached_property
    def settings(self) -> Config | None:
        """The settings as the run keeps them; None: it has none."""
        path = self.stored.find(CONFIG)
        return None if path is None else self._with_corrections(load_config(path))

    @cached_property
    def config(self) -> Config:
        """The settings, for use on this machine; code that they ask for is not run.

        Raises:
            ConfigError: they cannot be read, or ask for a plug-in that the user has not named.
        """
        config = self._with_corrections(load_config(self.stored.file(CONFIG)))
        return usable_config(config, self.here)

    def _with_corrections(self, config: Config) -> Config:
        """Name the run's own copy of the corrected labels, if it has any."""
        if config.data.corrections == "none":
            return config
        path = str(self.stored.file(CORRECTIONS))
        return replace(config, data=replace(config.data, corrections=path))

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """One entry per epoch; empty: it keeps none.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.stored.find(HISTORY)
        history: list[dict[str, float]] = [] if path is None else _read_json(path, list)
        for entry in history:
            if not isinstance(entry, dict) or not isinstance(entry.get("epoch"), int):
                raise ArtifactError(f"{HISTORY} of the run is damaged: {_DAMAGED}")
        return history

    @property
    def best_epoch(self) -> int:
        """The epoch, from 1, with the best `training.monitor`; the first of several; 0: unknown."""
        if not self.history or self.settings is None:
            return 0
        training = self.settings.training
        sign = 1 if training.higher_is_better else -1
        best = max(self.history, key=lambda e: (sign * e[training.monitor], -e["epoch"]))
        return int(best["epoch"])

    @cached_property
    def audit(self) -> dict[str, Any] | None:
        """What the audit of its images found; None: it keeps no audit.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = self.stored.find(AUDIT)
        return None if path is None else _read_json(path, dict)

    @cached_property
    def split_tables(self) -> dict[str, pd.DataFrame]:
        """The rows of each split, by its name; empty: one of its files is missing."""
        paths = [self.stored.find(name) for name in SPLIT_FILES]
        return {
            path.name.removesuffix("_split.csv"): read_split(path)
            for path in paths
            if path is not None and None not in paths
        }

    @property
    def member(self) -> Member:
        """The network of the best epoch."""
        return self._network[0]

    @property
    def spec(self) -> ModelSpec:
        """The contract of that network."""
        return self._network[1]

    @property
    def prepared(self) -> Prepared:
        """The images.

        Raises:
            DataError: the data is not what the run was trained on, or not where it was.
        """
        return self._data[0]

    @property
    def splits(self) -> Splits:
        """Which of the images it learned from, was validated and tested on.

        Raises:
            DataError: as `prepared`.
        """
        return self._data[1]

    @cached_property
    def predictions(self) -> Predictions:
        """What it predicted on its test split, and on its validation split."""
        return read_folder(self.stored.file(EVALUATION), "test")

    @cached_property
    def _network(self) -> tuple[Member, ModelSpec]:
        return load_member(self.stored.file(self.checkpoint))

    @cached_property
    def _data(self) -> tuple[Prepared, Splits]:
        for name in SPLIT_FILES:
            self.stored.file(name)
        prepared = prepare_again(self.run_id, self.stored.params, self.config, self.here)
        return prepared, read_splits(self.stored.folder, prepared.manifest)

    @property
    def runner(self) -> Runner:
        """What runs networks over its images."""
        training = self.config.training
        return Runner(
            prepared=self.prepared,
            device=in_full_precision(choose_device(training)),
            batch_size=training.batch_size,
        )

    def without_files(self) -> "FinishedRun":
        """Return the run as if it kept no file."""
        nowhere = Path(os.devnull)  # which holds no file
        return FinishedRun(replace(self.stored, artifact_uri="", folder=nowhere), self.here)

    def require_settings(self) -> Config:
        """Return the settings as the run keeps them.

        Raises:
            TrackingError: it keeps none.
        """
        return self.settings or load_config(self.stored.file(CONFIG))

    def require_history(self) -> list[dict[str, float]]:
        """Return the history.

        Raises:
            TrackingError: no epoch is finished yet.
        """
        self.stored.file(HISTORY)
        if not self.history:
            raise TrackingError(f"run {self.run_id} has no finished epoch yet")
        return self.history


@contextmanager
def open_finished(run_id: str, here: Here = AS_IN_THE_RUN) -> Iterator[FinishedRun]:
    """Read a run whose training is over; its files live as long as the block.

    Raises:
        TrackingError: there is no such run, or the tracking store is away.
    """
    with tracking.opened(run_id) as stored:
        yield FinishedRun(stored, here)


def of_checkpoint(checkpoint: Path, here: Here = AS_IN_THE_RUN) -> FinishedRun:
    """Return the run that a checkpoint is of, with what is in its folder."""
    spec = ModelSpec.from_json(load_checkpoint(checkpoint)["spec"])
    stored = RunFolder(
        run_id=spec.run_id,
        params={"resolved.data_fingerprint": spec.data_fingerprint},
        tags={},
        status="FINISHED",
        folder=checkpoint.parent,
    )
    return FinishedRun(stored, here, checkpoint.name)


def _read_json(path: Path, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """Read a JSON file that a run keeps, a list or a dict.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path.name} of the run is damaged: {_DAMAGED}") from error
    if not isinstance(values, kind):
        raise ArtifactError(f"{path.name} of the run is damaged: {_DAMAGED}")
    return values

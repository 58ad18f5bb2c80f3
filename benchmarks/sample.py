"""A part of a data folder, as our training reads it and as the baseline does."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dermalyze.config.schema import Config
from dermalyze.data.location import find_data
from dermalyze.data.preparation import prepare
from dermalyze.data.splits import split_groups
from dermalyze.evaluation.predictions import targets_of
from dermalyze.training.loop import LearningData

IMAGES = Path("build/benchmarks/images")
PREPARED = Path("build/benchmarks/prepared")


@dataclass(frozen=True)
class Sample:
    """The same images twice: rows of the pixel store, and JPEG files."""

    data: LearningData
    folder: Path  # with the files
    image_ids: tuple[str, ...]  # of the store's rows

    def files(self, rows: NDArray[np.int64]) -> tuple[list[Path], list[int]]:
        """Return the files and class indices of (n,) rows."""
        paths = [self.folder / f"{self.image_ids[row]}.jpg" for row in rows]
        return paths, self.data.targets[rows].tolist()


def take(data_dir: str, config: Config, num_train: int, num_val: int) -> Sample:
    """Draw images of the training and the validation split; the class shares stay.

    The JPEG files are written to `build/benchmarks/images`, once.
    """
    folder, _ = find_data(data_dir, make=True)
    settings = dataclasses.replace(config.data, prepared=str(PREPARED), allow_problems=True)
    prepared = prepare(folder, settings)
    splits = split_groups(
        prepared.manifest, val_size=config.data.val_size, test_size=config.data.test_size, seed=42
    )
    rng = np.random.default_rng(0)
    train = rng.permutation(splits.train)[:num_train]
    val = rng.permutation(splits.val)[:num_val]
    image_ids = tuple(prepared.manifest["image_id"])
    files = IMAGES / prepared.fingerprint[:12]
    files.mkdir(parents=True, exist_ok=True)
    for row in (*train, *val):
        path = files / f"{image_ids[row]}.jpg"
        if not path.exists():
            path.write_bytes(prepared.read_image_bytes(image_ids[row]))
    names = prepared.taxonomy.names
    data = LearningData(
        store=prepared.store,
        class_names=names,
        targets=targets_of(prepared.manifest, prepared.taxonomy),
        train=train,
        val=val,
    )
    return Sample(data, files, image_ids)

"""What a run began with: written down when the run is made, compared whenever it is resumed.

Settings of the machine, such as its device, are no part of that.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dermalyze.config.loading import config_from, setting_names
from dermalyze.config.schema import Config, flatten
from dermalyze.data.demo.dataset import is_demo
from dermalyze.data.preparation import Prepared
from dermalyze.data.splits import SPLITS, Splits, split_digest
from serving.errors import DataError, TrainingError

BEGAN_TAG = "dermalyze.began_with"
MACHINE_SETTINGS = (
    "data.prepared",
    "data.splits",
    "model.plugins",
    "model.pretrained",
    "training.device",
    "training.num_workers",
    "tracking.timeout_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Began:
    """What a run began with."""

    config: Config
    data_dir: Path
    demo_data: bool  # whether the images are drawn
    splits: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # images, and their digest
    pixels: str = ""  # digest of the pixel store
    settings: tuple[str, ...] = tuple(flatten(Config()))  # names of all that there were then

    @classmethod
    def here(cls, config: Config, data_dir: Path) -> "Began":
        """Return what a new run on a data folder begins with."""
        return cls(config=config, data_dir=data_dir, demo_data=is_demo(data_dir))

    def with_data(self, prepared: Prepared, splits: Splits) -> "Began":
        """Return the same with the digests of the images."""
        rows = {name: getattr(splits, name) for name in SPLITS}
        return dataclasses.replace(
            self,
            splits={
                name: (len(rows[name]), split_digest(prepared.manifest, rows[name]))
                for name in SPLITS
            },
            pixels=prepared.pixels,
        )

    def tags(self) -> dict[str, str]:
        """Return the tag that holds all of it."""
        values = {
            "config": dataclasses.asdict(self.config),
            "data_dir": str(self.data_dir.resolve()),
            "demo_data": self.demo_data,
            "splits": self.splits,
            "pixels": self.pixels,
        }
        return {BEGAN_TAG: json.dumps(values, separators=(",", ":"))}

    def require_same_config(self, config: Config, where: str) -> None:
        """Refuse settings, read from `where`, that the run did not begin with."""
        then, now = flatten(self.config), flatten(config)
        for name in self.settings:
            if name not in MACHINE_SETTINGS and now[name] != then[name]:
                raise TrainingError(
                    f"{where} has {name} {now[name]!r}, and the run began with {then[name]!r}; "
                    "undo that, or train a new run"
                )

    def require_same_data(self, prepared: Prepared, splits: Splits) -> None:
        """Refuse splits and pixels that the run did not begin with."""
        now = self.with_data(prepared, splits)
        for name, (num_images, digest) in self.splits.items():
            if now.splits[name] != (num_images, digest):
                found = now.splits[name][0]
                difference = (
                    f"has {found} images, and the run began with {num_images}"
                    if found != num_images
                    else f"has {found} images, which are not those that the run began with"
                )
                raise DataError(f"{name}_split.csv {difference}; undo that, or train a new run")
        self.require_same_pixels(prepared)

    def require_same_pixels(self, prepared: Prepared) -> None:
        """Refuse pixels that the run did not begin with."""
        if self.pixels and prepared.pixels != self.pixels:
            raise DataError(
                f"the pixels in {prepared.stored.folder} are not those that the run began with; "
                "they were changed, or decoded by another version of Pillow"
            )


def began_with(tags: Mapping[str, str]) -> Began | None:
    """Read what a run began with from its tags; None: an older version made the run."""
    if BEGAN_TAG not in tags:
        return None
    values = json.loads(tags[BEGAN_TAG])
    return Began(
        config=config_from(values["config"]),
        data_dir=Path(values["data_dir"]),
        demo_data=values["demo_data"],
        splits={name: (number, digest) for name, (number, digest) in values["splits"].items()},
        pixels=values["pixels"],
        settings=tuple(setting_names(values["config"])),
    )

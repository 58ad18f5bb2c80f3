"""Do maps of evidence point at the lesion?  Measured on lesion masks, against two baselines.

N images, H x W pixels of a mask, h x w places of a map, R replicates.  Never imports torch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermalyze.evaluation.metrics.classification import Floats
from dermalyze.evaluation.predictions import for_spreadsheet, from_spreadsheet
from dermalyze.evaluation.scores import Scored
from dermalyze.evaluation.statistics.bootstrap import Basis, Interval, interval_of, lesion_weights
from dermalyze.evaluation.uncertainty.out_of_distribution import lesion_shares
from serving.atomic_write import whole_file
from serving.errors import DataError

EXPLANATIONS = "explanations.csv"
CENTER_SIGMA = 0.25  # of the baseline "center Gaussian", a share of each side
MEASURES = ("mass", "pointing")
_NUMBERS = [f"{name}{end}" for name in MEASURES for end in ("", "_uniform", "_center")]


@dataclass(frozen=True, kw_only=True)
class MapMeasure:
    """A measure of maps, of the two baselines, and the paired differences to these."""

    map: Interval
    uniform: Interval
    over_uniform: Interval
    center: Interval
    over_center: Interval


@dataclass(frozen=True, kw_only=True)
class MapsCheck:
    """Whether maps of evidence point at lesions."""

    num_images: int
    num_left_out: int
    mass: MapMeasure
    pointing: MapMeasure
    center_sigma: float = CENTER_SIGMA


def measure_maps(
    image_ids: list[str],
    lesion_ids: list[str],
    maps: NDArray[np.float32],
    masks: list[NDArray[np.bool_]],
) -> pd.DataFrame:
    """Measure each map against its mask: one row per measurable image.

    `mass` is the share of the map's sum that lies inside the lesion; `pointing` whether its
    maximum does (Zhang et al., "Top-down neural attention by excitation backprop", 2018, section
    4.2).  `mass_center` and so on are those of a Gaussian around the middle of the image, of
    `uniform` those of a map that is the same everywhere: the lesion's share of the image.  An
    image without lesion, or with nothing else, and an empty map cannot be measured.

    Args:
        image_ids: of the N images.
        lesion_ids: likewise.
        maps: (N, h, w), at least 0.
        masks: N of (H, W).
    """
    rows = []
    for image_id, lesion_id, small, mask in zip(image_ids, lesion_ids, maps, masks, strict=True):
        if mask.all() or not mask.any() or small.max() <= 0:
            continue
        shown = enlarged(small, mask.shape)
        center = center_gaussian(mask.shape)
        rows.append(
            {
                "image_id": image_id,
                "lesion_id": lesion_id,
                "mass": float(shown[mask].sum() / shown.sum()),
                "mass_uniform": float(mask.mean()),
                "mass_center": float(center[mask].sum() / center.sum()),
                "pointing": float(mask.flat[shown.argmax()]),
                "pointing_uniform": float(mask.mean()),
                "pointing_center": float(mask[mask.shape[0] // 2, mask.shape[1] // 2]),
            }
        )
    return pd.DataFrame(rows, columns=["image_id", "lesion_id", *_NUMBERS])


def check_maps(table: pd.DataFrame, scored: Scored, replicates: int) -> MapsCheck:
    """Summarize what `measure_maps` gave for one or more of the images, each lesion once."""
    rows = pd.Index(scored.table["image_id"]).get_indexer(pd.Index(table["image_id"]))
    _, lesions = np.unique(scored.lesions[rows], return_inverse=True)
    shares = lesion_shares(lesions)
    drawn = lesion_weights(lesions, replicates, 0) * shares
    basis = Basis(num_lesions=int(lesions.max()) + 1, unit=scored.group_by)

    def mean(values: Floats) -> Interval:
        means = drawn @ values / drawn.sum(axis=1)
        return interval_of(float(shares @ values), means, basis)

    def measure(name: str) -> MapMeasure:
        ours, uniform, center = (
            table[f"{name}{end}"].to_numpy(np.float64) for end in ("", "_uniform", "_center")
        )
        return MapMeasure(
            map=mean(ours),
            uniform=mean(uniform),
            over_uniform=mean(ours - uniform),
            center=mean(center),
            over_center=mean(ours - center),
        )

    return MapsCheck(
        num_images=len(table),
        num_left_out=len(scored) - len(table),
        mass=measure("mass"),
        pointing=measure("pointing"),
    )


def write_explanations(folder: Path, table: pd.DataFrame | None) -> None:
    """Write what `measure_maps` gave into an evaluation folder, or remove it if it is empty."""
    path = folder / EXPLANATIONS
    if table is None or table.empty:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as partial:
        for_spreadsheet(table).to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")


def read_explanations(folder: Path) -> pd.DataFrame | None:
    """Read what `measure_maps` gave from an evaluation folder; None: it is not there.

    Raises:
        DataError: it is no such table.
    """
    path = folder / EXPLANATIONS
    if not path.exists():
        return None
    kinds = {"image_id": str, "lesion_id": str, **dict.fromkeys(_NUMBERS, np.float64)}
    try:
        table = pd.read_csv(path, dtype=kinds, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not what `dermalyze evaluate` wrote; remove it") from error
    if missing := [name for name in kinds if name not in table]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; remove it")
    return from_spreadsheet(table)


def enlarged(small: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Enlarge a map smoothly: (h, w) -> (H, W), at least 0."""
    image = Image.fromarray((small / small.max()).astype(np.float32))
    large = image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(large, np.float64).clip(0)


def center_gaussian(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the baseline that knows only where photographers put a lesion: (H, W)."""
    rows, columns = (
        np.exp(-((((np.arange(side) + 0.5) / side - 0.5) / CENTER_SIGMA) ** 2) / 2)
        for side in shape
    )
    return np.asarray(rows[:, None] * columns)

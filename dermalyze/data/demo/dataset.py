"""A synthetic HAM10000 look-alike in the files and layout of the real one; drawn by demo_drawing.

For trying the program out; what a network learns from it means nothing.  Never reads an image.
"""

import csv
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dermalyze.config.schema import require, require_choice
from dermalyze.data.demo.drawing import KINDS, STYLES, Random, draw_scene, photograph
from serving.atomic_write import PARTIAL, whole_folder
from serving.errors import DataError

VERSION = 2  # of the drawings: another one means other bytes
LAYOUTS = ("zips", "folders")
DEFAULT_STYLE, *_ = STYLES
MARKER = "demo.json"
PARTS = ("HAM10000_images_part_1", "HAM10000_images_part_2")
MASKS = "HAM10000_segmentations_lesion_tschandl"
METADATA = "HAM10000_metadata.csv"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
MIN_IMAGES, MIN_LESIONS = 6, 5  # of each class: three splits need them
IMAGES_PER_LESION = 10015 / 7470
PLACES = ("back", "lower extremity", "trunk", "upper extremity", "abdomen", "face", "chest", "foot")
MISSING = {"age": 0.006, "sex": 0.006, "localization": 0.023}  # fraction of the lesions, as there


def make_demo_data(
    folder: Path,
    *,
    num_images: int = 840,
    seed: int = 0,
    layout: str = "zips",
    style: str = DEFAULT_STYLE,
) -> Path:
    """Draw the demo data into `folder`, whole or not at all, and return it.

    Equal arguments, equal bytes; a folder that holds this very demo is left as it is.  Another
    style draws other lesions, which have other ids.

    Raises:
        ConfigError: too few images to split, a negative seed, or an unknown layout or style.
        DataError: the folder holds something else.
    """
    least = MIN_IMAGES * len(KINDS)
    require(num_images >= least, "num_images", f"at least {least}", num_images)
    require(seed >= 0, "seed", "at least 0", seed)
    require_choice("layout", layout, LAYOUTS)
    require_choice("style", style, tuple(STYLES))
    wanted = {"num_images": num_images, "seed": seed, "layout": layout, "version": VERSION}
    if style != DEFAULT_STYLE:
        wanted["style"] = style
    marker = json.dumps(wanted) + "\n"
    if _holds(folder, marker):
        return folder
    with whole_folder(folder, wait=True) as made:
        if not _holds(folder, marker):  # another call may have been faster
            _write(made, _records(num_images, seed), wanted)
            (made / MARKER).write_text(marker, encoding="utf-8")
    return folder


def is_demo(folder: Path) -> bool:
    """Return whether a data folder holds demo data."""
    return (folder / MARKER).is_file()


def _holds(folder: Path, marker: str) -> bool:
    """Whether `folder` holds this demo; False if it is empty or not there."""
    if not folder.exists():
        return False
    path = folder / MARKER
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == marker:
        return True
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {PARTIAL}:
        raise DataError(
            f"{folder} holds something other than this demo data; name a new or an empty folder"
        )
    return False


def _random(seed: int, purpose: str, index: int = 0) -> Random:
    """Return a generator for one thing alone, so that nothing depends on an order of drawing."""
    return np.random.default_rng([seed, VERSION, index, *purpose.encode()])


def _class_counts(num_images: int) -> dict[str, int]:
    """Share `num_images` out as in the real set, but with a floor for the rare classes."""
    floor = max(MIN_IMAGES, num_images // 12)
    counts = dict.fromkeys(KINDS, floor)
    for _ in range(num_images - sum(counts.values())):  # Sainte-Lague: to the furthest below
        counts[min(counts, key=lambda label: (counts[label] + 0.5) / KINDS[label].num_images)] += 1
    return counts


def _records(num_images: int, seed: int) -> list[dict[str, str]]:
    """Make up one row of metadata an image, in the order of the image ids."""
    random = _random(seed, "records")
    lesions: list[dict[str, str]] = []
    owners: list[int] = []  # of the images: an index into `lesions`
    for label, count in _class_counts(num_images).items():
        num_lesions = max(MIN_LESIONS, round(count / IMAGES_PER_LESION))
        first, (_, mean_age, types, _) = len(lesions), KINDS[label]
        for _ in range(num_lesions):
            age = round(np.clip(random.normal(mean_age, 14), 5, 85) / 5) * 5
            dx_type = str(random.choice(list(types), p=list(types.values())))
            sex, place = str(random.choice(["male", "female"])), str(random.choice(PLACES))
            values = ("", "", label, dx_type, f"{age:.1f}", sex, place)
            lesions.append(dict(zip(COLUMNS, values, strict=True)))
        seen_again = random.integers(first, len(lesions), count - num_lesions)
        owners += [*range(first, len(lesions)), *seen_again.tolist()]
    for column, fraction in MISSING.items():
        num_missing = max(1, round(fraction * len(lesions)))
        for lesion in random.choice(len(lesions), num_missing, replace=False):
            lesions[lesion][column] = "" if column == "age" else "unknown"
    # Ids in a mixed order, for an id must not tell the class.
    for lesion, number in enumerate(random.permutation(len(lesions))):
        lesions[lesion]["lesion_id"] = f"DEMO_L{number + 1:05d}"
    return [
        {**lesions[owner], "image_id": f"DEMO_{number:07d}"}
        for number, owner in enumerate(random.permutation(owners), start=1)
    ]


def _write(folder: Path, rows: list[dict[str, str]], wanted: Mapping[str, Any]) -> None:
    style = STYLES[wanted.get("style", DEFAULT_STYLE)]
    # Another clinic has other patients: nothing of what it shows was drawn for the first one.
    seed = wanted["seed"] + (1_000_003 if "style" in wanted else 0)
    rows = [
        {**row, **{name: f"OTHER_{row[name]}" for name in ("lesion_id", "image_id")}}
        if "style" in wanted
        else row
        for row in rows
    ]
    with (folder / METADATA).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    photographs: dict[str, bytes] = {}
    masks: dict[str, bytes] = {}
    lesion = 0
    rows = sorted(rows, key=lambda row: row["lesion_id"])  # each scene is drawn once
    for row in tqdm(rows, "drawing", unit="image", disable=None):
        number = int(row["lesion_id"].rpartition("_L")[2])
        if number != lesion:
            lesion, scene = number, draw_scene(row["dx"], _random(seed, "scene", number))
        of_view = _random(seed, "view", int(row["image_id"].rpartition("_")[2]))
        picture, mask = photograph(scene, _random(seed, "hair", number), of_view, style)
        photographs[f"{row['image_id']}.jpg"] = _encoded(picture, "JPEG", style.quality)
        masks[f"{row['image_id']}_segmentation.png"] = _encoded(mask, "PNG", 0)
    names = sorted(photographs)
    half = len(names) // 2
    parts = {
        part: {name: photographs[name] for name in chosen}
        for part, chosen in zip(PARTS, (names[:half], names[half:]), strict=True)
    }
    for part, files in {**parts, MASKS: masks}.items():
        if wanted["layout"] == "folders":
            (folder / part).mkdir()
            for name, data in files.items():
                (folder / part / name).write_bytes(data)
            continue
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as file:  # stored: the files are dense
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)  # its date is 1980, always
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                file.writestr(entry, files[name])


def _encoded(image: Image.Image, kind: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()

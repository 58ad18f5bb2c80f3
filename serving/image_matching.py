"""Which image file a row of a table means, and how either may be written.

`ISIC_1`, `isic_1.JPG`, `images/ISIC_1.jpg`, `C:\\images\\ISIC_1.jpg.jpg` and
`ISIC_1_downsampled.jpg` mean one image, unless the table or the disk has several of them.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from serving.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png")
_DOWNSAMPLED = "_downsampled"  # ISIC adds it to reduced images


class _Name(NamedTuple):
    folders: tuple[str, ...]  # outermost first, as written
    stem: str  # the last part, as written, without suffixes of images
    suffix: str  # the first of those, in small letters


@dataclass(frozen=True)
class Matches:
    """Which ids mean which files, by their positions."""

    files: tuple[tuple[int, ...], ...]  # for each id; several: nothing tells them apart
    ids: tuple[tuple[int, ...], ...]  # for each file; several: as many rows mean it


def has_image_suffix(name: str) -> bool:
    """Say whether a file is JPEG or PNG by its name."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def plain_id(text: str) -> tuple[str, str]:
    """Return the id of an image without folders and suffix, and with its folders."""
    name = _parsed(text)
    return name.stem, "/".join((*name.folders, name.stem))


def match(ids: Sequence[str], files: Sequence[str]) -> Matches:
    """Find out which files the ids of a table mean.

    A file is meant if its name is that of the id, whatever its folder, case and suffix.  Where
    several are, the folders that an id names decide, then its suffix.  Where ids differ by nothing
    but case or folder, each file belongs to the id that it fits best.

    Args:
        ids: different ones, as the table has them.
        files: paths; the more folders, the better.
    """
    names, paths = [_parsed(text) for text in ids], [_parsed(text) for text in files]
    named: dict[str, list[int]] = {}
    for position, path in enumerate(paths):
        named.setdefault(_key(path.stem), []).append(position)
    rivals: dict[str, list[_Name]] = {}
    for name in names:
        rivals.setdefault(_key(name.stem), []).append(name)
    fit = [
        {
            position: how
            for position in named.get(_key(name.stem), [])
            if (how := _fit(name, paths[position], rivals[_key(name.stem)])) is not None
        }
        for name in names
    ]
    best: dict[int, tuple[int, bool]] = {}  # of a file, among all ids
    for of_id in fit:
        for position, (place, _) in of_id.items():
            best[position] = max(place, best.get(position, place))
    found: list[tuple[int, ...]] = []
    meant: list[list[int]] = [[] for _ in files]
    for number, of_id in enumerate(fit):
        own = {file: how for file, how in of_id.items() if how[0] == best[file]}
        chosen = tuple(file for file, how in own.items() if how == max(own.values()))
        found.append(chosen)
        for file in chosen:
            meant[file].append(number)
    return Matches(tuple(found), tuple(tuple(numbers) for numbers in meant))


def match_files(ids: Sequence[str], paths: Sequence[Path], table: object) -> Matches:
    """Match the ids of a table with files on disk, all of whose folders count.

    Raises:
        DataError: a row may mean several of the files.
    """
    found = match(ids, [str(path.absolute()) for path in paths])
    for image_id, numbers in zip(ids, found.files, strict=True):
        if len(numbers) > 1:
            raise DataError(
                f"{image_id!r} of {table} may be {paths[numbers[0]]} or {paths[numbers[1]]}; write "
                "folder and suffix into its image_id"
            )
    return found


def _fit(name: _Name, path: _Name, rivals: Sequence[_Name]) -> tuple[tuple[int, bool], bool] | None:
    """Say how well a file fits an id: by folders, by case, by suffix; None: not at all.

    `rivals` are the ids of that name: folders and case matter where they differ in them.
    """
    common = 0
    for one, other in zip(reversed(name.folders), reversed(path.folders), strict=False):
        if _folded(one) != _folded(other):
            break
        common += 1
    if name.folders and not common and any(name.folders != rival.folders for rival in rivals):
        return None
    exact = any(name.stem != rival.stem for rival in rivals) and name.stem == path.stem
    return (common, exact), name.suffix == path.suffix


def _parsed(text: str) -> _Name:
    parts = text.strip().replace("\\", "/").split("/")
    *folders, stem = [part for part in parts if part not in ("", ".")] or [""]
    first = ""
    while suffix := next((s for s in IMAGE_SUFFIXES if stem.lower().endswith(s)), ""):
        stem, first = stem[: -len(suffix)], first or suffix
    return _Name(tuple(folders), stem, first)


def _key(stem: str) -> str:
    return _folded(stem).removesuffix(_DOWNSAMPLED)


def _folded(text: str) -> str:
    """Forget case, and in which of two ways an accent is encoded: macOS has its own."""
    return unicodedata.normalize("NFC", text).casefold()

"""What `auto` stands for: HAM10000 where it lies, else demo data, and the config that fits."""

from pathlib import Path

from dermalyze.data.demo.dataset import is_demo, make_demo_data
from serving.errors import DataError
from serving.os_errors import reading

REAL = Path("data/HAM10000")
DEMO = Path(".dermalyze/demo-data")
_PLACES = [Path(__file__).parents[level] / "configs" for level in (1, 2)]  # in a wheel, a checkout


def find_data(data_dir: str, *, make: bool) -> tuple[Path, bool]:
    """Return the data's folder and whether it holds demo data; with `make`, draw that if needed.

    Args:
        data_dir: a folder, `demo` for the demo data, or `auto` for HAM10000 if it is there;
            `./demo` and `./auto` are folders.
        make: draw the demo data if they are asked for and not there.

    Raises:
        DataError: the folder does not exist.
        StorageError: it cannot be looked up.
    """
    if data_dir not in ("auto", "demo"):
        folder = Path(data_dir)
        with reading(folder):
            if not folder.is_dir():
                raise DataError(
                    f"no folder {folder}; --data-dir takes a folder of images, demo or auto"
                )
            return folder, is_demo(folder)
    if data_dir == "auto" and REAL.is_dir():
        return REAL, is_demo(REAL)
    if make:
        make_demo_data(DEMO)
    return DEMO, True


def config_path(demo_data: bool) -> Path:
    """Return the config that fits the data."""
    folder = next(place for place in _PLACES if place.is_dir())
    return folder / ("demo.yaml" if demo_data else "default.yaml")

"""The reference model: the file that answers where no other is named.

It lies beside this package and not in it, or every model that is logged to MLflow would hold a
copy.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.spec import ModelSpec

REFERENCE = Path(__file__).parents[1] / "dermalyze" / "reference" / "model.onnx"


def in_words(path: Path | str, spec: "ModelSpec") -> str:
    """Say which model answers, and under which license its data is."""
    name = "the reference model of this installation" if Path(path) == REFERENCE else str(path)
    license = (
        f"; data license, also of the weights: {spec.data_license}" if spec.data_license else ""
    )
    return f"{name}, run {spec.run_id or 'unknown'}, {spec.precision}{license}"

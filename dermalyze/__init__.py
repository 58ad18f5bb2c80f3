"""The training half of Dermalyze: from HAM10000's files to a judged, exported, registered model.

For education and research; a prediction is never a diagnosis.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dermalyze.models.torch_predictor import SkinLesionPredictor as SkinLesionPredictor

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "SkinLesionPredictor":
        from dermalyze.models.torch_predictor import SkinLesionPredictor

        return SkinLesionPredictor
    raise AttributeError(f"module 'dermalyze' has no attribute {name!r}")

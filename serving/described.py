"""What a page or a program needs to know of a model before it asks."""

from importlib import metadata
from typing import Any

from serving.explanation import MAP_IN_WORDS
from serving.spec import ModelSpec


def _installed_version() -> str:
    try:
        return metadata.version("dermalyze")
    except metadata.PackageNotFoundError:  # the folder alone, as MLflow copies it
        return "unknown"


VERSION = _installed_version()


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Describe the program and a model, ready for JSON; what the model lacks is null or empty."""
    return {
        "version": VERSION,
        "run_id": spec.run_id,
        "class_names": list(spec.class_names),
        "class_descriptions": list(spec.class_descriptions),
        "input_size": list(spec.input_size),  # height, width; pixels
        "resize_mode": spec.resize_mode,
        "precision": spec.precision,
        "num_views": spec.num_views,
        "num_members": spec.num_members,
        "levels": list(spec.prediction_sets.levels) if spec.prediction_sets else [],
        "decides": spec.abstention is not None,
        "saliency": spec.saliency,
        "saliency_in_words": MAP_IN_WORDS.get(spec.saliency, ""),
        "metadata": {
            "sexes": list(spec.metadata.sexes),
            "localizations": list(spec.metadata.localizations),
        }
        if spec.metadata
        else None,
        "calibrated_on": spec.calibrated_on,
        "data_license": spec.data_license,
        "disclaimer": spec.disclaimer,
    }

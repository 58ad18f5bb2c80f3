"""What a page or a program needs to know of a model before it asks."""

from importlib import metadata
from typing import Any

from serving.explanation import MAP_IN_WORDS
from serving.spec import ModelSpec
from serving.taxonomy import Taxonomy


def _installed_version() -> str:
    try:
        return metadata.version("dermalyze")
    except metadata.PackageNotFoundError:  # the folder alone, as MLflow copies it
        return "unknown"


VERSION = _installed_version()


def _described(taxonomy: Taxonomy) -> dict[str, Any]:
    """Describe the classes; `malignant` is there only where the data set says which are."""
    return {
        "class_names": list(taxonomy.names),
        "class_descriptions": list(taxonomy.descriptions),
        **({"malignant": list(taxonomy.malignant)} if taxonomy.malignant else {}),
        "data_title": taxonomy.title,
        "data_license": taxonomy.license,
        "data_citation": taxonomy.citation,
    }


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Describe the program and a model, ready for JSON; what the model lacks is null or empty."""
    return {
        "version": VERSION,
        "run_id": spec.run_id,
        **_described(spec.taxonomy),
        "input_size": list(spec.input_size),  # height, width; pixels
        "resize_mode": spec.resize_mode,
        "precision": spec.precision,
        "num_views": spec.num_views,
        "num_members": spec.num_members,
        "levels": list(spec.prediction_sets.levels) if spec.prediction_sets else [],
        "sensitivities": list(spec.referral.levels) if spec.referral else [],
        "decides": spec.abstention is not None,
        "saliency": spec.saliency,
        "saliency_in_words": MAP_IN_WORDS.get(spec.saliency, ""),
        "metadata": {
            "age": "age" in spec.metadata.columns,
            "sexes": list(spec.metadata.sexes),
            "localizations": list(spec.metadata.localizations),
        }
        if spec.metadata
        else None,
        "calibrated_on": spec.calibrated_on,
        "disclaimer": spec.disclaimer,
    }

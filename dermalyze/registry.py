"""The model registry: versions, the newest one as `challenger`, the best as `champion`.

With `tracking.py` the only module of the training half that knows MLflow.
"""

import logging
from dataclasses import dataclass

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dermalyze.tracking import use_store
from serving.errors import TrackingError

CHALLENGER = "challenger"
CHAMPION = "champion"
_SPLIT_TAG = "dermalyze.test_split"  # digest of the images and labels that judged the version
_METRIC_TAG = "dermalyze.metric"
_VALUE_TAG = "dermalyze.value"
_DEMO_TAG = "dermalyze.demo_data"
_REASON_TAG = "dermalyze.champion_reason"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that wants to be a version, and what it is judged by."""

    model_uri: str
    run_id: str
    metric: str  # such as test/balanced_accuracy; higher is better
    value: float
    test_split: str  # digest of the test images and their labels
    demo_data: bool
    description: str


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of a candidate."""

    name: str
    version: str
    is_champion: bool
    reason: str  # why it is, or is not


def register(name: str, candidate: Candidate) -> Registered:
    """Make a version of `candidate`, point `challenger` at it, and `champion` if it is better.

    A run that was resumed after it had registered its model keeps its version.

    Raises:
        TrackingError: the registry does not answer or refuses the name.
    """
    use_store()
    client = MlflowClient()
    try:
        version = _version_of(client, name, candidate)
        client.set_registered_model_alias(name, CHALLENGER, version)
        champion = _champion(client, name)
        is_champion, reason = judge(candidate, champion)
        if champion is not None and champion["version"] == version:
            is_champion, reason = True, champion.get(_REASON_TAG, reason)
        elif is_champion:
            client.set_registered_model_alias(name, CHAMPION, version)
        tags = {
            _SPLIT_TAG: candidate.test_split,
            _METRIC_TAG: candidate.metric,
            _VALUE_TAG: repr(candidate.value),
            _DEMO_TAG: str(candidate.demo_data).lower(),
            _REASON_TAG: reason,
        }
        for key, value in tags.items():
            client.set_model_version_tag(name, version, key, value)
        client.update_model_version(name, version, description=candidate.description)
    except MlflowException as error:
        first_line = str(error).splitlines()[0][:200]
        raise TrackingError(f"cannot register the model {name}: {first_line}") from error
    return Registered(name=name, version=version, is_champion=is_champion, reason=reason)


def judge(candidate: Candidate, champion: dict[str, str] | None) -> tuple[bool, str]:
    """Decide whether a candidate replaces the champion, whose tags are given, and say why."""
    ours = f"{candidate.metric} {candidate.value:.4f}"
    if champion is None:
        return True, f"first champion, with {ours}"
    incumbent = f"version {champion['version']}"
    if champion.get(_DEMO_TAG) == "true" and not candidate.demo_data:
        return True, f"{ours} on real data; {incumbent} was trained on demo data"
    if champion.get(_SPLIT_TAG) != candidate.test_split:
        return False, f"not compared: {incumbent} was judged on another test split"
    if champion.get(_METRIC_TAG) != candidate.metric:
        theirs = champion.get(_METRIC_TAG, "nothing")
        return False, f"not compared: {incumbent} was judged by {theirs}, not {candidate.metric}"
    value = float(champion[_VALUE_TAG])
    if candidate.value > value:
        return True, f"{ours} is better than {value:.4f} of {incumbent} on the same test split"
    return False, f"{ours} is not better than {value:.4f} of {incumbent} on the same test split"


def _version_of(client: MlflowClient, name: str, candidate: Candidate) -> str:
    own = client.search_model_versions(f"name='{name}' and run_id='{candidate.run_id}'")
    for version in own:
        if version.source == candidate.model_uri:
            return str(version.version)
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return str(mlflow.register_model(candidate.model_uri, name).version)
    finally:
        logger.setLevel(level)


def _champion(client: MlflowClient, name: str) -> dict[str, str] | None:
    try:
        version = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    return {**version.tags, "version": str(version.version)}

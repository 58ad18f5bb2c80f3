"""The model registry: versions, the newest one as `challenger`, the best as `champion`.

With `tracking.py` the only module of the training half that knows MLflow.
"""

import logging
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dermalyze.config.schema import TrackingConfig
from dermalyze.evaluation.report.cards import REGISTRY_LIMIT, shortened
from dermalyze.evaluation.report.folder import PREDICTIONS
from dermalyze.evaluation.scores import Scored, read_scored
from dermalyze.evaluation.statistics.noninferiority import Decision, Rule, compare_with_champion
from dermalyze.tracking import (
    BoundedClient,
    StoreAwayError,
    call,
    fetch,
    first_line,
    is_missing,
    quiet,
    use_store,
)
from serving.errors import DermalyzeError, TrackingError
from serving.os_errors import temporary_folder, writing

logger = logging.getLogger(__name__)

CHALLENGER = "challenger"
CHAMPION = "champion"
_SPLIT_TAG = "dermalyze.test_split"  # digest of the images and labels that judged the version
_DEMO_TAG = "dermalyze.demo_data"
_REFERENCE_TAG = "dermalyze.reference"  # checksum of the file that came with the installation
_PARITY_TAG = "dermalyze.parity"
_REASON_TAG = "dermalyze.champion_reason"
_NUMBER_TAGS = "dermalyze.promotion."
_EVALUATION = "evaluation"
_LARGEST_MODEL = 1e9  # bytes, whose transfer is waited for
_PROMOTION = "\n\nPromotion to champion. "  # begins the last part of a description


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that wants to be a version, and what it is judged by."""

    model_uri: str
    run_id: str
    test_split: str  # digest of the test images and their labels
    demo_data: bool
    parity: str  # how far the file and PyTorch are apart, in words; empty: not proven
    description: str
    predictions: Scored | None  # of the test split; None: the reference model
    reference: str = ""  # its checksum, if it is the reference model


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of a candidate."""

    name: str
    version: str
    is_champion: bool
    reason: str  # why it is, or is not


def rule_of(tracking: TrackingConfig, *, must_be_better: bool) -> Rule:
    """Return the rule that the settings state."""
    return Rule(
        metric=tracking.champion_metric.removeprefix("test/"),
        margin=tracking.champion_margin,
        calibration_margin=tracking.champion_calibration_margin,
        must_be_better=must_be_better,
    )


def register(name: str, candidate: Candidate, rule: Rule) -> Registered:
    """Make a version of `candidate`, point `challenger` at it, and `champion` if it is better.

    A run that was resumed after it had registered its model keeps its version.

    Raises:
        TrackingError: the registry does not answer or refuses the name.
    """
    use_store()
    client = _client(name)
    version = _version_of(name, candidate)
    client.set_registered_model_alias(name, CHALLENGER, version)
    for key, value in {
        _SPLIT_TAG: candidate.test_split,
        _DEMO_TAG: str(candidate.demo_data).lower(),
        _PARITY_TAG: candidate.parity,
        **({_REFERENCE_TAG: candidate.reference} if candidate.reference else {}),
    }.items():
        client.set_model_version_tag(name, version, key, value)
    champion = _champion(client, name)
    if champion is not None and str(champion.version) == version:
        reason = champion.tags.get(_REASON_TAG, "resumed after it had become champion")
        decision = Decision(promoted=True, reason=reason, numbers={})
    else:
        decision = judge(candidate, champion, rule)
        _carry_out(client, name, version, decision, candidate.description)
    return Registered(
        name=name, version=version, is_champion=decision.promoted, reason=decision.reason
    )


def reference_version(name: str, reference: str) -> str:
    """Return the version of a model that is the reference model with this checksum, or nothing.

    Raises:
        TrackingError: the registry does not answer.
    """
    wanted = f"name='{name}' and tags.`{_REFERENCE_TAG}`='{reference}'"
    found = call(
        f"the registry refuses the model {name}",
        lambda: MlflowClient().search_model_versions(wanted),
    )
    return str(found[0].version) if found else ""


def promote(name: str, version: str, rule: Rule, *, anyway: bool) -> Registered:
    """Make a version the champion by hand, if it is no worse by the rule's margins.

    With `anyway` it becomes champion whatever the rule says, and its tags and description say so.

    Raises:
        TrackingError: there is no such version, or the registry does not answer.
    """
    use_store()
    client = _client(name)
    found = client.get_model_version(name, version)
    champion = _champion(client, name)
    if champion is not None and champion.version == found.version:
        raise TrackingError(f"version {version} of {name} is already the champion")
    reference = found.tags.get(_REFERENCE_TAG, "")
    candidate = Candidate(
        model_uri=found.source or "",
        run_id=found.run_id or "",
        test_split=found.tags.get(_SPLIT_TAG, ""),
        demo_data=found.tags.get(_DEMO_TAG) == "true",
        parity=found.tags.get(_PARITY_TAG, ""),
        description=(found.description or "").partition(_PROMOTION)[0],
        predictions=None if reference else _predictions(found.run_id or ""),
        reference=reference,
    )
    decision = judge(candidate, champion, rule)
    if anyway and not decision.promoted:
        reason = f"promoted by hand although the rule refused: {decision.reason}"
        decision = Decision(promoted=True, reason=reason, numbers=decision.numbers)
    _carry_out(client, name, str(found.version), decision, candidate.description)
    return Registered(
        name=name, version=version, is_champion=decision.promoted, reason=decision.reason
    )


def fetch_model(uri: str, path: Path) -> str:
    """Fetch the ONNX file of a model of MLflow, whole or not at all.

    Args:
        uri: models:/NAME@ALIAS, models:/NAME/VERSION or another address that MLflow knows.
        path: where the file shall be.

    Returns:
        The version that `version_of` names, if the address has an alias.

    Raises:
        TrackingError: there is no such model, or it holds no ONNX file.
    """
    use_store()
    version = version_of(uri)
    with writing(path), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            model = Path(
                call(
                    f"cannot fetch {uri}",
                    lambda: mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder),
                    num_bytes=_LARGEST_MODEL,
                )
            )
            flavor = mlflow.models.Model.load(str(model)).flavors["python_function"]
            (model / flavor["artifacts"]["onnx"]["path"]).replace(path)
        except StoreAwayError:
            raise
        except (TrackingError, MlflowException, OSError, KeyError) as error:
            why = error if isinstance(error, TrackingError) else f"cannot fetch {uri}: {error}"
            raise TrackingError(
                f"{first_line(why)}; expected a model that "
                "`dermalyze train` has registered, such as models:/dermalyze@champion"
            ) from error
    return version


def version_of(uri: str) -> str:
    """Return the version that an alias stands for now; empty: the address has no alias.

    Raises:
        TrackingError: there is no such model or alias.
    """
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if not alias:
        return ""
    use_store()
    client = BoundedClient(f"there is no {uri}")
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except StoreAwayError:
        raise
    except TrackingError as error:
        raise TrackingError(f"{error}; see `dermalyze promote --help`") from error


def follow(uri: str, path: Path, version: str, seconds: float) -> None:
    """Put each new version of `uri` at `path`, for ever.

    Args:
        uri: an address with an alias.
        path: the file that is served.
        version: the one that lies there.
        seconds: between two looks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which ends this too
    while True:
        time.sleep(seconds)
        try:
            if version_of(uri) != version:
                version = fetch_model(uri, path)
                logger.info(f"version {version} of {uri} is downloaded")
        except DermalyzeError as error:  # a server may come back, and a full disk get room
            logger.info(str(error))


def judge(candidate: Candidate, champion: Any | None, rule: Rule) -> Decision:
    """Decide whether a candidate replaces the champion, a version of the registry, and say why."""
    if not candidate.parity:
        return _refusal("its ONNX file has not passed the parity check with PyTorch")
    if champion is None:
        return Decision(promoted=True, reason="first champion", numbers={})
    incumbent = f"version {champion.version}"
    if champion.tags.get(_DEMO_TAG) == "true" and not candidate.demo_data:
        reason = f"trained on real data; {incumbent} was trained on demo data"
        return Decision(promoted=True, reason=reason, numbers={})
    if champion.tags.get(_REFERENCE_TAG) and not candidate.demo_data:
        reason = f"{incumbent} is the reference model, which gives way to any other"
        return Decision(promoted=True, reason=reason, numbers={})
    if candidate.predictions is None:
        return _refusal(f"{incumbent} was trained here, and this is the reference model")
    if champion.tags.get(_SPLIT_TAG) != candidate.test_split:
        return _refusal(f"not compared: {incumbent} was evaluated on another test split")
    try:
        theirs = _predictions(champion.run_id)
    except StoreAwayError:  # which says nothing about the champion
        raise
    except DermalyzeError as error:
        return _refusal(f"not compared: the predictions of {incumbent} are not available ({error})")
    return compare_with_champion(candidate.predictions, theirs, rule, incumbent)


def _carry_out(
    client: BoundedClient, name: str, version: str, decision: Decision, description: str
) -> None:
    """Write a decision down at its version, then move the alias."""
    client.set_model_version_tag(name, version, _REASON_TAG, decision.reason)
    for key, value in decision.numbers.items():
        client.set_model_version_tag(name, version, _NUMBER_TAGS + key, f"{value:.6g}")
    ending = f"{_PROMOTION}{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}"
    ending = ending[: REGISTRY_LIMIT // 2]
    text = shortened(description, REGISTRY_LIMIT - len(ending)).rstrip()
    client.update_model_version(name, version, description=text + ending)
    if decision.promoted:
        client.set_registered_model_alias(name, CHAMPION, version)


def _refusal(reason: str) -> Decision:
    return Decision(promoted=False, reason=reason, numbers={})


def _predictions(run_id: str) -> Scored:
    """Read the test predictions that a run has logged."""
    with temporary_folder() as folder:
        return read_scored(fetch(run_id, _EVALUATION, folder) / PREDICTIONS)


def _client(name: str) -> BoundedClient:
    return BoundedClient(f"the registry refuses the model {name}")


def _version_of(name: str, candidate: Candidate) -> str:
    """Return the version of a candidate, made if it is not there."""

    def find_or_make() -> Any:  # asked again, it finds what was made before its answer was lost
        own = MlflowClient().search_model_versions(f"name='{name}' and run_id='{candidate.run_id}'")
        same = [version for version in own if version.source == candidate.model_uri]
        return same[0] if same else mlflow.register_model(candidate.model_uri, name)

    with quiet("mlflow"):
        return str(call(f"the registry refuses the model {name}", find_or_make).version)


def _champion(client: BoundedClient, name: str) -> Any | None:
    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except TrackingError as error:
        if is_missing(error.__cause__):
            return None
        raise

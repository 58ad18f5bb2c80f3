"""The reference model in the registry, so that it can be served before any training."""

import hashlib

from dermalyze import tracking
from dermalyze.config.schema import TrackingConfig
from dermalyze.workflows.report import MODEL_CARD
from serving.predictor import Predictor
from serving.reference import REFERENCE


def register_reference(config: TrackingConfig) -> str:
    """Log the reference model in a run and register it; say what became of it.

    It becomes champion only where no model trained here is one.

    Raises:
        ArtifactError: this installation has no reference model.
        TrackingError: the tracking store is away or refuses the model.
    """
    from dermalyze.export.mlflow_arguments import pyfunc_arguments
    from dermalyze.tracking import registry

    spec = Predictor().spec
    name = config.registered_model
    checksum = hashlib.sha256(REFERENCE.read_bytes()).hexdigest()
    tracking.limit_calls(config.timeout_seconds)
    tracking.use_store()
    if version := registry.reference_version(name, checksum):
        return f"{name} version {version} is the reference model already"
    with tracking.open_run(config, name="reference model") as run:
        run.log_params({"reference": checksum, "data_license": spec.data_license})
        run.log_file(REFERENCE.with_name(MODEL_CARD))
        run.log_model(pyfunc_arguments(REFERENCE), {})
        run.deliver()
        registered = registry.register(
            name,
            registry.Candidate(
                model_uri=tracking.tags_of(run.run_id)[tracking.MODEL_URI_TAG],
                run_id=run.run_id,
                test_split="",
                demo_data=False,
                parity="checked when the reference model was made",
                description=REFERENCE.with_name(MODEL_CARD).read_text(encoding="utf-8"),
                predictions=None,
                reference=checksum,
            ),
            registry.rule_of(config, must_be_better=True),
        )
    verdict = "champion" if registered.is_champion else "not champion"
    return f"{name} version {registered.version}: {verdict} ({registered.reason})"

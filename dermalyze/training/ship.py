"""The end of a run: the best epoch judged on the test split, exported, proven, registered."""

from dataclasses import dataclass

from dermalyze.data.splits import split_digest
from dermalyze.evaluation.folder import write_evaluation
from dermalyze.evaluation.plots import save_training_curves
from dermalyze.export.onnx import export_onnx
from dermalyze.export.pyfunc_arguments import pyfunc_arguments
from dermalyze.models.checkpoint import load_classifier
from dermalyze.registry import Candidate, Registered, register
from dermalyze.training.device import in_full_precision
from dermalyze.training.job import BEST, CURVES, EVALUATION, MODEL, Job
from dermalyze.training.loop import predict_logits
from dermalyze.training.state import TrainingState
from serving.taxonomy import DISCLAIMER

_MODEL_URI_TAG = "dermalyze.model_uri"
_NUM_CHECK_IMAGES = 32  # test images that the exported file is checked on beside the drawn ones


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run came to."""

    run_id: str
    metrics: dict[str, float]  # test/...
    parity: str  # how far ONNX and PyTorch are apart, in words
    registered: Registered | None
    sample: bytes  # one test image, JPEG or PNG
    sample_id: str


def ship(job: Job, state: TrainingState, *, demo_data: bool) -> RunResult:
    """Evaluate, export, log and register the best epoch."""
    config, run = job.config, job.run
    metrics = _evaluate(job, state)
    parity, model_uri, sample_id, sample = _export(job, metrics)
    registered = None
    if config.tracking.register:
        registered = register(
            config.tracking.registered_model,
            Candidate(
                model_uri=model_uri,
                run_id=run.run_id,
                metric=config.tracking.champion_metric,
                value=metrics[config.tracking.champion_metric],
                test_split=split_digest(job.prepared.manifest, job.splits.test),
                demo_data=demo_data,
                description=_description(job, metrics, parity, demo_data=demo_data),
            ),
        )
        run.set_tags({"dermalyze.champion_reason": registered.reason})
    return RunResult(
        run_id=run.run_id,
        metrics=metrics,
        parity=parity,
        registered=registered,
        sample=sample,
        sample_id=sample_id,
    )


def _evaluate(job: Job, state: TrainingState) -> dict[str, float]:
    """Score the best epoch on the test split, log plots, tables and metrics."""
    classifier, _ = load_classifier(job.folder / BEST)
    device = in_full_precision(job.device)
    classifier.to(device.torch_device)
    rows = job.splits.test
    logits = predict_logits(
        classifier, job.prepared.store, rows, job.config.training.batch_size, device, "test"
    )
    metrics = write_evaluation(
        job.folder / EVALUATION,
        job.prepared.manifest.iloc[rows],
        logits,
        split="test",
        context={
            "run_id": job.run.run_id,
            "data_fingerprint": job.prepared.fingerprint,
            "best_epoch": state.best_epoch,
        },
    )
    job.run.log_file(job.folder / EVALUATION, EVALUATION)
    job.run.log_metrics({**metrics, "best_epoch": state.best_epoch})
    save_training_curves(job.folder / CURVES, state.history, best_epoch=state.best_epoch)
    job.run.log_file(job.folder / CURVES)
    return metrics


def _export(job: Job, metrics: dict[str, float]) -> tuple[str, str, str, bytes]:
    """Export the best epoch, prove it, log it; return parity, address and one test image."""
    classifier, spec = load_classifier(job.folder / BEST)
    manifest = job.prepared.manifest
    test_ids = [str(image_id) for image_id in manifest["image_id"].iloc[job.splits.test]]
    chosen = test_ids[:: max(1, len(test_ids) // _NUM_CHECK_IMAGES)][:_NUM_CHECK_IMAGES]
    images = [(name, job.prepared.read_image_bytes(name)) for name in chosen]
    path = job.folder / MODEL
    report = export_onnx(classifier, spec, path, extra_images=images)
    parity = (
        f"ONNX and PyTorch differ by at most {report.max_difference:.1e} in a probability on "
        f"{report.num_images} images"
    )
    job.say(parity)
    uri = job.run.tag(_MODEL_URI_TAG)
    if not uri:
        uri = job.run.log_model(pyfunc_arguments(path), metrics)
        job.run.set_tags({_MODEL_URI_TAG: uri, "dermalyze.parity": parity})
    return parity, uri, *images[0]


def _description(job: Job, metrics: dict[str, float], parity: str, *, demo_data: bool) -> str:
    data = "demo data (its metrics mean nothing)" if demo_data else "HAM10000"
    return (
        f"{job.config.model.timm_name} with the {job.config.model.head_type} head, trained on "
        f"{data}, {job.config.data.image_size} px. Balanced accuracy "
        f"{metrics['test/balanced_accuracy']:.4f} on {len(job.splits.test)} test images. "
        f"{parity}. {DISCLAIMER}"
    )

"""Commands that evaluate: one run, several runs, or a table of predictions."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dermalyze.cli.options import (
    FILE,
    FOLDER,
    RUN_DATA,
    RUN_ID,
    here_of,
    here_options,
    plugin_option,
    source_options,
)
from serving.reference import REFERENCE
from serving.taxonomy import DISCLAIMER

EXIT_ALARM = 3  # of `monitor`


@click.command()
@click.option("--run-id", default=None, help="An MLflow run of `dermalyze train`.")
@click.option("--model", type=FILE, default=None, help="With --external: an ONNX file, no MLflow.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default=None, help="[default: test]"
)
@RUN_DATA
@source_options
@click.option(
    "--prevalence",
    default="none",
    metavar="CLASS=SHARE,...",
    help="With --external: how common classes are in use; or labels or estimate.",
)
@click.option("--corruptions", is_flag=True, help="Evaluate corrupted images as well; minutes.")
@click.option("--images", type=FOLDER, default=None, help="Folder of other images to evaluate.")
@click.option("--labels", type=FILE, default=None, help="CSV of their labels: image_id,label.")
@click.option("--output", type=FOLDER, default=None, help="[default: evaluation-RUN_ID-SPLIT]")
@here_options
@plugin_option()
def evaluate(
    run_id: str | None,
    model: Path | None,
    split: str | None,
    data_dir: str | None,
    images: Path | None,
    labels: Path | None,
    output: Path | None,
    device: str | None,
    prepared: Path | None,
    corruptions: bool,
    **options: Any,
) -> None:
    """Evaluate a model on a split of its run, or on images of other sources."""
    if (images is None) != (labels is None):
        raise click.UsageError("--images and --labels go together")
    if (run_id is None) == (model is None):
        raise click.UsageError("give either --run-id or --model")
    other = bool(options["external"]) or images is not None
    if images is not None and options["external"]:
        raise click.UsageError("--images and --external exclude each other")
    if not other and (model or options["maps"] or options["prevalence"] != "none"):
        raise click.UsageError("--model, --map and --prevalence go with --external")
    if other and (split or device):
        raise click.UsageError(
            "--split and --device go with the images of the run; others are answered as by "
            "`dermalyze predict`, on the CPU"
        )
    here = here_of(data_dir, device, prepared)
    name = str(run_id)[:8] if model is None else model.stem
    if not other:
        from dermalyze.evaluation.report.folder import format_metrics
        from dermalyze.workflows.evaluate import evaluate_run

        split = split or "test"
        output = output or Path(f"evaluation-{name}-{split}")
        found = evaluate_run(str(run_id), split, output=output, here=here, corruptions=corruptions)
        click.echo(format_metrics(found.logged(), found.taxonomy, found.intervals))
    else:
        from dermalyze.evaluation.report.external import format_external
        from dermalyze.workflows import external

        sources = external.sources_of(options["external"])
        if images is not None:
            sources = [external.source_of_images(images, labels)]
        asked = external.Asked(
            sources=sources,
            maps=external.maps_of(options["maps"], [source.name for source in sources]),
            prevalence=options["prevalence"],
            corruptions=corruptions,
        )
        end = "external" if images is None else images.name
        output = output or Path(f"evaluation-{name}-{end}")
        opened = (
            external.model_of_run(str(run_id), here)
            if model is None
            else external.model_of_file(model, here)
        )
        with opened as of_model:
            for found in external.evaluate_external(of_model, asked, output=output):
                click.echo(format_external(found))
    click.echo(f"written: {output}")
    click.echo(DISCLAIMER)


@click.command()
@click.option("--run-id", default=None, help="An MLflow run of `dermalyze train`.")
@click.option("--predictions", type=FILE, default=None, help="predictions.csv of any program.")
@click.option(
    "--validation", type=FILE, default=None, help="With --predictions: predictions to calibrate on."
)
@RUN_DATA
@click.option("--output", type=FOLDER, default=Path("report"), show_default=True)
def report(
    run_id: str | None,
    predictions: Path | None,
    validation: Path | None,
    data_dir: str | None,
    output: Path,
) -> None:
    """Make the report again from stored predictions; no GPU, no images needed."""
    if (run_id is None) == (predictions is None):
        raise click.UsageError("give either --run-id or --predictions")
    if run_id is not None and validation is not None:
        raise click.UsageError("--validation goes with --predictions; a run has its own")
    if run_id is None and data_dir is not None:
        raise click.UsageError("--data-dir goes with --run-id")
    from dermalyze.config.schema import EvaluationConfig
    from dermalyze.evaluation.report.text import headlines
    from dermalyze.workflows.report import report_predictions, report_run

    if predictions is not None:
        settings = EvaluationConfig()
        found = report_predictions(predictions, validation, settings=settings, output=output)
    else:
        found = report_run(str(run_id), output=output, here=here_of(data_dir))
    for title, cell in headlines(found):
        click.echo(f"{title:<44}{cell.value:>8}   {cell.bounds or cell.reason}".rstrip())
    click.echo(f"written: {output / 'report.html'}")
    click.echo(DISCLAIMER)


@click.command()
@click.option(
    "--log",
    "logs",
    multiple=True,
    required=True,
    metavar="FILE|URL",
    help="Prediction log of `dermalyze serve`; repeatable.",
)
@click.option(
    "--reference",
    default=str(REFERENCE),
    show_default="the reference model",
    metavar="RUN_ID|FILE",
    help="The run or ONNX file that answered; its validation images are compared with.",
)
@click.option(
    "--truth", type=FILE, default=None, help="CSV of diagnoses: request_id,label[,image]."
)
@click.option(
    "--days", type=click.IntRange(1, 90), default=7, show_default=True, help="Days between looks."
)
@click.option("--once", is_flag=True, help="One look at all answers, instead of one per week.")
@click.option(
    "--until",
    type=click.DateTime(["%Y-%m-%d"]),
    default=None,
    help="Day (UTC) to look on.  [default: today]",
)
@click.option("--output", type=FOLDER, default=Path("monitoring"), show_default=True)
def monitor(
    logs: tuple[str, ...],
    reference: str,
    truth: Path | None,
    days: int,
    once: bool,
    until: datetime | None,
    output: Path,
) -> None:
    """Tell whether a service's answers still look like those on validation images.

    Exit status: 0 no change, 3 a change was found, 1 an error.  Run it as often as you like: it
    looks at weeks that are over, and false alarms are rare for all looks of a year together.
    """
    from dermalyze.evaluation.monitoring import Schedule
    from dermalyze.evaluation.report.monitoring import PAGE, format_monitored
    from dermalyze.workflows.monitor import monitor_logs

    schedule = Schedule(today=(until or datetime.now(UTC)).date(), days=days, is_single=once)
    found = monitor_logs(logs, reference, schedule, truth=truth, output=output)
    click.echo(format_monitored(found))
    click.echo(f"written: {output / PAGE}")
    click.echo(DISCLAIMER)
    if found.is_alarm:
        raise SystemExit(EXIT_ALARM)


@click.command()
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_A RUN_B [...]")
@click.option("--output", type=FOLDER, default=None, help="Also write forest.png, comparison.json.")
def compare(run_ids: tuple[str, ...], output: Path | None) -> None:
    """Compare runs with the first one, lesion by lesion on the same test images."""
    if len(run_ids) < 2:
        raise click.UsageError("expected at least two run ids")
    if len(set(run_ids)) < len(run_ids):
        raise click.UsageError("a run cannot be compared with itself; pass each run id once")
    from dermalyze.evaluation.statistics.comparison import table
    from dermalyze.workflows.compare import compare_runs

    click.echo(table(compare_runs(run_ids, output=output)))
    if output is not None:
        click.echo(f"written: {output}")
    click.echo(DISCLAIMER)


@click.command()
@RUN_ID
@RUN_DATA
@here_options
@plugin_option()
def leakage(run_id: str, data_dir: str | None, device: str | None, prepared: Path | None) -> None:
    """Show the metrics a random split would report: train again with siblings of test images."""
    from dermalyze.workflows.leakage import leakage_of

    here = here_of(data_dir, device, prepared)
    click.echo(leakage_of(run_id, here).in_words())
    click.echo(DISCLAIMER)


@click.command()
@click.argument("version", type=click.IntRange(1))
@click.option("--model", "name", default="dermalyze", show_default=True, help="Registered model.")
@click.option("--config", type=FILE, default=None, help="YAML file with the margins.")
@click.option("--anyway", is_flag=True, help="Promote even if the rule refuses; this is recorded.")
def promote(version: int, name: str, config: Path | None, anyway: bool) -> None:
    """Make VERSION the champion, if it is not worse than the current one."""
    from dermalyze.config.loading import load_config
    from dermalyze.config.schema import TrackingConfig
    from dermalyze.tracking import limit_calls
    from dermalyze.tracking.registry import promote as promote_version
    from dermalyze.tracking.registry import rule_of

    tracking = TrackingConfig() if config is None else load_config(config).tracking
    limit_calls(tracking.timeout_seconds)
    rule = rule_of(tracking, must_be_better=False)
    promoted = promote_version(name, str(version), rule, anyway=anyway)
    verdict = "champion" if promoted.is_champion else "not promoted"
    click.echo(f"{promoted.name} version {promoted.version}: {verdict} ({promoted.reason})")
    if not promoted.is_champion:
        raise SystemExit(1)


@click.command("register-reference")
@click.option("--model", "name", default="dermalyze", show_default=True, help="Registered model.")
def register_reference(name: str) -> None:
    """Register the reference model, so that it can be served before any training.

    It becomes champion unless a model trained here is one, and gives way to the first one trained
    on real data.
    """
    from dermalyze.config.schema import TrackingConfig
    from dermalyze.workflows.register_reference import register_reference as register

    click.echo(register(TrackingConfig(registered_model=name)))


@click.command("check-fit")
@RUN_ID
def check_fit(run_id: str) -> None:
    """Tell whether a run overfits or underfits."""
    from dermalyze.evaluation.overfitting import format_verdict
    from dermalyze.workflows.training_history import fit_of_run

    click.echo(format_verdict(fit_of_run(run_id)))


@click.command("plot-training")
@RUN_ID
@click.option("--output", type=FILE, default=Path("training_curves.png"), show_default=True)
def plot_training(run_id: str, output: Path) -> None:
    """Draw a run's training curves."""
    from dermalyze.workflows.training_history import plot_run

    plot_run(run_id, output)
    click.echo(output)

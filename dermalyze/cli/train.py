"""Commands that train: `train`, `tune`, `sync`, `benchmark`."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dermalyze.cli.options import (
    FOLDER,
    SETTINGS,
    auto_option,
    column_options,
    data_option,
    plugin_option,
    run_data,
)
from dermalyze.credentials import masked
from serving.errors import ConfigError

logger = logging.getLogger(__name__)

# What `train` and `benchmark` override in the config, by option.
_OVERRIDES = {
    "size": "model.size",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "lr": "training.lr",
    "image_size": "data.image_size",
    "head_type": "model.head_type",
    "loss": "loss.type",
    "pretrained": "model.pretrained",
    "seed": "training.seed",
    "experiment": "tracking.experiment",
    "plugins": "model.plugins",
    "device": "training.device",
    "prepared": "data.prepared",
    "leave_out": "data.leave_out",
    "corrections": "data.corrections",
    "group_by": "data.group_by",
    "image_column": "data.image_column",
    "label_column": "data.label_column",
    "group_column": "data.group_column",
    "metric": "training.monitor",
}
_OF_THE_MACHINE = ("pretrained", "device", "prepared")  # what a resumed run may change


@click.command()
@auto_option("--size", click.STRING, "EfficientNetV2: small, medium or large.")
@data_option("Labeled images; auto: data/HAM10000, or drawn demo data.", "auto")
@auto_option("--config", click.STRING, "YAML file; auto: default.yaml or demo.yaml in configs/.")
@auto_option("--epochs", click.INT, "Passes over the training images.")
@auto_option("--batch-size", click.INT, "Images per batch.")
@auto_option("--lr", click.FLOAT, "Peak learning rate.")
@auto_option("--image-size", click.INT, "Height and width in pixels.")
@auto_option("--head-type", click.STRING, "simple or acrnn.")
@auto_option("--loss", click.STRING, "cross_entropy or focal.")
@auto_option(
    "--pretrained",
    click.STRING,
    "true, false, a .safetensors file, or a trained network: reference, run:ID, FILE.pt; auto: use "
    "pretrained weights if available.",
)
@auto_option("--seed", click.INT, "Seed of splits, sampling, augmentation and weights.")
@auto_option("--experiment", click.STRING, "MLflow experiment.")
@auto_option(
    "--folds", click.INT, "Number of cross-validation folds; auto: one training without folds."
)
@auto_option(
    "--leave-out",
    click.STRING,
    "COLUMN=VALUE, such as dataset=rosendahl: test on these images, learn from all others.",
)
@auto_option("--corrections", click.STRING, "Reviewed CSV file of `dermalyze data-issues`.")
@auto_option("--device", click.STRING, "cpu, cuda or mps.")
@auto_option(
    "--prepared", click.STRING, "Folder of the decoded images; auto: prepared/ in the data."
)
@column_options
@SETTINGS
@plugin_option(expose_value=True)
@click.option("--resume", metavar="RUN_ID", default="", help="Continue a stopped run.")
@click.option(
    "--no-tracking", is_flag=True, help="Train without MLflow; the run is in --output alone."
)
@click.option(
    "--output",
    type=FOLDER,
    default=None,
    help="Folder of a run without MLflow; with that of a stopped run the command continues it.",
)
def train(
    data_dir: str,
    config: str,
    settings: tuple[str, ...],
    plugins: tuple[str, ...],
    resume: str,
    folds: int | str,
    no_tracking: bool,
    output: Path | None,
    **overrides: Any,
) -> None:
    """Train, evaluate, export and register a model as one MLflow run.

    With --folds every image is evaluated once by a network that never saw its lesion; the runs of
    the folds are nested in one run, and nothing is registered.
    """
    result: Any
    if no_tracking != (output is not None):
        raise click.UsageError(
            "--no-tracking and --output belong together: give both, or neither for a run in MLflow"
        )
    if no_tracking and (resume or (folds, overrides["experiment"]) != ("auto", "auto")):
        raise click.UsageError(
            "--no-tracking goes with none of --resume, --folds and --experiment; the same command "
            "continues a stopped run"
        )
    restarted = ""  # the run of the processes that torchrun replaces
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():  # torchrun
        if folds != "auto":
            raise ConfigError("--folds needs a training in one process; start it without torchrun")
        from dermalyze.training import distributed
        from dermalyze.workflows.train import follow

        distributed.join()
        if distributed.rank():
            logging.disable(logging.WARNING)  # process 0 says the same
            follow()
            return
        restarted = "" if no_tracking or resume else distributed.remembered_run()
    typed_here = "MLFLOW_RUN_ID" not in os.environ  # which `mlflow run` sets, and MLflow removes
    if restarted:
        from dermalyze.workflows.train import resume as resume_run

        os.environ.pop("MLFLOW_RUN_ID", "")
        result = resume_run(restarted)
    elif resume:
        given = {name: value for name, value in overrides.items() if value != "auto"}
        if given.keys() - set(_OF_THE_MACHINE) or settings or config != "auto" or folds != "auto":
            raise click.UsageError(
                "a resumed run keeps its settings; with --resume pass only --data-dir, "
                "--device, --prepared, --pretrained and --plugin"
            )
        from dermalyze.tracking import project_arguments, tags_of

        if arguments := project_arguments(resume):
            logger.info(f"run {resume} was killed before it began; it starts again")
            os.environ["MLFLOW_RUN_ID"] = resume  # as `mlflow run` does
            train.main(arguments, standalone_mode=False)
            return
        from dermalyze.workflows.cross_validate import resume_folds
        from dermalyze.workflows.run_context import FOLDS_TAG, Here
        from dermalyze.workflows.train import resume as resume_run

        go_on = resume_folds if FOLDS_TAG in tags_of(resume) else resume_run
        result = go_on(resume, Here(data_dir=run_data(data_dir), **given))
    else:
        from dermalyze.data.location import find_data

        # The settings are checked before anything slow: the data, torch.
        folder, demo_data = find_data(data_dir, make=False)
        resolved = _config(config, demo_data, settings, {**overrides, "plugins": list(plugins)})
        folder, demo_data = find_data(data_dir, make=True)
        from dermalyze.workflows.train import train as train_run
        from dermalyze.workflows.train import train_untracked

        logger.info(f"data: {folder}")
        if demo_data:
            logger.warning("this is drawn demo data; its metrics say nothing about skin")
        logger.info(f"epochs: {resolved.training.epochs}")
        if output is not None:
            result = train_untracked(resolved, folder, output)
        elif isinstance(folds, int):
            from dermalyze.workflows.cross_validate import train_folds

            result = train_folds(resolved, folder, folds)
        else:
            result = train_run(resolved, folder)
    from dermalyze.cli.summary import summarize

    click.echo(masked(summarize(result, typed_here=typed_here)))


def _config(
    config: str, demo_data: bool, settings: Sequence[str], overrides: dict[str, Any]
) -> Any:
    from dermalyze.config.loading import load_config
    from dermalyze.data.location import config_path

    values = {
        _OVERRIDES[name]: value for name, value in overrides.items() if value not in ("auto", [])
    }
    if values.get("model.pretrained") in ("true", "false"):
        values["model.pretrained"] = values["model.pretrained"] == "true"
    path = config_path(demo_data) if config == "auto" else Path(config)
    resolved = load_config(path, settings, values)
    name = resolved.model.name
    if "model.size" in values and name != "auto":
        if any(text.startswith("model.name=") for text in settings):
            raise ConfigError(f"--size has no effect with model.name {name}; leave one of them out")
        logger.info(f"model: {name}, named in {path}; --size has no effect")
    return resolved


@click.command()
@click.option(
    "--search",
    multiple=True,
    required=True,
    metavar="KEY=VALUES",
    help="Setting to vary: KEY=LOW..HIGH, KEY=LOW..HIGH,log or KEY=A,B,...; repeatable, or several "
    "with spaces between them.",
)
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Trials that the study has in the end, those of earlier and other processes included.",
)
@auto_option(
    "--metric",
    click.STRING,
    "Validation metric to compare trials by, such as val/macro_auc; auto: training.monitor.",
)
@click.option(
    "--storage",
    default="auto",
    metavar="ADDRESS",
    help="Database of the study, such as sqlite:///study.db; auto: .dermalyze/tune.db.",
)
@click.option(
    "--study",
    default="auto",
    metavar="NAME",
    help="Study in it, continued if it exists; auto: one for these settings and images.",
)
@data_option("Labeled images; auto: data/HAM10000, or drawn demo data.", "auto")
@auto_option("--config", click.STRING, "YAML file; auto: default.yaml or demo.yaml in configs/.")
@auto_option("--epochs", click.INT, "Passes over the training images.")
@auto_option("--seed", click.INT, "Seed of the search, splits, sampling, augmentation and weights.")
@auto_option("--experiment", click.STRING, "MLflow experiment.")
@auto_option("--device", click.STRING, "cpu, cuda or mps.")
@auto_option(
    "--prepared", click.STRING, "Folder of the decoded images; auto: prepared/ in the data."
)
@SETTINGS
@plugin_option(expose_value=True)
def tune(
    search: tuple[str, ...],
    trials: int,
    storage: str,
    study: str,
    data_dir: str,
    config: str,
    settings: tuple[str, ...],
    plugins: tuple[str, ...],
    **overrides: Any,
) -> None:
    """Search for good settings with Optuna; print the best ones as a config file.

    Each trial is a training that is validated but not tested; poor ones end early. The same command
    continues a study that was stopped, and can run several times at once.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "dermalyze tune needs Optuna, which is not installed; run `pip install "
            "'dermalyze[train,tune]'`"
        )
    from dermalyze.config.search_space import read_search
    from dermalyze.data.location import find_data

    folder, demo_data = find_data(data_dir, make=False)
    resolved = _config(config, demo_data, settings, {**overrides, "plugins": list(plugins)})
    searched = read_search(search, resolved)
    folder, demo_data = find_data(data_dir, make=True)
    from dermalyze.workflows.tune import BEST_CONFIG, StudyOptions
    from dermalyze.workflows.tune import tune as tune_settings

    logger.info(f"data: {folder}")
    if demo_data:
        logger.warning("this is drawn demo data; its metrics say nothing about skin")
    options = StudyOptions(search=searched, num_trials=trials, storage=storage, name=study)
    tuned = tune_settings(resolved, folder, options)
    logger.info(
        f"best: run {tuned.best_run_id}; {BEST_CONFIG} is an artifact of run {tuned.run_id}"
    )
    click.echo(masked(tuned.best_config), nl=False)


@click.command()
@click.argument("run_id")
def sync(run_id: str) -> None:
    """Upload what a run could not log while the tracking store was unavailable.

    If the run's work is done, its model is then registered and the run is finished.  A run whose
    training ended without an error needs no sync.
    """
    from dermalyze.workflows.finish import sync as sync_run

    click.echo(sync_run(run_id))


@click.command()
@click.option("--num-batches", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--num-images",
    type=click.IntRange(2),
    default=7010,
    help="Images per epoch, for the estimate of its duration.",
)
@auto_option("--config", click.STRING, "YAML file; auto: configs/default.yaml.")
@SETTINGS
def benchmark(num_batches: int, num_images: int, config: str, settings: tuple[str, ...]) -> None:
    """Time the parts of a training step on this machine."""
    resolved = _config(config, False, settings, {})
    from dermalyze.training.step_benchmark import format_times, time_steps

    click.echo(format_times(time_steps(resolved, num_batches, num_images)))

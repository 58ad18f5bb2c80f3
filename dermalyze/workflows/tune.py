"""Search for good settings with Optuna: many trainings, compared on validation images.

Each trial is an ordinary training without its end: nothing is computed on test images, exported or
registered.  All that processes and machines share is in the database of the study; one MLflow run
holds what they come to, and the run of each trial is nested in it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from dermalyze import tracking
from dermalyze.config.loading import config_from, to_yaml
from dermalyze.config.schema import Config, DataConfig, flatten
from dermalyze.config.search_space import Search, Value
from dermalyze.credentials import masked
from dermalyze.data.preparation import Prepared
from dermalyze.data.sampling import seed_of
from dermalyze.data.splits import Splits
from dermalyze.evaluation.predictions import targets_of
from dermalyze.evaluation.report.figures import importances, save_png, tuning_history
from dermalyze.training.loop import LearningData, fit, require_monitor, val_scores
from dermalyze.training.signals import stop_on_signal
from dermalyze.training.state import TrainingState
from dermalyze.workflows.run_context import (
    CONFIG,
    HISTORY,
    STUDY_TAG,
    TRIAL_TAG,
    Job,
    prepare_for,
    run_name,
)
from dermalyze.workflows.run_fingerprint import MACHINE_SETTINGS, Began
from dermalyze.workflows.run_lock import hold, open_held
from dermalyze.workflows.train import (
    TrainingInterruptedError,
    epoch_line,
    learning_data,
    make_splits,
    resolve,
    set_up,
    warn_of_place,
)
from serving.atomic_write import write_text
from serving.errors import (
    ConfigError,
    DermalyzeError,
    OutOfMemoryError,
    TrackingError,
    TrainingError,
)
from serving.os_errors import make_folder, temporary_folder

logger = logging.getLogger(__name__)

STORAGE = Path(".dermalyze/tune.db")  # of studies, unless another one is named
BEST_CONFIG = "best.yaml"
TRIALS = "trials.csv"
HISTORY_PLOT = "tuning_history.png"
IMPORTANCE_PLOT = "importance.png"
VALUE = "tune/value"  # the metric of a trial's run that holds what it is compared by
HEARTBEAT_SECONDS = 30
STALE_SECONDS = 120  # without a heartbeat, after which the process of a trial counts as dead
STARTUP_TRIALS = 5  # complete trials before the first one is pruned
FIRST_PRUNED_EPOCH = 2
MIN_FOR_IMPORTANCE = 4
_JOIN_SECONDS = 30  # in which the process that makes a study has made its run
_RUN, _BEGAN, _ERROR, _RETRY = "run_id", "began_with", "error", "retry_of"  # user attributes


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What is searched, how long, and where that is kept."""

    search: tuple[Search, ...]
    num_trials: int
    storage: str = "auto"  # address of a database
    name: str = "auto"  # of the study; auto: one for these settings and images


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a study came to."""

    run_id: str  # that holds the runs of all trials
    best_run_id: str
    best_config: str  # YAML


class _FailedTrialError(Exception):
    """Settings that cannot be trained with; the study goes on without them."""


class _SeededByTrial(optuna.samplers.TPESampler):
    """Draws what depends on a seed, the trial's number and the trials before it alone.

    So a study that is resumed, or several processes with one seed, do not draw the same again.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the generators."""
        super().__init__(seed=seed_of(self._seed, trial.number) % 2**32)
        super().before_trial(study, trial)


class _Storage(optuna.storages.RDBStorage):
    """A storage whose heartbeat goes on after its database was away."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Show others that the process of a trial is alive."""
        with suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def tune(config: Config, data_dir: Path, options: StudyOptions) -> Tuned:
    """Train until a study has as many trials as wanted; log and return the best settings.

    A study that was stopped or killed continues; another process may work on it at the same time.

    Raises:
        ConfigError: a model does not exist, or the storage is not an address of a database.
        TrackingError: the tracking store or the storage of the study is away.
        TrainingError: the study has other settings or images, or no trial is complete.
        DermalyzeError: as `train`.
        TrainingInterruptedError: Ctrl-C; calling again continues.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # each trial is logged here
    for search in options.search:
        for value in search.choices:
            resolve(_with_values(config, {search.key: value}))
    tracking.reach_store(config.tracking, {})
    images = _Images(data_dir=data_dir)
    _require_metric(config, images)
    url = _storage_address(options.storage)
    with _storage_errors(url):
        study, is_new = _open_study(url, options.name, config, _facts(config, options, images))
        run_id = _new_run(study, config, options, images) if is_new else _run_of(study)
        return _Tuning(
            study=study, run_id=run_id, config=config, options=options, images=images
        ).finish()


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a study, prepared once for all trials that take them alike."""

    data_dir: Path
    _known: dict[DataConfig, tuple[Prepared, Splits]] = field(default_factory=dict)

    def of(self, config: Config) -> tuple[Prepared, Splits]:
        """Prepare and split them as the settings, with nothing left to find out, ask for."""
        if config.data not in self._known:
            prepared = prepare_for(config, self.data_dir)
            self._known[config.data] = prepared, make_splits(config, prepared)
        return self._known[config.data]

    def began(self, config: Config) -> Began:
        """Return what a run with these settings begins with."""
        return Began.here(config, self.data_dir).with_data(*self.of(config))


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """A study with its run."""

    study: optuna.Study
    run_id: str
    config: Config  # of all that is not searched
    options: StudyOptions
    images: _Images
    _met: set[int] = field(default_factory=set)  # trials that were seen without a run

    def finish(self) -> Tuned:
        """Do all that is left to do."""
        logger.info(
            f"study {self.study.study_name}: run {self.run_id}; if it is stopped, the same command "
            "continues"
        )
        client = tracking.BoundedClient(f"cannot continue run {self.run_id}")
        try:
            self._end_killed_trials()
            if self._num_left() > 0:
                client.update_run(self.run_id, status="RUNNING")
            while self._num_left() > 0:
                self.study.optimize(
                    self._objective, n_trials=1, catch=_FailedTrialError, gc_after_trial=True
                )
                self._end_killed_trials()
            return self._conclude()
        except KeyboardInterrupt:  # between two trainings
            self._end_run("KILLED")
            raise
        except TrainingInterruptedError as error:
            self._end_run("KILLED")
            raise TrainingInterruptedError(
                f"stopped; the same command continues study {self.study.study_name}",
                error.signal_number,
            ) from error
        except DermalyzeError:
            self._end_run("FAILED")
            raise

    def _num_left(self) -> int:
        """Return how many trials are to be begun."""
        begun = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False)
        num_begun = sum(trial.state in begun or _ERROR in trial.user_attrs for trial in trials)
        return self.options.num_trials - num_begun

    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _end_killed_trials(self) -> None:
        """End trials whose process is gone.

        On this machine the lock of their run tells at once; elsewhere, and before a trial has a
        run, the heartbeat tells after a while.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)
        for trial in self._running():
            run_id = trial.user_attrs.get(_RUN)
            if run_id is None:
                # Optuna waits for ever for a process that was killed before its first heartbeat.
                if trial.number not in self._met:
                    cast(_Storage, self.study._storage).record_heartbeat(trial._trial_id)
                    self._met.add(trial.number)
                continue
            if tracking.status_of(run_id) != "RUNNING":
                continue
            try:
                with hold(run_id):
                    if trial.number in [other.number for other in self._running()]:
                        self.study.tell(trial.number, state=TrialState.FAIL)
                        _end_dead_trial(self.study, trial)
            except TrainingError:  # its process works
                continue

    def _objective(self, trial: Trial) -> float:
        """Train with the settings of a trial; return what it is compared by."""
        try:
            return self._train(trial)
        except (TrainingInterruptedError, KeyboardInterrupt):
            _try_again(self.study, trial)
            raise
        except (ConfigError, TrainingError, OutOfMemoryError) as error:  # of these settings
            trial.set_user_attr(_ERROR, str(error))
            logger.warning(f"trial {trial.number} failed: {error}")
            raise _FailedTrialError from error
        except DermalyzeError:  # of this machine or its stores
            _try_again(self.study, trial)
            raise

    def _train(self, trial: Trial) -> float:
        values = {search.key: _draw(trial, search) for search in self.options.search}
        config = resolve(_with_values(self.config, values))
        prepared, splits = self.images.of(config)
        began = self.images.began(config)
        try:
            with open_held(
                config.tracking,
                name=f"trial {trial.number}, {run_name(config)}",
                parent=self.run_id,
                tags={
                    STUDY_TAG: self.study.study_name,
                    TRIAL_TAG: str(trial.number),
                    **began.tags(),
                },
            ) as run:
                trial.set_user_attr(_RUN, run.run_id)
                logger.info(f"trial {trial.number}: {_in_words(values)}; run {run.run_id}")
                job, state = set_up(run, began, prepared, splits)
                is_pruned = self._learn(trial, job, state)
                write_text(run.folder / HISTORY, json.dumps(state.history, indent=1))
                run.log_file(run.folder / HISTORY)  # its weights are not kept
                run.log_metrics({"best_epoch": state.best_epoch, VALUE: state.best_value})
                run.set_tags({"dermalyze.trial_state": "pruned" if is_pruned else "complete"})
        except DermalyzeError:
            if run_id := trial.user_attrs.get(_RUN):
                with suppress(TrackingError):  # what is not delivered stays, and was told of
                    tracking.clear_finished(run_id)
            raise
        result = f"{config.training.monitor} {state.best_value:.4f} in epoch {state.best_epoch}"
        if is_pruned:
            logger.info(f"trial {trial.number} pruned after epoch {state.epoch}: {result}")
            raise optuna.TrialPruned
        logger.info(f"trial {trial.number} complete: {result}")
        return state.best_value

    def _learn(self, trial: Trial, job: Job, state: TrainingState) -> bool:
        """Train; say whether the trial was pruned."""
        config, run = job.config, job.run
        training = config.training
        with stop_on_signal() as should_stop:
            for epoch in fit(state, learning_data(job), config, job.device, should_stop):
                run.log_epoch(epoch.index, epoch.metrics)
                logger.info(epoch_line(state, training.epochs))
                trial.report(epoch.metrics[training.monitor], epoch.index)
                is_over = state.stopped_early or state.epoch == training.epochs
                if not is_over and trial.should_prune():
                    return True
            if should_stop() and state.epoch < training.epochs and not state.stopped_early:
                run.status = "KILLED"
                raise TrainingInterruptedError(
                    f"stopped in trial {trial.number}", should_stop.number
                )
        return False

    def _conclude(self) -> Tuned:
        """Log what the study came to; the process that is the last one ends its run."""
        trials = self.study.get_trials(deepcopy=False)
        if not any(trial.state == TrialState.COMPLETE for trial in trials):
            reasons = [trial.user_attrs[_ERROR] for trial in trials if _ERROR in trial.user_attrs]
            raise TrainingError(
                f"none of {len(trials)} trials is complete; the last one failed: "
                f"{[*reasons, 'it was interrupted'][-1]}"
            )
        best, metric = self.study.best_trial, self.config.training.monitor
        best_config = (
            f"# Trial {best.number} of study {self.study.study_name}: {metric} "
            f"{self.study.best_value:.4f} on validation images, the best of {len(trials)} trials.\n"
            f"# dermalyze train --config {BEST_CONFIG}\n"
            f"{to_yaml(_with_values(self.config, best.params))}"
        )
        with temporary_folder() as folder:
            write_text(folder / BEST_CONFIG, best_config)
            table = _table(trials, self.config)
            write_text(folder / TRIALS, table.to_csv(index=False, lineterminator="\n"))
            self._draw(folder, table)
            metrics = {VALUE: self.study.best_value, "tune/num_trials": len(trials)}
            tracking.add_to_run(tracking.stored_run(self.run_id, folder), folder, "", metrics)
        if others := self._running():
            logger.warning(
                f"trials that other processes still work on: {len(others)}; the last one ends run "
                f"{self.run_id}"
            )
        self._end_run("FINISHED")
        return Tuned(run_id=self.run_id, best_run_id=best.user_attrs[_RUN], best_config=best_config)

    def _draw(self, folder: Path, table: pd.DataFrame) -> None:
        """Draw the history, and which settings matter if the trials can tell."""
        training = self.config.training
        known = table.dropna(subset="value")
        history = tuning_history(
            dict(zip(known["trial"].tolist(), known["value"].tolist(), strict=True)),
            known["trial"][known["state"] == "pruned"].tolist(),
            training.monitor,
            higher_is_better=training.higher_is_better,
        )
        save_png(folder / HISTORY_PLOT, history, disclaimer=False)
        if known["value"][known["state"] == "complete"].nunique() < MIN_FOR_IMPORTANCE:
            logger.info(
                f"{IMPORTANCE_PLOT} is not drawn: it needs {MIN_FOR_IMPORTANCE} complete trials of "
                "different values"
            )
            return
        shares = optuna.importance.get_param_importances(self.study)
        save_png(folder / IMPORTANCE_PLOT, importances(shares, training.monitor), disclaimer=False)

    def _end_run(self, status: str) -> None:
        """End the run of the study, unless another process works on a trial."""
        if not self._running():
            client = tracking.BoundedClient(f"cannot end run {self.run_id}")
            with suppress(*(() if status == "FINISHED" else (TrackingError,))):
                client.set_terminated(self.run_id, status)


def _open_study(
    url: str, name: str, config: Config, facts: Mapping[str, object]
) -> tuple[optuna.Study, bool]:
    """Make a study, or take the one of that name; say whether it is new.

    Raises:
        TrainingError: it began with other settings or images.
    """
    if name == "auto":
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        name = f"tune-{digest[:8]}"
    storage = _open_storage(url)
    sampler = _SeededByTrial(config.training.seed)
    pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, FIRST_PRUNED_EPOCH)
    directions = optuna.study.StudyDirection
    direction = directions.MAXIMIZE if config.training.higher_is_better else directions.MINIMIZE
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, sampler=sampler, pruner=pruner
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler, pruner=pruner)
        _run_of(study)  # by then all else is there
        then: dict[str, object] = study.user_attrs.get(_BEGAN, {})
        for key in [*facts, *then]:
            if then.get(key) != facts.get(key):
                raise TrainingError(
                    f"study {name} began with {key} {then.get(key)!r}, and the command has "
                    f"{facts.get(key)!r}; undo that, or pass another --study"
                ) from None
        return study, False
    study.set_user_attr(_BEGAN, dict(facts))
    return study, True


def _open_storage(url: str) -> optuna.storages.RDBStorage:
    def connect() -> optuna.storages.RDBStorage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
            return _Storage(
                url,
                # Seconds that a process waits for others which write; a server may have restarted.
                {"connect_args": {"timeout": 60}}
                if url.startswith("sqlite")
                else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=STALE_SECONDS,
                heartbeat_stale_trial_callback=_end_dead_trial,
            )

    for _ in range(10):
        try:
            return connect()
        except SQLAlchemyError as error:
            if not re.search("already exists|UNIQUE|[Dd]uplicate", str(error)):
                raise
            time.sleep(1)  # another process is making the tables at this moment
        except RuntimeError as error:
            raise ConfigError(
                f"--storage must be a database for Optuna alone, and {masked(url)} has tables of "
                "another program, such as MLflow, or another version; pass one such as "
                "sqlite:///study.db"
            ) from error
    return connect()


@contextmanager
def _storage_errors(url: str) -> Iterator[None]:
    """Say in one sentence what is wrong with the storage of the study."""
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise TrainingError(
            f"this process gave no sign of life for {STALE_SECONDS} seconds, and another one has "
            "given up its trial; the same command continues"
        ) from error
    except (ImportError, SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        remedy = (
            "run `pip install 'dermalyze[tracking]'`"
            if isinstance(error, ImportError) and "psycopg" in str(error)
            else "expected a database that can be reached, such as sqlite:///study.db; the same "
            "command continues"
        )
        raise TrackingError(
            f"cannot use the study in {masked(url)}: {tracking.first_line(cause)}; {remedy}"
        ) from error


def _storage_address(storage: str) -> str:
    """Return the address of the database of the study.

    Raises:
        ConfigError: it is that of the tracking store, whose tables it would mix up.
    """
    if storage == "auto":
        make_folder(STORAGE.parent)
        return f"sqlite:///{STORAGE}"
    if masked(storage) == tracking.use_store():
        raise ConfigError(
            f"--storage must be another database than that of the tracking store, got "
            f"{masked(storage)!r}; pass one such as sqlite:///study.db"
        )
    has_password = re.search(r"://[^/@]*:.*@|password=", storage)
    if has_password and (run_id := os.environ.get("MLFLOW_RUN_ID")):
        raise ConfigError(
            f"`mlflow run` has logged the password in {masked(storage)} in run {run_id}; delete "
            "that run and change the password, then pass --storage without it, and set PGPASSWORD"
        )
    return storage


def _new_run(study: optuna.Study, config: Config, options: StudyOptions, images: _Images) -> str:
    """Make the run of a study, which goes on until the last trial has ended."""
    began = images.began(resolve(config))
    tags = {
        STUDY_TAG: study.study_name,
        "dermalyze.demo_data": str(began.demo_data).lower(),
    }
    with open_held(config.tracking, name=f"study {study.study_name}", tags=tags) as run:
        make_folder(run.folder)
        warn_of_place(run)
        run.log_params(
            {
                **flatten(config),
                **{search.key: search.text for search in options.search},
                "data.dir": str(images.data_dir.resolve()),
                "trials": options.num_trials,
            }
        )
        write_text(run.folder / CONFIG, to_yaml(config))
        run.log_file(run.folder / CONFIG)
        run.status = "RUNNING"
    study.set_user_attr(_RUN, run.run_id)
    return run.run_id


def _run_of(study: optuna.Study) -> str:
    """Return the run of a study that another process has made.

    Raises:
        TrackingError: that process has made none.
    """
    deadline = time.monotonic() + _JOIN_SECONDS
    while (run_id := study.user_attrs.get(_RUN)) is None:
        if time.monotonic() > deadline:
            raise TrackingError(
                f"study {study.study_name} has no run, because it was killed before it began; pass "
                "another --study"
            )
        time.sleep(0.5)
    if given := os.environ.pop("MLFLOW_RUN_ID", ""):  # of `mlflow run`
        client = tracking.BoundedClient(f"cannot tag run {given}")
        client.set_tag(given, "dermalyze.run_id", run_id)
        client.set_tag(given, "mlflow.note.content", f"The study is run {run_id}.")
    return str(run_id)


def _facts(config: Config, options: StudyOptions, images: _Images) -> dict[str, object]:
    """Return what all processes of a study must have in common, by a name for messages."""
    searched = {search.key for search in options.search}
    left_out = {*searched, *MACHINE_SETTINGS}
    settings = {
        name: value
        for name, value in flatten(config).items()
        if name not in left_out and not name.startswith(("tracking.", "evaluation."))
    }
    splits = images.began(resolve(config)).splits
    return {
        **settings,
        **{f"--search {search.key}": search.text for search in options.search},
        **{
            f"{split} images": f"{number} {digest[:12]}"
            for split, (number, digest) in splits.items()
        },
    }


def _require_metric(config: Config, images: _Images) -> None:
    """Refuse a metric that these classes do not have before an epoch is trained for it."""
    prepared, splits = images.of(resolve(config))
    data = LearningData(
        store=prepared.store,
        class_names=prepared.taxonomy.names,
        targets=targets_of(prepared.manifest, prepared.taxonomy),
        train=splits.train,
        val=splits.val,
    )
    logits = np.zeros((len(splits.val), len(data.class_names)), np.float32)
    require_monitor(config.training.monitor, val_scores(logits, data))


def _with_values(config: Config, values: Mapping[str, Value]) -> Config:
    return config_from(asdict(config), values=values)


def _draw(trial: Trial, search: Search) -> Value:
    """Draw a value of a setting."""
    if search.choices:
        return cast(Value, trial.suggest_categorical(search.key, search.choices))
    if search.is_whole:
        return trial.suggest_int(search.key, int(search.low), int(search.high), log=search.log)
    return trial.suggest_float(search.key, search.low, search.high, log=search.log)


def _in_words(values: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _end_dead_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """End the run of a trial whose process is gone, and queue its settings again."""
    logger.warning(f"trial {trial.number} was interrupted; its settings are tried again")
    if run_id := trial.user_attrs.get(_RUN):
        with suppress(TrackingError):
            tracking.BoundedClient(f"cannot end run {run_id}").set_terminated(run_id, "FAILED")
        shutil.rmtree(tracking.WORK / run_id, ignore_errors=True)
    _try_again(study, trial)


def _try_again(study: optuna.Study, trial: Trial | FrozenTrial) -> None:
    """Queue the settings of a trial that was interrupted; once, or a search might never end."""
    if trial.params and _RETRY not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={_RETRY: trial.number})


def _table(trials: list[FrozenTrial], config: Config) -> pd.DataFrame:
    """Return one row per trial: what it came to, its settings, its run."""
    best = max if config.training.higher_is_better else min
    rows: list[dict[str, Any]] = []
    for trial in trials:
        epochs = trial.intermediate_values
        epoch = best(epochs, key=lambda number: epochs[number]) if epochs else None
        rows.append(
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "value": None if epoch is None else epochs[epoch],
                "best_epoch": epoch,
                "epochs": len(epochs),
                "seconds": trial.duration.total_seconds() if trial.duration else None,
                **trial.params,
                "run_id": trial.user_attrs.get(_RUN),
                "error": trial.user_attrs.get(_ERROR),
            }
        )
    return pd.DataFrame(rows)

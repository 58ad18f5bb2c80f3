"""Runs that are under way: opening one, what it logs, its end.

What an open run logs goes to its outbox; all that it reads was read when it was opened.
"""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from dermalyze.config.schema import TrackingConfig
from dermalyze.credentials import masked
from dermalyze.tracking.delivery import deliver, save_model
from dermalyze.tracking.outbox import OUTBOX, REFUSED, WORK, Outbox, undelivered
from dermalyze.tracking.shown_metrics import load_of_machine, shown
from dermalyze.tracking.store import (
    BoundedClient,
    StoreAwayError,
    call,
    is_missing,
    limit_calls,
    quiet,
    use_store,
)
from dermalyze.tracking.stored_runs import EVERY_EPOCH, read_run, status_of
from serving.errors import TrackingError
from serving.taxonomy import DISCLAIMER

DEFAULT_EXPERIMENT = "dermalyze"
_MODEL = "model"  # the folder of the model, in that of the run
_KIND = "mlflow.experimentKind"  # a tag of an experiment: as what `mlflow ui` opens it
_SIGNAL_SECONDS = 1.0  # for what is left to deliver, where a program is stopped


@dataclass(kw_only=True)
class TrackedRun:
    """One MLflow run, open for writing; nothing here waits for the store but `deliver`."""

    run_id: str
    experiment_id: str
    resumed: bool
    params: dict[str, str]  # as the store has them or will have them
    tags: dict[str, str]
    outbox: Outbox
    status: str = "FINISHED"  # what the run ends as, unless an exception says otherwise
    is_below: bool = False  # another run, whose outbox this one uses, delivers
    project_run_id: str = ""  # a run of `mlflow run` that only points to this one
    is_complete: bool = False  # all that is left to do can be done from the outbox
    _epochs_logged: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """What the run keeps on this machine until all of it is delivered."""
        return WORK / self.run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log settings that are not logged yet; what was logged once never changes."""
        new = {
            name: masked(str(value)) for name, value in params.items() if name not in self.params
        }
        if new:
            self.params |= new
            self.outbox.add(self.run_id, "params", params=new)

    def log_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log what MLflow shows of one epoch, once, whatever interruption came between."""
        if epoch not in self._epochs_logged:
            chosen = {**shown(metrics, self.params), **load_of_machine()}
            self.outbox.add(self.run_id, "metrics", metrics=chosen, step=epoch)
            self._epochs_logged.add(epoch)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics, as far as MLflow shows them."""
        self.outbox.add(self.run_id, "metrics", metrics=shown(metrics, self.params))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file, or all files of a folder, below `folder`, as they are when it is sent."""
        self.outbox.add(self.run_id, "file", path=_from_work(path), folder=folder)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        new = {name: masked(str(value)) for name, value in tags.items()}
        self.tags |= new
        self.outbox.add(self.run_id, "tags", tags=new)

    def tag(self, name: str) -> str:
        """Return a tag of the run, or an empty text."""
        return self.tags.get(name, "")

    def log_model(self, arguments: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a pyfunc model with its metrics; once delivered, `MODEL_URI_TAG` has its address."""
        path = self.folder / _MODEL
        with quiet("mlflow.models.model", "mlflow.pyfunc"):
            save_model(path, self.run_id, arguments)
        chosen = shown(metrics, self.params)
        self.outbox.add(self.run_id, "model", path=_from_work(path), metrics=chosen)

    def log_split(
        self, rows: pd.DataFrame, *, split: str, name: str, source: str, digest: str
    ) -> None:
        """Log one split as a dataset input; `digest` names its content."""
        contexts = {"train": "training", "val": "validation", "test": "testing"}
        with warnings.catch_warnings():  # a folder on disk fits two of MLflow's kinds of source
            warnings.simplefilter("ignore", UserWarning)
            dataset = mlflow.data.from_pandas(  # type: ignore[attr-defined]
                rows, source=source, targets="label", name=f"{name}-{split}", digest=digest[:36]
            )
        entity = dict(dataset._to_mlflow_entity())
        self.outbox.add(self.run_id, "dataset", dataset=entity, context=contexts[split])

    def deliver(self) -> None:
        """Wait until the store has all of a run whose work is done.

        A run below another one leaves this to that one.

        Raises:
            StoreAwayError: the store is still away; `dermalyze sync` delivers what is left.
        """
        if self.is_below:
            return
        self.is_complete = True
        self.outbox.add(self.run_id, "complete")
        with self.left_to_sync("delivered"):
            self.outbox.flush()

    @contextlib.contextmanager
    def left_to_sync(self, done: str) -> Iterator[None]:
        """Say how to finish the run, complete but not `done`, where the store goes away in here."""
        try:
            yield
        except StoreAwayError as error:
            raise StoreAwayError(
                f"run {self.run_id} is complete but not {done}: {error.reason}; all of it is "
                f"kept in {self.folder}: when the store is back, run `dermalyze sync "
                f"{self.run_id}`"
            ) from error

    def _end(self) -> None:
        clear = self.is_below and self.status == "FINISHED"
        self.outbox.add(self.run_id, "status", status=self.status, clear=clear)
        if self.project_run_id:
            self.outbox.add(self.project_run_id, "status", status=self.status)


@contextlib.contextmanager
def open_run(
    config: TrackingConfig,
    *,
    name: str = "",
    resume: str = "",
    parent: str = "",
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """Open a new run, the one that `mlflow run` made, or an old one that goes on.

    `name` is what the run is called in lists; without it MLflow invents a name.  With `parent`, the
    id of another run, it is shown below that one, in its experiment.  `tags` are there from the
    run's first moment.

    The run ends as FINISHED, as FAILED after an exception, as KILLED after Ctrl-C.  While the store
    is away it goes on all the same; what it logs is kept on disk.

    Raises:
        TrackingError: the run to resume does not exist, or the store is away at the start or at
            the end.
    """
    limit_calls(config.timeout_seconds)
    use_store()
    named = {**(tags or {}), **({"mlflow.runName": name} if name else {})}
    run = _reopened(resume) if resume else _new(config, parent, named)
    try:
        if resume:
            require_unfinished(resume)  # what was left to deliver may have ended it
        with under_way(run):
            yield run
        run.deliver()
        _clear(run.folder)
    finally:
        run.outbox.close()


@contextlib.contextmanager
def open_undelivered(run_id: str) -> Iterator[TrackedRun | None]:
    """Deliver what a run has left on this machine, then yield it; None: nothing is left.

    A complete run ends with the block.

    Raises:
        TrackingError: there is no such run, it has not ended and is not here, or the store is away.
    """
    if status_of(run_id) == "FINISHED":
        clear_finished(run_id)
        yield None
        return
    if not (WORK / run_id / OUTBOX).exists():
        raise TrackingError(
            f"run {run_id} is not finished, and {WORK.resolve()} holds nothing of it; run this "
            "in the folder that it was trained in"
        )
    run = _reopened(run_id)
    try:
        yield run
        if run.is_complete:
            run._end()
            run.deliver()
            _clear(run.folder)
    finally:
        run.outbox.close()


@contextlib.contextmanager
def under_way(run: TrackedRun) -> Iterator[TrackedRun]:
    """Let a run begin, or go on, and end with the block."""
    run.is_complete = False
    if run.resumed or run.is_below:
        run.outbox.add(run.run_id, "status", status="RUNNING")
    try:
        yield run
        run._end()
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt) or run.status == "KILLED"
        run.status = "KILLED" if interrupted else "FAILED"
        is_away = run.is_complete and isinstance(error, StoreAwayError)
        # A complete run ends as what it is once it is delivered.
        if not (is_away or (run.is_complete and isinstance(error, KeyboardInterrupt))):
            run._end()
        if not (is_away or run.is_below):  # else the error says what is left
            _leave(run, _SIGNAL_SECONDS if interrupted else None)
        raise


def add_below(
    parent: TrackedRun, *, name: str, tags: Mapping[str, str], resume: str = ""
) -> TrackedRun:
    """Make a run below an open one, or take up one that was made there, to begin at any time.

    The store is asked now; from then on the run needs it no more than its parent does, whose
    outbox it uses.

    Raises:
        TrackingError: the store is away.
    """
    what = f"cannot open a run below {parent.run_id}"
    if resume:
        run = call(what, lambda: MlflowClient().get_run(resume))
    else:
        below = {**tags, "mlflow.runName": name, "mlflow.parentRunId": parent.run_id}
        there = call(what, lambda: MlflowClient().get_run(parent.run_id)).info.experiment_id
        run = _created(there, below)
        BoundedClient(what).update_run(run.info.run_id, status="SCHEDULED")
    begun = bool(resume) and run.info.status != "SCHEDULED"
    tracked = _tracked(run, parent.outbox, resumed=begun)
    tracked.is_below = True
    return tracked


def _clear(folder: Path) -> None:
    """Remove the folder of a run that is delivered, but for what the store has refused."""
    if not (folder / REFUSED).exists():
        # First: without the note of what is delivered, all of it would seem to be left.
        (folder / OUTBOX).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def clear_finished(run_id: str) -> None:
    """Remove what a kill at the very end of a finished run has left here.

    What another machine did not deliver before the run was finished elsewhere stays.

    Raises:
        StoreAwayError: the tracking store is away.
    """
    left = undelivered(WORK / run_id)
    if all(entry["kind"] == "complete" or entry.get("status") == "FINISHED" for entry in left):
        for entry in left:  # the kill may have come before that of the run of `mlflow run`
            call("cannot deliver status", partial(deliver, entry, WORK))
        _clear(WORK / run_id)


def _leave(run: TrackedRun, seconds: float | None) -> None:
    """Deliver what can be delivered in some seconds, or at all, and say where the rest is."""
    try:
        run.outbox.flush(seconds)
    except StoreAwayError:
        run.outbox.say_what_is_left()


def _from_work(path: Path) -> str:
    """Return a path as the outbox holds it: relative to the folder of all runs, or absolute."""
    inside = path.is_relative_to(WORK)
    return path.relative_to(WORK).as_posix() if inside else str(path.resolve())


def _tracked(run: MlflowRun, outbox: Outbox, *, resumed: bool) -> TrackedRun:
    tracked = TrackedRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        resumed=resumed,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        outbox=outbox,
    )
    if resumed:
        history = BoundedClient(f"cannot read run {tracked.run_id}").get_metric_history(
            tracked.run_id, EVERY_EPOCH
        )
        tracked._epochs_logged.update(metric.step for metric in history)
    return tracked


def _reopened(run_id: str) -> TrackedRun:
    """Open a run again, once what it has left undelivered is delivered."""
    read_run(run_id)
    outbox = Outbox(WORK / run_id)
    try:
        outbox.flush()
        tracked = _tracked(read_run(run_id), outbox, resumed=True)
        tracked.is_complete = outbox.stages.get(run_id) == "complete" and not outbox.is_damaged
        return tracked
    except BaseException:
        outbox.close()
        raise


def _new(config: TrackingConfig, parent: str, tags: dict[str, str]) -> TrackedRun:
    """Make a run, or take the one that `mlflow run` has made."""
    what = "cannot open a run"
    client = BoundedClient(what)
    given = os.environ.pop("MLFLOW_RUN_ID", "")  # or a child of this process would take it too
    project_run_id = ""
    if parent:
        there = client.get_run(parent).info.experiment_id
        run = _created(there, {**tags, "mlflow.parentRunId": parent})
    elif not given:
        run = _created(_experiment(config.experiment, client), tags)
    else:
        run = client.get_run(given)
        name = client.get_experiment(run.info.experiment_id).name
        if config.experiment not in (name, "auto"):
            # The user wants another experiment: a run cannot move, so a new one is made there.
            for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
                os.environ.pop(variable, None)
            project_run_id = given
            made_by = {k: v for k, v in run.data.tags.items() if k.startswith("mlflow.project")}
            pointer = {"dermalyze.project_run_id": given}
            run = _created(_experiment(config.experiment, client), {**tags, **made_by, **pointer})
    tracked = _tracked(run, Outbox(WORK / run.info.run_id), resumed=False)
    experiment = client.get_experiment(tracked.experiment_id)
    if _KIND not in experiment.tags:
        client.set_experiment_tag(tracked.experiment_id, _KIND, "custom_model_development")
    tracked.project_run_id = project_run_id
    if given and not project_run_id:
        tracked.set_tags({**tracked.tags, **tags, "dermalyze.disclaimer": DISCLAIMER})
    if project_run_id:
        note = f"The training is run {tracked.run_id} of experiment {config.experiment}."
        pointer = {"dermalyze.run_id": tracked.run_id, "mlflow.note.content": note}
        tracked.outbox.add(project_run_id, "tags", tags=pointer)
    return tracked


def _created(experiment_id: str, tags: Mapping[str, str]) -> MlflowRun:
    """Make a run; not tried twice, since the first try may have made one."""
    all_tags = resolve_tags({**tags, "dermalyze.disclaimer": DISCLAIMER})
    shown = {name: masked(str(value)) for name, value in all_tags.items()}
    return call(
        "cannot open a run",
        lambda: MlflowClient().create_run(
            experiment_id, tags=shown, run_name=tags.get("mlflow.runName")
        ),
        patience=0,
    )


def _experiment(wanted: str, client: BoundedClient) -> str:
    """Return the id of the experiment that the user wants, made if it is not there."""
    variable, by_id = (os.environ.get(f"MLFLOW_EXPERIMENT_{part}", "") for part in ("NAME", "ID"))
    name = wanted if wanted != "auto" else variable
    if not name and by_id:
        return _experiment_of(by_id)
    name = name or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        return call("cannot open a run", lambda: _made_experiment(name))
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} was deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or name another one"
        )
    return str(found.experiment_id)


def _experiment_of(experiment_id: str) -> str:
    try:
        client = BoundedClient("cannot open a run")
        return str(client.get_experiment(experiment_id).experiment_id)
    except TrackingError as error:
        if is_missing(error.__cause__):
            raise TrackingError(
                f"MLFLOW_EXPERIMENT_ID must be the id of an experiment in {use_store()}, "
                f"got {experiment_id!r}; see `mlflow experiments search`"
            ) from error
        raise


def _made_experiment(name: str) -> str:
    """Make an experiment, or take the one that another program has just made."""
    client = MlflowClient()
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def require_unfinished(run_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the parameters and tags of a run that is not finished.

    Of a finished one, what a kill has left here is removed.

    Raises:
        TrackingError: there is no such run, or nothing is left to do in it.
    """
    run = read_run(run_id)
    if run.info.status == "FINISHED":
        clear_finished(run_id)
        raise TrackingError(f"run {run_id} is already finished")
    return dict(run.data.params), dict(run.data.tags)


def reach_store(config: TrackingConfig, tags: Mapping[str, str]) -> None:
    """Ask the store before the minutes of work that come before a run is opened.

    The run that `mlflow run` has made for this process, if it has, is tagged.

    Raises:
        TrackingError: the store is away, or has no such experiment.
    """
    limit_calls(config.timeout_seconds)
    use_store()
    if not (given := os.environ.get("MLFLOW_RUN_ID", "")):
        _experiment(config.experiment, BoundedClient("cannot open a run"))
    else:
        client = BoundedClient(f"cannot tag run {given}")
        for name, value in tags.items():
            client.set_tag(given, name, masked(value))

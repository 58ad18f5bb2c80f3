"""What the epochs of a finished run show: over- and underfitting, curves."""

from pathlib import Path

from dermalyze.data.splits import read_split
from dermalyze.evaluation.overfitting import FitVerdict, judge_fit
from dermalyze.evaluation.report.figures import save_png, training_curves
from dermalyze.workflows.finished_run import open_finished


def fit_of_run(run_id: str) -> FitVerdict:
    """Say whether a run over- or underfits."""
    with open_finished(run_id) as run:
        history = run.require_history()
        trained_on = read_split(run.stored.file("train_split.csv"))
    return judge_fit(history, trained_on["label"].value_counts().tolist())


def plot_run(run_id: str, output: Path) -> None:
    """Draw a run's training curves into a PNG file."""
    with open_finished(run_id) as run:
        figure = training_curves(run.require_history(), run.best_epoch)
        save_png(output, figure, disclaimer=False)

"""What a test can see of a picture: that it is a whole PNG, of its size, with the right texts."""

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import roc_curve

from dermalyze.evaluation.metrics.classification import Answers
from dermalyze.evaluation.report import figures as draw
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.prediction import softmax
from serving.taxonomy import DISCLAIMER

C = len(HAM10000.names)
PREDICTIONS = (draw.confusion, draw.roc, draw.per_class, draw.reliability)


def answers(logits, targets, taxonomy=HAM10000):
    return Answers(np.asarray(logits, float), np.asarray(targets), taxonomy)


def epoch(number: int, **changes: float) -> dict[str, float]:
    return {
        "epoch": number,
        "train/loss": 2.0 / number,
        "val/loss": 1.5 / number,
        "train/accuracy": 1 - 0.5 / number,
        "val/accuracy": 1 - 0.6 / number,
        "val/balanced_accuracy": 1 - 0.8 / number,
        "val/macro_f1": 1 - 0.9 / number,
        "val/macro_auc": 1 - 0.3 / number,
        "lr": 3e-4,
        "epoch_seconds": 100.0,
        **changes,
    }


def images(case: str):
    """Logits (N, C) and targets (N,) of an ordinary split and of odd ones."""
    rng = np.random.default_rng(0)
    targets = {
        "ordinary": rng.choice(C, 200, p=np.array([3, 5, 11, 1, 11, 67, 2]) / 100),
        "one image": np.array([5]),
        "one class": np.full(12, 5),
        "absent classes": rng.choice([1, 4, 5], 40),
    }[case]
    return (rng.normal(size=(len(targets), C)) + 2 * np.eye(C)[targets]), targets


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved: matplotlib is listened to, not replaced."""
    saved: list[Figure] = []
    save = Figure.savefig

    def listen(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", listen)
    return saved


def texts_of(figures: list[Figure]) -> list[str]:
    (figure,) = figures
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("make", PREDICTIONS)
@pytest.mark.parametrize("case", ["ordinary", "one image", "one class", "absent classes"])
def test_a_plot_of_predictions_is_a_whole_png_with_the_disclaimer(tmp_path, figures, make, case):
    path = tmp_path / "plot.png"
    draw.save_png(path, make(answers(*images(case))))
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert 700 <= image.width <= 1100  # fits MLflow's artifact view
    assert DISCLAIMER in texts_of(figures)
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]


def test_the_confusion_matrix_shows_counts_and_shares_of_the_true_class(tmp_path, figures):
    targets = np.array([4] * 300 + [5])
    predicted = np.array([4] * 224 + [2] * 75 + [0] + [5])
    draw.save_png(tmp_path / "x.png", draw.confusion(answers(np.eye(C)[predicted], targets)))
    assert {"224\n75%", "75\n25%", "1\n<1%", "1\n100%", "mel\nn = 300", "df\nn = 0"} <= set(
        texts_of(figures)
    )
    assert texts_of(figures).count("0") == C * C - 4
    assert "Confusion matrix: 301 images, accuracy 74.8%" in texts_of(figures)  # 225 of 301


def test_classes_without_a_roc_curve_are_named_as_such(tmp_path, figures):
    logits = np.eye(C)[[1, 1, 5, 5]]
    draw.save_png(tmp_path / "x.png", draw.roc(answers(logits, np.array([1, 1, 5, 5]))))
    assert {"mel  no curve: no image", "nv  AUC 1.000  (n = 2)"} <= set(texts_of(figures))
    figures.clear()
    draw.save_png(tmp_path / "x.png", draw.roc(answers(logits, np.full(4, 5))))
    assert {"mel  no curve: no image", "nv  no curve: no other class"} <= set(texts_of(figures))
    assert "Each class against the rest: no AUC" in texts_of(figures)


def test_the_roc_curve_that_is_drawn_is_scikit_learns(tmp_path, monkeypatch):
    lines = {}
    plot = Axes.plot

    def listen(axes, *args, **kwargs):
        lines[str(kwargs.get("label", ""))[:3]] = args
        return plot(axes, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", listen)
    logits, targets = images("ordinary")
    logits = np.round(logits)  # ties
    draw.save_png(tmp_path / "x.png", draw.roc(answers(logits, targets)))
    expected = roc_curve(targets == 4, softmax(logits)[:, 4], drop_intermediate=False)
    grid = np.linspace(0, 1, 201)
    np.testing.assert_allclose(
        np.interp(grid, *lines["mel"]), np.interp(grid, *expected[:2]), atol=1e-9
    )


def test_per_class_metrics_are_written_above_their_bars(tmp_path, figures):
    targets = np.array([4, 4, 4, 4, 5, 5])
    predicted = np.array([4, 5, 5, 5, 5, 5])
    draw.save_png(tmp_path / "x.png", draw.per_class(answers(np.eye(C)[predicted], targets)))
    numbers = [text for text in texts_of(figures) if text[:2] in ("0.", "1.") and len(text) == 4]
    # precision, sensitivity, F1: mel 1/1, 1/4, 2/5; nv 2/5, 2/2, 4/7
    assert sorted(numbers) == sorted(["1.00", "0.25", "0.40", "0.40", "1.00", "0.57"])
    assert texts_of(figures).count("no image") == 5


def test_the_calibration_curve_says_its_error(tmp_path, figures):
    logits = np.full((10, C), -1000.0)
    logits[:, 5] = 0.0  # always sure of nv
    draw.save_png(tmp_path / "x.png", draw.reliability(answers(logits, [5] * 7 + [4] * 3)))
    assert "as trained: ECE 0.300" in texts_of(figures)


@pytest.mark.parametrize("num_epochs", [1, 2, 45])
def test_training_curves_mark_the_best_epoch(tmp_path, figures, num_epochs):
    path = tmp_path / "training_curves.png"
    draw.save_png(
        path,
        draw.training_curves([epoch(i + 1) for i in range(num_epochs)], num_epochs),
        disclaimer=False,
    )
    with Image.open(path) as image:
        image.load()
        assert image.size == (1440, 1056)
    assert texts_of(figures).count(f"best epoch {num_epochs}") == 3
    assert "learning rate; 100.0 s per epoch" in texts_of(figures)
    assert [entry.name for entry in tmp_path.iterdir()] == ["training_curves.png"]


def test_epochs_are_counted_in_whole_numbers(tmp_path, figures):
    draw.save_png(tmp_path / "x.png", draw.training_curves([epoch(1)], 1), disclaimer=False)
    ticks = [label.get_text() for label in figures[0].axes[2].get_xticklabels()]
    assert ticks == ["0", "1", "2"]  # of which the limits show the middle one


def test_a_metric_that_an_epoch_lacks_is_a_gap(tmp_path, figures):
    history = [epoch(1), epoch(2), epoch(3)]
    del history[1]["val/macro_auc"]
    for entry in history:
        del entry["epoch_seconds"]
    draw.save_png(tmp_path / "x.png", draw.training_curves(history, 0), disclaimer=False)
    assert "learning rate" in texts_of(figures)
    assert "macro AUC" in texts_of(figures)
    assert not [text for text in texts_of(figures) if text.startswith("best epoch")]


def test_an_empty_history_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(DataError) as caught:
        draw.save_png(tmp_path / "x.png", draw.training_curves([], 0), disclaimer=False)
    assert str(caught.value) == (
        "the training history is empty; expected at least one finished epoch, train first"
    )
    assert list(tmp_path.iterdir()) == []

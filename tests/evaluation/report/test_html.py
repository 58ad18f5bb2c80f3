"""The report as a file: self-contained, well formed, honest about what it lacks."""

import itertools

import numpy as np
import pytest
from report_page import Page
from simulated import predicted, renamed, simulate

from dermalyze.config.schema import EvaluationConfig
from dermalyze.evaluation.evaluate import evaluate
from dermalyze.evaluation.report.html import (
    Mistake,
    ReportInputs,
    most_confident_mistakes,
    write_report,
)
from dermalyze.evaluation.text import number
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import DISCLAIMER

HISTORY = [
    {"epoch": epoch, "train/loss": 2.0 / epoch, "val/loss": 2.1 / epoch, "val/macro_auc": 0.5,
     "val/balanced_accuracy": 0.1 * epoch, "val/macro_f1": 0.1}
    for epoch in (1, 2, 3)
]  # fmt: skip
HOSTILE = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def judged():
    scored = simulate(400, seed=0)
    validation = renamed(simulate(300, seed=1), "V")
    return scored, evaluate(predicted(scored, validation), EvaluationConfig(replicates=100))


@pytest.fixture(scope="module")
def whole(judged, tmp_path_factory):
    """A report with every part, some of it hostile."""
    scored, found = judged
    mistakes = [
        Mistake(
            image_id=HOSTILE, true_label="mel", predicted="nv", confidence=0.9, picture=b"jpeg"
        ),
        Mistake(image_id="ISIC_1", true_label="nv", predicted="mel", confidence=0.8),
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    inputs = ReportInputs(
        evaluation=found,
        scored=scored,
        history=HISTORY,
        best_epoch=2,
        config_yaml=f"model: {{name: '{HOSTILE}'}}",
        facts={"run id": "abc"},
        mistakes=mistakes,
        warnings=[f"a warning {HOSTILE}"],
    )
    write_report(path, inputs)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bare(judged, tmp_path_factory):
    """A report of predictions alone."""
    scored, _ = judged
    settings = EvaluationConfig(replicates=100)
    found = evaluate(predicted(scored, split="predictions"), settings)
    path = tmp_path_factory.mktemp("bare") / "report.html"
    write_report(path, ReportInputs(evaluation=found, scored=scored))
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["whole", "bare"])
def test_it_asks_for_nothing_and_runs_nothing(kind, request):
    page = Page(request.getfixturevalue(kind))
    assert page.of("script") == []
    assert page.of("link") == []
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/"))
    assert "url(" not in request.getfixturevalue(kind)


@pytest.mark.parametrize("kind", ["whole", "bare"])
def test_it_can_be_read_by_everyone(kind, request):
    page = Page(request.getfixturevalue(kind))
    assert page.of("html")[0]["lang"] == "en"
    assert "width=device-width" in next(
        attrs["content"] for attrs in page.of("meta") if attrs.get("name") == "viewport"
    )
    assert len(page.of("h1")) == 1
    assert len(page.of("title")) == 1
    assert all(attrs.get("alt") for attrs in page.of("img"))
    assert all(attrs.get("scope") for attrs in page.of("th"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in page.of("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


def test_what_comes_from_outside_is_shown_and_not_obeyed(whole):
    assert HOSTILE not in whole
    assert Page(whole).text.count(HOSTILE) >= 3  # id, configuration, warning


def test_every_headline_stands_with_its_interval(whole, judged):
    text = Page(whole).text
    known = judged[1].intervals
    for name in ("balanced_accuracy", "accuracy", "malignant_auc", "mcc", "recall/nv", "auc/mel"):
        found = known[name]
        assert number(found.estimate) in text
        if found.low is not None:
            assert f"{number(found.low)} to {number(found.high)}" in text
    reason = next(i.reason for n, i in known.items() if n == "recall/df")
    assert reason.startswith("only ")
    assert reason in text


def test_it_says_what_it_is_not(whole, bare):
    for page in (whole, bare):
        text = Page(page).text
        assert text.count(DISCLAIMER) >= 2
        assert "does not record skin type" in text
    assert "CC BY-NC 4.0" in Page(whole).text


def test_what_is_missing_is_said(bare):
    text = Page(bare).text
    for sentence in (
        "there are no predictions for a validation split",
        "There is no training history",
        "There is no configuration",
        "the images were not available",
    ):
        assert sentence in text


def test_drawn_data_is_marked(judged, tmp_path):
    scored, found = judged
    inputs = ReportInputs(evaluation=found, scored=scored, demo_data=True)
    write_report(tmp_path / "report.html", inputs)
    text = Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "say nothing about skin" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_the_confusion_matrix_counts_the_images(whole, judged):
    scored, _ = judged
    rows = np.bincount(scored.targets, minlength=7)
    text = Page(whole).text
    for name, count in zip(HAM10000.names, rows, strict=True):
        assert f"{name} n = {count:,}" in text


def test_the_most_confident_mistakes_come_first_and_once_a_lesion(judged):
    scored, _ = judged
    rows = most_confident_mistakes(scored, 12)
    assert (scored.predicted[rows] != scored.targets[rows]).all()
    confidence = scored.probs.max(axis=1)
    assert (np.diff(confidence[rows]) <= 0).all()
    assert len(set(scored.lesions[rows])) == len(rows) == 12
    wrong = scored.predicted != scored.targets
    assert confidence[rows[0]] == confidence[wrong].max()

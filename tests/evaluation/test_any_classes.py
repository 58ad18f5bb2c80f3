"""The evaluation of any set of classes: 2, 8, 23 and 100 of them, with names of any kind."""

import io
import json
import warnings
from functools import partialmethod

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from report_page import Page

from dermalyze.config.schema import Config, EvaluationConfig
from dermalyze.evaluation.evaluate import Evaluation, Predictions, evaluate
from dermalyze.evaluation.predictions import predictions_table
from dermalyze.evaluation.report import figures
from dermalyze.evaluation.report.cards import CardInputs, data_card, model_card
from dermalyze.evaluation.report.folder import format_metrics, read_folder, write_folder
from dermalyze.evaluation.report.html import Mistake, ReportInputs, write_report
from dermalyze.evaluation.scores import Scored, scored_of
from dermalyze.evaluation.statistics.comparison import compare, compared, table
from dermalyze.evaluation.text import width_of
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import DISCLAIMER, Taxonomy

QUICK = EvaluationConfig(replicates=100)
ODD = (
    *("naevus/flach, \u201cgew\u00f6hnlich\u201d", "=1+1", "_hidden $x$ $y$", "\u6bcd\u6591"),
    *("A", "a", "mel"),
)
HISTORY = [
    {"epoch": e, "train/loss": 1 / e, "val/loss": 1 / e, "val/balanced_accuracy": 0.5}
    for e in (1, 2)
]


def taxonomy_of(num_classes: int, *, malignant: bool = True) -> Taxonomy:
    """Classes with odd names among them; with some of them malignant, or none known to be."""
    names = (*ODD, *(f"class {number}" for number in range(200)))[:num_classes]
    return Taxonomy(names=names, malignant=names[:1] if malignant else (), title="Moles of Mars")


def answers(taxonomy: Taxonomy, num_images: int = 400, **columns: object) -> Scored:
    """Images of any classes, two per lesion."""
    rng = np.random.default_rng(0)
    lesions = np.arange(num_images) // 2
    targets = rng.integers(len(taxonomy), size=num_images)[lesions * 2]
    rows = pd.DataFrame(
        {
            "image_id": [f"i{number}" for number in range(num_images)],
            "label": np.asarray(taxonomy.names, dtype=object)[targets],
            "lesion_id": [f"l{lesion}" for lesion in lesions],
            "dx_type": "unknown",
            "age": 50.0,
            "sex": np.where(lesions % 2, "female", "male"),
            "localization": "unknown",
            **columns,
        }
    )
    logits = rng.normal(size=(num_images, len(taxonomy))) + 2 * np.eye(len(taxonomy))[targets]
    return scored_of(predictions_table(rows, logits, taxonomy), taxonomy)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 8, 23])
def test_an_evaluation_of_any_classes_is_written_and_read_back(num_classes, tmp_path):
    taxonomy = taxonomy_of(num_classes)
    scored = answers(taxonomy)
    predictions = Predictions(scored=scored, split="test", context={"run_id": "r"})
    found = evaluate(predictions, QUICK)
    write_folder(tmp_path, predictions, found)
    again = read_folder(tmp_path, "test")
    assert again.scored.taxonomy == taxonomy
    np.testing.assert_array_equal(again.scored.logits, scored.logits)
    assert again.scored.table["label"].tolist() == scored.table["label"].tolist()
    assert evaluate(again, QUICK) == found
    assert Evaluation.from_json((tmp_path / "judgement.json").read_text("utf-8")) == found
    assert {f"recall/{key}" for key in taxonomy.keys} <= found.metrics.keys()
    assert all(name in format_metrics(found.logged(), taxonomy) for name in taxonomy.names)
    assert all(key.isprintable() and "//" not in key for key in found.logged())


def test_without_malignant_classes_clinical_metrics_are_absent(tmp_path):
    scored = answers(taxonomy_of(8, malignant=False))
    found = evaluate(Predictions(scored=scored, split="test"), QUICK)
    assert found.malignant_roc is found.decision_curve is None
    assert "malignant" not in found.to_json().replace('"malignant": []', "")
    assert not [key for key in found.logged() if "malignant" in key]
    assert not [metric for metric in compared(scored) if "malignant" in metric]
    write_report(tmp_path / "r.html", ReportInputs(evaluation=found, scored=scored))
    text = Page((tmp_path / "r.html").read_text("utf-8")).text
    assert "alignan" not in text
    assert "net benefit" not in text.lower()


@pytest.mark.parametrize("num_classes", [2, pytest.param(23, marks=pytest.mark.slow)])
def test_the_page_and_the_cards_speak_of_the_classes_at_hand(num_classes, tmp_path):
    taxonomy = taxonomy_of(num_classes)
    scored = answers(taxonomy)
    found = evaluate(Predictions(scored=scored, split="test"), QUICK)
    mistake = Mistake(image_id="i", true_label=ODD[0], predicted=ODD[1], confidence=0.5)
    inputs = ReportInputs(evaluation=found, scored=scored, history=HISTORY, mistakes=[mistake])
    write_report(tmp_path / "r.html", inputs)
    text = Page((tmp_path / "r.html").read_text("utf-8")).text
    audit = {
        **dict.fromkeys(("num_rows", "num_named", "num_files", "num_usable"), 400),
        "lesions_with_several_images": 200,
        **dict.fromkeys(("images", "lesions"), dict.fromkeys(taxonomy.names, 9)),
        **{"missing": {}, "problems": [], "stop_reason": ""},
    }
    splits = dict.fromkeys(("train", "val", "test"), scored.table)
    cards = CardInputs(
        evaluation=found, config=Config(), splits=splits, audit=audit, history=HISTORY, best_epoch=1
    )
    for page in (text, model_card(cards), data_card(cards)):
        assert f"{num_classes} classes" in page
        assert "Moles of Mars" in page
        assert "class 0" in page or num_classes < 8
        for foreign in ("HAM10000", "akiec", "seven", "Queensland", "skin type", "doi"):
            assert foreign not in page


def test_tables_in_a_terminal_name_the_classes_as_the_data_does_and_align():
    scored = answers(taxonomy_of(8))
    found = evaluate(Predictions(scored=scored, split="test"), QUICK)
    lines = format_metrics(found.logged(), scored.taxonomy).split("\n")
    rows = lines[lines.index("") + 1 :]
    assert [row.split("  ")[0] for row in rows[1:9]] == list(scored.taxonomy.names)
    assert len(set(map(width_of, rows))) == 1
    compared_with_itself = compare(["a", "b"], [scored, scored], replicates=100)
    assert f"sensitivity for {ODD[0]} " in table(compared_with_itself)


@pytest.mark.parametrize("num_classes", [2, 8, 23, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("draw", [figures.roc, figures.precision_recall])
def test_a_legend_covers_nothing(num_classes, draw, tmp_path, monkeypatch):
    boxes = {}

    def listen(artist, renderer, *, draw):
        draw(artist, renderer)
        boxes[artist] = artist.get_window_extent(renderer)

    for kind in (Legend, Text):
        monkeypatch.setattr(kind, "draw", partialmethod(listen, draw=kind.draw))
    figure = draw(answers(taxonomy_of(num_classes)))
    figures.save_png(tmp_path / "x.png", figure)
    (legend,) = figure.legends
    others = {text for text in boxes if isinstance(text, Text)} - set(legend.get_texts())
    others = {text.get_text(): boxes[text] for text in others if text.get_text()}
    assert DISCLAIMER in others
    assert not [text for text, box in others.items() if box.overlaps(boxes[legend])]
    assert boxes[legend].y1 < boxes[figure.axes[0].xaxis.label].y0


def test_a_class_name_without_a_font_is_replaced_by_its_key_or_its_place(monkeypatch):
    fonts = [font for font in figures.fontManager.ttflist if font.name.startswith("DejaVu Sans")]
    figures._fonts_of.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(figures.fontManager, "ttflist", fonts)
        names = ("mole \U0010fffd", "\u6bcd\u6591", "m\u00f6le")
        figure = figures.confusion(answers(Taxonomy(names=names)))
        shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    figures._fonts_of.cache_clear()
    assert shown == ["mole _", "class no. 2", "m\u00f6le"]


def test_a_character_that_the_usual_font_lacks_is_drawn_with_another_installed_font():
    name = "\u1d81"  # in STIX, which comes with matplotlib
    figure = Figure()
    figure.text(0, 0, name)
    figures._set_fonts(figure)
    assert figure.texts[0].get_fontfamily()[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        figure.savefig(io.BytesIO())


def test_classes_of_a_plot_never_look_alike():
    styles = {str(figures.line_style(index)) for index in range(figures.MAX_LINES)}
    assert len(styles) == figures.MAX_LINES
    first = [figures.line_style(index)["color"] for index in range(7)]
    assert first == list(figures.COLORS)  # HAM10000 looks as it did


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [2, 8, 23, 100])
def test_every_picture_of_any_classes_can_be_drawn(num_classes, tmp_path):
    scored = answers(taxonomy_of(num_classes))
    for draw in (figures.confusion, figures.roc, figures.per_class, figures.precision_recall):
        figures.save_png(tmp_path / "x.png", draw(scored))
        assert (tmp_path / "x.png").stat().st_size > 10_000


def test_further_columns_of_the_data_become_subgroups(tmp_path):
    numbers = np.arange(400)
    scored = answers(
        taxonomy_of(2), dataset=np.where(numbers // 2 % 2, "rome", "vienna"), serial=numbers
    )
    found = evaluate(Predictions(scored=scored, split="test"), QUICK)
    groups = {group.group for group in found.subgroups.groups if group.attribute == "dataset"}
    assert groups == {"rome", "vienna"}
    assert "serial" not in {group.attribute for group in found.subgroups.groups}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size"), [("patient", 4), ("image", 1)])
def test_intervals_are_drawn_by_what_the_data_is_grouped_by(kind, size, tmp_path):
    group = [f"p{number // 4}" if kind == "patient" else f"i{number}" for number in range(400)]
    scored = answers(taxonomy_of(2), group=group)
    found = evaluate(Predictions(scored=scored, split="test"), QUICK)
    assert (found.group_by, found.num_lesions) == (kind, 400 // size)
    predictions = Predictions(scored=scored, split="test")
    write_folder(tmp_path, predictions, found)
    assert evaluate(read_folder(tmp_path, "test"), QUICK) == found
    write_report(tmp_path / "r.html", ReportInputs(evaluation=found, scored=scored))
    text = Page((tmp_path / "r.html").read_text("utf-8")).text
    assert f"bootstrap intervals: {kind}s" in text
    assert "lesions were" not in text


@pytest.mark.slow
def test_a_folder_without_a_taxonomy_is_read_as_ham10000(tmp_path):
    scored = answers(HAM10000)
    predictions = Predictions(scored=scored, split="test")
    write_folder(tmp_path, predictions, evaluate(predictions, QUICK))
    header = (tmp_path / "predictions.csv").read_text("utf-8").splitlines()[0]
    probs = ",".join(f"prob_{name}" for name in HAM10000.names)
    logits = ",".join(f"logit_{name}" for name in HAM10000.names)
    assert header == (
        f"image_id,lesion_id,label,predicted,confidence,{probs},{logits},dx_type,age,sex,"
        "localization"
    )
    assert json.loads((tmp_path / "taxonomy.json").read_text("utf-8")) == json.loads(
        json.dumps(HAM10000.to_dict())
    )
    (tmp_path / "taxonomy.json").unlink()
    assert read_folder(tmp_path, "test").scored.taxonomy == HAM10000

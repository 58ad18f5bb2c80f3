"""Every number in a card is traced to an artifact of the run, by its printed form."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path

import jinja2
import pandas as pd
import pytest
from report_page import Page
from simulated import predicted, renamed, simulate

from dermalyze.config.loading import config_from
from dermalyze.config.schema import Config, EvaluationConfig
from dermalyze.evaluation.evaluate import Evaluation, evaluate
from dermalyze.evaluation.report.cards import (
    REGISTRY_LIMIT,
    CardInputs,
    data_card,
    model_card,
    shortened,
)
from dermalyze.evaluation.report.html import ReportInputs, write_report
from dermalyze.evaluation.report.text import in_words, markdown, referral_sentences
from dermalyze.evaluation.text import AT_POINTS, PER_CLASS, TITLES
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import DISCLAIMER

TEMPLATES = Path(str(resources.files("dermalyze.evaluation.report") / "templates"))
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]\d+)?%?")
AUDIT = {
    "num_rows": 1011,
    "num_named": 1012,
    "num_files": 1013,
    "num_usable": 1014,
    "lesions_with_several_images": 277,
    "images": dict.fromkeys(HAM10000.names, 141),
    "lesions": dict.fromkeys(HAM10000.names, 97),
    "missing": {"age": 19, "sex": 23},
    "problems": [{"kind": "near_duplicate", "severity": "warning", "meaning": "two", "count": 4}],
    "stop_reason": "",
}
HISTORY = [
    {"epoch": epoch, "train/loss": 1.7 / epoch, "val/loss": 1.9 / epoch, "val/accuracy": 0.61}
    for epoch in (1, 2, 3)
]


@pytest.fixture(scope="module")
def inputs():
    scored = simulate(500, seed=0)
    validation = renamed(simulate(300, seed=1), "V")
    found = evaluate(predicted(scored, validation), EvaluationConfig(replicates=100))
    return CardInputs(
        evaluation=found,
        config=Config(),
        splits={
            "train": renamed(simulate(700, seed=2), "T").table,
            "val": validation.table,
            "test": scored.table,
        },
        audit=AUDIT,
        history=HISTORY,
        best_epoch=3,
        facts={"run id": "abc7", "parameters of the network": "123456"},
    )


def values(part: object) -> Iterator[object]:
    """Every number and text in nested dicts and lists, and every text's own numbers."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from values(key)
            yield from values(value)
    elif isinstance(part, list | tuple):
        for value in part:
            yield from values(value)
    elif isinstance(part, str):
        yield from NUMBER.findall(part)
    else:
        yield part


def printed(value: object) -> set[str]:
    """The forms in which a card may print a value."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return {value}
    forms = {str(value), f"{value:.0%}", f"{value:.2%}", f"{abs(round(value, 3)):.3f}"}
    if value == int(value):
        forms.add(f"{int(value):,}")
    return forms


def counts(splits: Mapping[str, pd.DataFrame]) -> list[int]:
    """What can be counted in the split files."""
    found = []
    for rows in splits.values():
        found += [len(rows), rows["lesion_id"].nunique()]
        found += [int((rows["label"] == name).sum()) for name in HAM10000.names]
    return found


def own_numbers(template: str) -> set[str]:
    """The numbers that the template's sentences hold, such as a year."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return set(NUMBER.findall(re.sub(r"\{[{%].*?[%}]\}", " ", text)))


def untraced(card: str, template: str, inputs: CardInputs) -> set[str]:
    artifacts = [
        json.loads(inputs.evaluation.to_json()),
        asdict(inputs.config),
        inputs.audit,
        list(inputs.history),
        dict(inputs.facts),
        counts(inputs.splits),
        [inputs.best_epoch, len(inputs.history)],
    ]
    constants = [DISCLAIMER, HAM10000.license, HAM10000.citation, list(HAM10000.descriptions)]
    constants += [list(TITLES.values()), list(AT_POINTS.values())]
    constants += [list(PER_CLASS.values()), inputs.config.model.timm_name]
    known = set().union(*(printed(value) for value in values([*artifacts, *constants])))
    known |= own_numbers(template)
    known.add("0.001")  # p-values below it are printed as such
    return set(NUMBER.findall(card)) - known


@pytest.mark.parametrize(
    ("write", "template"), [(model_card, "model_card.md"), (data_card, "data_card.md")]
)
def test_every_number_of_a_card_comes_from_the_run(write, template, inputs):
    card = write(inputs)
    assert len(NUMBER.findall(card)) > 50
    assert untraced(card, template, inputs) == set()


def test_a_number_that_is_made_up_is_found_out(inputs):
    card = model_card(inputs)
    assert untraced(
        card + "\nIt was right in 0.98765 of 31,337 cases.", "model_card.md", inputs
    ) == {
        "0.98765",
        "31,337",
    }


def test_the_referral_is_shown_level_by_level_with_what_was_measured(inputs):
    check = inputs.evaluation.limits.referral
    part = model_card(inputs).partition("### Referral")[2].partition("\n### ")[0]
    assert len(check.levels) >= 3
    for row in check.levels:
        cells = f"{row.level:.0%}", f"{row.min_prob:.2%}", in_words(row.sensitivity)
        assert f"| {' | '.join(cells)} | {in_words(row.specificity)} |" in part
    assert f"- {referral_sentences(check, 'lesion')[-1]}" in part


def test_the_sections_are_those_of_mitchell(inputs):
    card = model_card(inputs)
    sections = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert sections == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    assert "CC BY-NC 4.0" in card
    assert "Not meant for: diagnosis" in card
    assert DISCLAIMER in card


@pytest.mark.parametrize("write", [model_card, data_card])
def test_tables_have_as_many_cells_in_each_row_as_in_the_head(write, inputs):
    for block in re.findall(r"(?:^\|.*\n)+", write(inputs), re.MULTILINE):
        rows = [re.sub(r"\\\|", "", line).count("|") for line in block.splitlines()]
        assert len(set(rows)) == 1, block


def test_a_fact_cannot_bring_markup_with_it(inputs):
    hostile = CardInputs(**{**vars(inputs), "facts": {"run id": "<b>|[x](http://y)"}})
    assert "\\<b\\>\\|\\[x\\](http://y)" in model_card(hostile)


def test_drawn_data_is_marked_in_both_cards(inputs):
    drawn = CardInputs(**{**vars(inputs), "demo_data": True})
    assert "say nothing about skin" in model_card(drawn)
    assert "drawn by a program" in data_card(drawn)


def test_a_card_without_a_calibrator_says_so(inputs):
    evaluation = replace(inputs.evaluation, calibration=None)
    card = model_card(replace(inputs, evaluation=evaluation))
    assert "No calibrator was fitted" in card


def test_a_left_out_source_is_told_in_the_card_and_the_report(inputs, tmp_path):
    scored = simulate(500, seed=0, signal=2.5)
    validation = renamed(simulate(900, seed=1, signal=2.5), "V")
    left_out = replace(predicted(scored, validation), left_out="clinic=B")
    evaluation = evaluate(left_out, EvaluationConfig(replicates=100))
    classes = evaluation.elsewhere.classes
    mean = evaluation.intervals["balanced_accuracy_elsewhere"]
    assert 1 < len(classes) < 7
    assert evaluation.logged()["test/balanced_accuracy_elsewhere"] == mean.estimate
    assert evaluation.logged()["test/balanced_accuracy_elsewhere_low"] == mean.low
    assert Evaluation.from_json(evaluation.to_json()) == evaluation
    answered = evaluation.limits.abstention.coverage.estimate
    assert answered > 0.2
    sentences = [
        "All test images are from the left-out source clinic=B, and nothing was fitted on them: no "
        "weights, no best epoch, no calibration, no limits.",
        f"Balanced accuracy elsewhere: {in_words(mean)}, over {len(classes)} of 7 classes, those "
        f"with at least 15 lesions in this source: {', '.join(classes)}.",
        f"Share of lesions answered: {in_words(evaluation.limits.abstention.coverage)}; error rate "
        f"among them: {in_words(evaluation.limits.abstention.risk)}.",
        "Coverage of prediction sets at 90%, all classes together: "
        f"{in_words(evaluation.limits.prediction_sets.coverage)}.",
    ]
    data = replace(inputs.config.data, leave_out="clinic=B")
    config = replace(inputs.config, data=data)
    cards = replace(inputs, evaluation=evaluation, config=config)
    path = tmp_path / "report.html"
    write_report(path, ReportInputs(evaluation=evaluation, scored=scored))
    page = Page(path.read_text(encoding="utf-8")).text
    for sentence in sentences:
        assert f"- {sentence}\n" in model_card(cards)
        assert sentence in page
    assert "The test split is the source clinic=B." in data_card(cards)
    check = evaluation.limits.abstention
    few = replace(check, coverage=replace(check.coverage, estimate=0.199))
    rarely = replace(evaluation, limits=replace(evaluation.limits, abstention=few))
    assert "error rate among them: not answered." in model_card(replace(cards, evaluation=rarely))
    write_report(path, ReportInputs(evaluation=rarely, scored=scored))
    page = Page(path.read_text(encoding="utf-8")).text
    assert "Error rate among answered lesions: not answered." in page
    assert "left-out" not in model_card(inputs)


def test_the_model_card_tells_what_the_training_did_beside_the_default(inputs):
    settings = (
        "training.accumulate=4",
        "augmentation.mixup_alpha=0.2",
        "loss.class_weights=none",
        "loss.logit_adjustment=1",
        "loss.distill_from=[a.pt, b.pt]",
    )
    card = model_card(replace(inputs, config=config_from({}, settings)))
    assert (
        "batches of 32 images (4 per optimizer step), loss `cross_entropy` with class weights "
        "`none` and logit adjustment 1.0, augmentation `medium` and images mixed in pairs, seed 42."
    ) in card
    assert "- It also learned from 2 trained networks, with weight 0.5 (distillation).\n" in card


def test_the_registry_gets_as_much_as_it_holds(inputs):
    card = model_card(inputs)
    assert len(card) > REGISTRY_LIMIT
    short = shortened(card)
    assert len(short) <= REGISTRY_LIMIT
    assert short.startswith("# Model card")
    assert "the whole card is with the run" in short
    assert "## Intended use" in short
    assert "## Caveats and recommendations" in short  # tables go first, sentences stay
    assert shortened("short") == "short"


def test_templates_ask_for_nothing_that_is_not_given(inputs):
    with pytest.raises(jinja2.UndefinedError):
        markdown("model_card.md", {"inputs": inputs})

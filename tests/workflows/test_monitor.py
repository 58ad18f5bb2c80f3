"""`dermalyze monitor`: a log and a model file in, a page, numbers and an exit status out."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from answered import NAMES, OTHER, PRIOR, entries, spec_of
from click.testing import CliRunner
from rich_model import RICH, rich_bytes

from dermalyze.cli.main import main
from serving.prediction_log import PredictionLog

UNTIL = ("--until", "2025-01-27")  # three weeks are over


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a log of three weeks without a shift, one with a shift, and diagnoses."""
    folder, rng = tmp_path_factory.mktemp("monitor"), np.random.default_rng(0)
    spec = spec_of(rng)
    (folder / "model.onnx").write_bytes(rich_bytes(spec))
    rows = ["request_id,label"]
    for name, last in (("calm", PRIOR), ("shifted", OTHER)):
        log = PredictionLog(str(folder / f"{name}.jsonl"), 400_000)
        for week in range(3):
            found, labels = entries(rng, spec, week, last if week == 2 else PRIOR)
            log.add(found)
            if name == "shifted":
                rows += [
                    f"{entry.request_id},{label}"
                    for entry, label in zip(found, labels, strict=True)
                ]
        log.close(60)
    (folder / "truth.csv").write_text("\n".join(rows))
    return folder


def monitor(place, log, *options):
    words = ["monitor", "--log", place / log, "--reference", place / "model.onnx", *UNTIL]
    words += ["--output", place / "out", *options]
    return CliRunner().invoke(main, [str(word) for word in words])


def test_without_a_shift_the_exit_status_is_0(place):
    done = monitor(place, "calm.jsonl")
    assert done.exit_code == 0, done.output
    assert "last look 2025-01-20 to 2025-01-26: no change was found" in done.output
    numbers = json.loads((place / "out/monitoring.json").read_text())
    assert (numbers["is_alarm"], numbers["num_answers"], len(numbers["looks"])) == (False, 1500, 3)


def test_a_shift_is_exit_status_3_and_names_the_class(place):
    done = monitor(place, "shifted.jsonl", "--truth", place / "truth.csv")
    assert done.exit_code == 3, done.output
    assert "the answers have changed" in done.output
    assert "share of a predicted class: " in done.output
    page = (place / "out/monitoring.html").read_text()
    assert page.count("<figure>") == 2
    assert "<script" not in page
    assert "By later diagnoses" in page
    numbers = json.loads((place / "out/monitoring.json").read_text())
    assert [bool([f for f in k["findings"] if f["is_alarm"]]) for k in numbers["looks"]] == [
        False, False, True
    ]  # fmt: skip
    truth, estimate = numbers["truth"], numbers["estimate"]
    assert truth["num_labelled"] == 1500
    low, high = (estimate["accuracy"][name] for name in ("low", "high"))
    assert low - 0.02 <= truth["metrics"]["accuracy"]["estimate"] <= high + 0.02


def test_one_look_needs_no_week(place):
    done = monitor(place, "shifted.jsonl", "--once", "--until", "2025-01-01")
    assert done.exit_code == 3
    done = monitor(place, "shifted.jsonl", "--until", "2025-01-01")
    assert done.exit_code == 0
    assert "No week is over yet, so there was no look; --once looks at all answers." in done.output


def refused(done, sentence):
    assert (done.exit_code, done.output) == (1, f"Error: {sentence}\n")


def test_answers_of_another_model_are_named(place):
    other = replace(RICH, temperature=5.0, run_id="fedcba9876543210")
    (place / "other.onnx").write_bytes(rich_bytes(other))
    done = monitor(place, "calm.jsonl", "--reference", place / "other.onnx")
    found = json.loads((place / "calm.jsonl").read_text().splitlines()[0])["model"]
    refused(
        done,
        f"the log has no answer of the model other.onnx; it has {found}; pass the run or file of "
        "one of these as --reference",
    )


def test_a_model_that_does_not_describe_its_validation_images_is_still_judged(place):
    plain = spec_of(np.random.default_rng(0))
    (place / "plain.onnx").write_bytes(rich_bytes(replace(plain, monitoring=None)))
    done = monitor(place, "calm.jsonl", "--reference", place / "plain.onnx")
    assert done.exit_code == 0
    assert "Nothing is compared with validation images: the model file does not" in done.output
    assert "estimated accuracy of all answers, without labels: 0.8" in done.output


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("request_id\n0-1", "{} lacks the column label; expected request_id,label[,image]"),
        (
            "request_id,label\n0-1,wart",
            "{} has the label 'wart' for request 0-1, expected one of " + ", ".join(NAMES),
        ),
        (
            "request_id,label,image\n0-1,nv,first",
            "{} has the image 'first' for request 0-1, expected its number in the request, from 1",
        ),
        ("request_id,label\n0-1,nv\n0-1,mel", "{} has two labels for image 1 of request 0-1"),
    ],
)
def test_diagnoses_that_cannot_be_used_are_one_sentence(place, table, sentence):
    path = place / "bad.csv"
    path.write_text(table)
    refused(monitor(place, "calm.jsonl", "--truth", path), sentence.format(path))


def test_diagnoses_name_the_image_of_a_request_with_several(place):
    (first, second, *_), _ = entries(np.random.default_rng(1), spec_of(np.random.default_rng(0)), 0)
    path, truth = place / "pairs.jsonl", place / "pairs.csv"
    pair = [first, replace(second, request_id=first.request_id, image=2)]
    path.write_text("".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in pair))
    truth.write_text(f"request_id,label\n{first.request_id},nv\n")
    refused(
        monitor(place, "pairs.jsonl", "--truth", truth),
        f"request {first.request_id} had several images, and {truth} does not say which is meant; "
        "add the column image, from 1",
    )
    label = second.predicted_class
    truth.write_text(f"request_id,image,label\n{first.request_id},2,{label}\nunknown,1,nv\n")
    done = monitor(place, "pairs.jsonl", "--truth", truth)
    assert "accuracy of 1 answer, by later diagnoses: 1.000" in done.output
    assert "Left out: 1 row of --truth for no answer of this log." in done.output

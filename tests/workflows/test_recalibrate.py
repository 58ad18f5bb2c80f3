"""New limits in a model file: fitted on labelled images, measured on others, its graph kept."""

import csv
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image
from rich_model import RICH
from simulated import renamed, simulate

from dermalyze.cli.main import main
from dermalyze.evaluation.drift import fit_monitoring
from dermalyze.evaluation.predictions import write_predictions
from dermalyze.evaluation.uncertainty.limits import fit_limits
from dermalyze.workflows.external import Source
from dermalyze.workflows.recalibrate import (
    PARTS,
    Labelled,
    answers_of_images,
    recalibrate,
    stored_answers,
)
from serving import Predictor
from serving.errors import DataError
from serving.taxonomy import DISCLAIMER

CLINIC = simulate(800, 3, signal=2.5)
OVERCONFIDENT = CLINIC.with_logits(10 * CLINIC.logits)


@pytest.fixture(scope="module")
def recalibrated(rich, tmp_path_factory):
    path = tmp_path_factory.mktemp("new") / "folder" / "new.onnx"
    return path, recalibrate(rich, Labelled(scored=OVERCONFIDENT, source="clinic"), path)


def test_the_graph_stays_and_the_spec_gets_limits_fitted_on_all_images(rich, recalibrated):
    path, found = recalibrated
    assert onnx.load(path).graph == onnx.load(rich).graph
    spec = Predictor(path).spec  # which refuses a wrong checksum
    limits = fit_limits(OVERCONFIDENT)
    assert (
        spec
        == found.spec
        == replace(
            RICH,
            **{name: getattr(limits, name) for name in PARTS},
            monitoring=fit_monitoring(OVERCONFIDENT, limits.temperature),
            calibrated_on=f"clinic: {len(CLINIC):,} images of 800 lesions",
        )
    )
    image = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(Predictor(path).logits(image), Predictor(rich).logits(image))


def test_it_is_measured_on_other_lesions_than_those_that_it_is_fitted_on(recalibrated):
    found = recalibrated[1]
    fitted, held_out = (set(half.table["lesion_id"]) for half in (found.fitted, found.held_out))
    assert not fitted & held_out
    assert fitted | held_out == set(CLINIC.table["lesion_id"])
    for target in range(7):
        counts = [
            half.table["lesion_id"][half.targets == target].nunique()
            for half in (found.fitted, found.held_out)
        ]
        assert abs(counts[0] - counts[1]) <= 1, target


def test_the_measures_before_and_after_are_those_of_both_limits_on_the_other_half(recalibrated):
    found = recalibrated[1]
    rows = {row.title: row for row in found.rows}
    temperature = fit_limits(found.fitted).temperature
    assert temperature > 3 > RICH.temperature
    for interval, divisor in (
        (rows["log loss"].before, RICH.temperature),
        (rows["log loss"].after, temperature),
    ):
        logits = found.held_out.logits / divisor
        own = logits[np.arange(len(logits)), found.held_out.targets]
        expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - own)
        assert interval.estimate == pytest.approx(expected)
        assert interval.low < expected < interval.high
    for title in ("log loss", "calibration error (ECE)"):
        assert rows[title].after.estimate < rows[title].before.estimate
    sets = rows["coverage of prediction sets at 90%"]
    assert sets.after.high > 0.9
    assert rows["malignant found by referral at 95%"].after.high > 0.95
    text = str(found)
    assert text.splitlines()[0].startswith(f"measured on {len(found.held_out)} images of 400 ")
    assert text.splitlines()[-1].startswith("the file has limits fitted on both halves: clinic: ")


def test_one_part_alone_is_fitted_with_the_temperature_of_the_file(rich, tmp_path):
    labelled = Labelled(scored=OVERCONFIDENT, source="elsewhere")
    spec = recalibrate(rich, labelled, tmp_path / "new.onnx", only=["abstention"]).spec
    kept = replace(spec, abstention=RICH.abstention, calibrated_on=RICH.calibrated_on)
    assert kept == RICH
    limits = fit_limits(OVERCONFIDENT, temperature=RICH.temperature)
    assert spec.abstention == limits.abstention != fit_limits(OVERCONFIDENT).abstention
    assert spec.calibrated_on == (
        f"{RICH.calibrated_on}; abstention on elsewhere: {len(CLINIC):,} images of 800 lesions"
    )


def test_too_few_lesions_are_refused(rich, tmp_path):
    few = Labelled(scored=CLINIC.take(CLINIC.lesions < 19), source="clinic")
    with pytest.raises(DataError) as caught:
        recalibrate(rich, few, tmp_path / "new.onnx")
    assert str(caught.value) == (
        "there are 19 lesions with labels, expected at least 20, half of them to measure on; add "
        "labelled images"
    )
    assert not (tmp_path / "new.onnx").exists()


def clinic_of(folder):
    """A table of image and label beside drawn images, one broken, one of another class."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    rows = [(f"{i}.png", ("MEL", "scc", "nevus", "nv")[i % 4]) for i in range(64)]
    for name, _ in rows:
        Image.fromarray(rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(folder / name)
    (folder / "0.png").write_bytes(b"no image")
    rows.append(("1.png", "scc"))  # twice the same
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return folder


def test_images_are_answered_by_the_model_with_their_labels_as_its_classes(rich, tmp_path, caplog):
    folder = clinic_of(tmp_path / "clinic")
    for place in (folder, folder / "labels.csv"):
        with caplog.at_level("INFO"):
            source = Source(name="here", folder=place)
            found = answers_of_images(rich, [source], {"here": {"SCC": "akiec"}})
        assert caplog.messages[-1] == "here: left out 1 image: cannot be read"
        table = found.scored.table
        assert table["label"].value_counts().to_dict() == {"akiec": 16, "nv": 16, "mel": 15}
        (row,) = np.flatnonzero(table["image_id"] == "here/5")
        pixels = Predictor(rich).pixels(folder / "5.png")
        np.testing.assert_array_equal(
            found.scored.logits[row], Predictor(rich).logits(pixels[None])[0]
        )


def test_the_command_writes_a_file_that_answers_with_the_new_limits(rich, tmp_path):
    folder, output = clinic_of(tmp_path / "clinic"), tmp_path / "new.onnx"
    words = ["recalibrate", "--model", str(rich), "--external", f"here={folder}"]
    result = CliRunner().invoke(main, [*words, "--map", "scc=akiec", "--output", str(output)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-2:] == [f"written: {output}", DISCLAIMER]
    assert "the file has limits fitted on both halves: here: 47 images of 47 lesions" in lines
    assert lines[-3] == (
        "referral of the file: no threshold is known to find 95% of malignant lesions: it takes 59 "
        "malignant validation lesions and a benign one, there were 31 and 16"
    )
    spec = Predictor(output).spec
    assert (spec.referral.num_malignant, spec.referral.num_benign) == (31, 16)


def test_stored_predictions_of_several_networks_are_taken_together(rich, tmp_path):
    parts = [simulate(200, 5), renamed(simulate(150, 6), "B")]
    paths = [tmp_path / f"{name}.csv" for name in ("one", "two")]
    for path, part in zip(paths, parts, strict=True):
        write_predictions(path, part.table)
    found = stored_answers(rich, paths)
    assert (found.scored.num_lesions, found.source) == (350, "one.csv, two.csv")
    np.testing.assert_array_equal(
        found.scored.logits, np.concatenate([part.logits for part in parts])
    )
    with pytest.raises(DataError) as caught:
        stored_answers(rich, [paths[0], paths[0]])
    assert str(caught.value) == (
        "image 'ISIC_0000000' is in two tables of predictions; give each image once"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give either --external or --predictions"),
        (["--external", "a=b", "--predictions", "c"], "give either --external or --predictions"),
        (["--predictions", "c", "--map", "a=b"], "--map goes with --external"),
    ],
)
def test_images_or_predictions_are_named_once(more, message, capsys):
    result = CliRunner().invoke(main, ["recalibrate", "--model", "m", "--output", "o", *more])
    assert result.exit_code == 2
    assert result.stderr == f"Error: {message} (see `main recalibrate --help`)\n"

"""External validation from the command line, with a small model file that needs no training."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from rich_model import RICH
from simulated import renamed, simulate

from dermalyze.cli.main import main
from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.evaluation.evaluate import Evaluation
from dermalyze.evaluation.predictions import write_predictions, write_taxonomy
from dermalyze.evaluation.report.folder import read_folder
from dermalyze.workflows.external import class_map_of, maps_of, sources_of
from serving import Predictor
from serving.errors import ConfigError
from serving.ham10000_taxonomy import HAM10000

LABELS = ["mel", "nv", "nv", "BCC", "Melanoma", "scc"] * 5


def skin(seed, size=(40, 30)):
    """A dark spot on grainy skin, elsewhere in each picture."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, size[0]), np.linspace(-1, 1, size[1]))
    left, top, width = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0.05, 0.4)
    spot = np.exp(-((x - left) ** 2 + 1.5 * (y - top) ** 2) / width)[..., None]
    pixels = np.array([205, 160, 150]) - rng.uniform(60, 130) * spot
    return Image.fromarray((pixels + rng.normal(0, 4, (*x.shape, 1))).clip(0, 255).astype("uint8"))


def write_images(folder, names, labels, first=0):
    """Write images and labels.csv with the columns image and label."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        skin(first + number).save(folder / "images" / f"{name}.png")
    lines = ["image,label", *(f"{n},{label}" for n, label in zip(names, labels, strict=True))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def other(tmp_path):
    return write_images(tmp_path / "other", [f"o{i:03d}" for i in range(len(LABELS))], LABELS)


@pytest.fixture
def run_folder(tmp_path, rich):
    """The folder of a run without MLflow: the model file, its images and predictions."""
    folder, data = tmp_path / "run", tmp_path / "training"
    names = [f"t{i:03d}" for i in range(12)]
    write_images(data, names, ["mel", "nv"] * 6, first=500)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(rich.read_bytes())
    run = {"run_id": RICH.run_id, "status": "FINISHED", "params": {"data.dir": str(data)}}
    (folder / "run.json").write_text(json.dumps({**run, "tags": {}, "metrics": {}}))
    for split, chosen in (("train", names[:6]), ("val", names[6:9]), ("test", names[9:])):
        lines = ["image_id,label", *(f"{name},{'mel' if name[-1] in '02468' else 'nv'}"
                                     for name in chosen)]  # fmt: skip
        (folder / f"{split}_split.csv").write_text("\n".join(lines) + "\n")
    (folder / "config.yaml").write_text("data:\n  image_size: 32\n")
    for name, scored in (
        ("predictions", simulate(200, 1)),
        ("val_predictions", renamed(simulate(200, 2), "v")),
    ):
        write_predictions(folder / "evaluation" / f"{name}.csv", scored.table)
    write_taxonomy(folder / "evaluation", HAM10000)
    return folder


def evaluate(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def judged(folder):
    return Evaluation.from_json((folder / "judgement.json").read_text())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_with_image_and_label_is_evaluated_as_it_is(tmp_path, rich, other):
    """Any case of a class's name, and its description, are that class; others test the scope."""
    output = tmp_path / "out"
    done = evaluate("--model", rich, "--external", f"other={other}", "--output", output)
    assert done.exit_code == 0, done.output
    found = judged(output / "other")
    assert found.external.class_map == {
        "BCC": "bcc", "Melanoma": "mel", "mel": "mel", "nv": "nv", "scc": "",
    }  # fmt: skip
    assert found.num_images == 25
    assert found.external.absent == ("akiec", "bkl", "df", "vasc")
    table = rows_of(output / "other" / "predictions.csv")
    predictor = Predictor(rich)
    for row in table:
        answer = predictor.predict(other / "images" / f"{row['image_id']}.png")
        assert row["predicted"] == answer.predicted_class
        assert float(row["logit_mel"]) == pytest.approx(answer.logits["mel"], abs=1e-5)
    unknown = rows_of(output / "other" / "unknown_classes.csv")
    assert [row["label"] for row in unknown] == ["scc"] * 5
    assert found.external.decisions[-1].num_images == 5
    for page in ("index.html", "other/report.html", "other/mistakes.html"):
        assert "http" not in (output / page).read_text().split("</style>")[1]
    assert "Not available: the drop" in done.output


def test_metrics_are_of_the_probabilities_that_the_file_gives(tmp_path, rich, other):
    """Nothing is fitted on the source: the file's own temperature, 2, gives the loss."""
    evaluate("--model", rich, "--external", f"o={other}", "--output", tmp_path / "out")
    predictor, losses = Predictor(rich), []
    for row in rows_of(tmp_path / "out" / "o" / "predictions.csv"):
        answer = predictor.predict(other / "images" / f"{row['image_id']}.png")
        losses.append(-np.log(answer.probabilities[row["label"]]))
    assert judged(tmp_path / "out" / "o").metrics["loss"] == pytest.approx(np.mean(losses))


def test_a_map_gives_labels_their_classes(tmp_path, rich, other):
    done = evaluate(
        "--model", rich, "--external", f"o={other}", "--map", "o:scc=akiec",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = judged(tmp_path / "out" / "o")
    assert found.external.class_map["scc"] == "akiec"
    assert found.num_images == 30


def test_images_that_cannot_be_used_are_counted(tmp_path, rich, other):
    (other / "images" / "o000.png").write_bytes(b"no image")
    (other / "images" / "o001.png").unlink()
    done = evaluate("--model", rich, "--external", f"o={other}", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = judged(tmp_path / "out" / "o")
    assert found.external.excluded == {"no image file": 1, "cannot be read": 1}
    assert found.num_images == 23


def test_training_images_are_left_out_by_id_and_by_what_they_show(tmp_path, run_folder, other):
    """Test images of the run may stay: nothing was learned from them."""
    training = tmp_path / "training" / "images"
    Image.open(training / "t001.png").transpose(0).save(other / "images" / "o002.png")  # mirrored
    Image.open(training / "t007.png").save(other / "images" / "o008.jpg", quality=90)
    (other / "images" / "o008.png").unlink()
    Image.open(training / "t011.png").save(other / "images" / "o003.png")
    (other / "images" / "o004.png").rename(other / "images" / "T003.png")
    labels = (other / "labels.csv").read_text().replace("o004", "T003")
    (other / "labels.csv").write_text(labels)
    done = evaluate(
        "--model", run_folder / "model.onnx", "--external", f"o={other}",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert rows_of(tmp_path / "out" / "o" / "excluded.csv") == [
        {"image_id": "T003", "reason": "has the id of a training image", "training_image": "T003"},
        {"image_id": "o002", "reason": "equal or nearly equal to a training image",
         "training_image": "t001"},
        {"image_id": "o008", "reason": "equal or nearly equal to a training image",
         "training_image": "t007"},
    ]  # fmt: skip
    found = judged(tmp_path / "out" / "o")
    assert found.external.inside == "test split"
    assert found.external.drops[0].drop is not None


def test_where_images_are_shared_other_images_of_their_lesions_are_left_out(
    tmp_path, run_folder, other
):
    """Equal ids of lesions alone say nothing: they may be numbers."""
    table = run_folder / "train_split.csv"
    lines = table.read_text().splitlines()
    table.write_text(
        "\n".join([f"{lines[0]},lesion_id", *(f"{x},L{i}" for i, x in enumerate(lines[1:]))])
    )
    lesions = [f"L{100 + i}" for i in range(30)]
    lesions[5:8] = ["L3", "L3", "L4"]
    for shared, reasons in ((False, []), (True, ["lesion"] * 3 + ["id"])):
        names = [f"o{i:03d}" for i in range(30)]
        if shared:
            names[0] = "t001"
            (other / "images" / "o000.png").rename(other / "images" / "t001.png")
        rows = [",".join(row) for row in zip(names, LABELS, lesions, strict=True)]
        (other / "labels.csv").write_text("\n".join(["image,label,lesion_id", *rows]) + "\n")
        output = tmp_path / f"out{shared}"
        done = evaluate(
            "--model", run_folder / "model.onnx", "--external", f"o={other}", "--output", output
        )
        assert done.exit_code == 0, done.output
        said = {"id": "has the id of a training image",
                "lesion": "of a lesion that a training image shows"}  # fmt: skip
        found = [row["reason"] for row in rows_of(output / "o" / "excluded.csv")]
        assert found == [said[reason] for reason in reasons]


def test_what_a_model_file_alone_cannot_tell_is_said(tmp_path, rich, other):
    evaluate("--model", rich, "--external", f"o={other}", "--output", tmp_path / "out")
    unchecked = judged(tmp_path / "out" / "o").external.unchecked
    assert [sentence.partition(":")[0] for sentence in unchecked] == [
        "Not checked", "Not checked", "No lesion ids", "Not available"
    ]  # fmt: skip


def test_with_a_data_folder_a_model_file_alone_is_checked_too(tmp_path, rich, other):
    data = write_images(tmp_path / "data", ["d0", "d1", "d2", "d3"], ["mel", "nv"] * 2, first=2)
    done = evaluate(
        "--model", rich, "--external", f"o={other}", "--data-dir", data,
        "--prepared", tmp_path / "prepared", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = judged(tmp_path / "out" / "o").external
    assert found.excluded == {"equal or nearly equal to a training image": 4}
    assert not (data / "prepared").exists()


def test_corruptions_are_a_table_of_the_report(tmp_path, rich, other):
    done = evaluate(
        "--model", rich, "--external", f"o={other}", "--corruptions", "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = judged(tmp_path / "out" / "o").robustness
    assert (found.num_images, len(found.balanced_accuracy)) == (25, 15)
    assert "gaussian noise" in (tmp_path / "out" / "o" / "report.html").read_text()
    assert read_folder(tmp_path / "out" / "o", "o").robustness == found


def test_two_sources_share_an_overview(tmp_path, rich, other):
    demo = make_demo_data(tmp_path / "demo", num_images=42, style="other-clinic")
    done = evaluate(
        "--model", rich, "--external", f"o={other}", "--external", f"demo={demo}",
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'href="o/report.html"' in page
    assert 'href="demo/mistakes.html"' in page
    assert judged(tmp_path / "out" / "demo").group_by == "lesion"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--external", "o"], "--external must be NAME=FOLDER, the name of letters, digits, _, - "
         "and ., got 'o'"),
        (["--external", "a=x", "--external", "a=y"], "--external names a twice; give each source "
         "its own name"),
        (["--external", "o=OTHER", "--map", "scc=acces"], "--map gives scc the class 'acces', "
         "expected one of akiec, bcc, bkl, df, mel, nv, vasc"),
        (["--external", "o=OTHER", "--map", "o:ak=akiec"], "--map names the label 'ak', which o "
         "does not have; it has BCC, Melanoma, mel, nv, scc"),
        (["--external", "o=OTHER", "--map", "ak=akiec"], "--map names the label 'ak'; the sources "
         "have BCC, Melanoma, mel, nv, scc"),
        (["--external", "o=OTHER", "--map", "no.yaml"], "cannot read the class map no.yaml: No "
         "such file or directory"),
        (["--external", "o=OTHER", "--prevalence", "labels"], "--prevalence needs the class shares "
         "used in training, which the model file does not contain; pass --run-id, or keep the file "
         "in the folder of its run"),
        (["--external", "o=no-such"], "no data folder at no-such; download HAM10000 into it "
         "(doi:10.7910/DVN/DBW86T), or draw images with `dermalyze demo-data`"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_line(tmp_path, monkeypatch, rich, other, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [text.replace("OTHER", str(other)) for text in arguments]
    done = evaluate("--model", rich, *arguments, "--output", tmp_path / "out")
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == f"Error: {message}"
    assert not (tmp_path / "out" / "index.html").exists()


def test_what_other_images_cannot_be_asked_is_said(tmp_path, rich, other):
    for option in (["--split", "val"], ["--device", "cpu"]):
        done = evaluate("--model", rich, "--external", f"o={other}", *option)
        assert done.exit_code == 2
        assert "--split and --device go with the images of the run" in done.output


def test_a_source_without_any_class_of_the_model_says_how_to_name_them(tmp_path, rich):
    other = write_images(tmp_path / "x", ["a", "b"], ["wart", "cat"])
    done = evaluate("--model", rich, "--external", f"x={other}", "--output", tmp_path / "out")
    assert done.output.splitlines()[-1] == (
        "Error: no label of x (cat, wart) is a class of the model (akiec, bcc, bkl, df, mel, nv, "
        "vasc); name their classes with --map LABEL=CLASS"
    )


def test_a_source_may_have_one_class_and_lie_flat_with_any_suffix(tmp_path, rich):
    """The labels say `a.JPG`, `b` and `c.png`; the images lie beside the table."""
    other = write_images(tmp_path / "x", ["a", "b", "c"], ["mel"] * 3)
    for name, suffix in (("a", "JPG"), ("b", "png"), ("c", "png")):
        Image.open(other / "images" / f"{name}.png").save(other / f"{name}.{suffix}")
        (other / "images" / f"{name}.png").unlink()
    (other / "images").rmdir()
    (other / "labels.csv").write_text("image,label\na.JPG,mel\nb,mel\nc.png,mel\n")
    done = evaluate("--model", rich, "--external", f"x={other}", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert judged(tmp_path / "out" / "x").num_images == 3


def test_a_source_may_be_the_folder_of_one_class(tmp_path, rich):
    (tmp_path / "x" / "mel").mkdir(parents=True)
    for number in range(3):
        skin(number).save(tmp_path / "x" / "mel" / f"{number}.png")
    words = ["--model", rich, "--external", f"x={tmp_path / 'x'}", "--output", tmp_path / "out"]
    done = evaluate(*words)
    assert done.exit_code == 0, done.output
    assert judged(tmp_path / "out" / "x").num_images == 3
    (tmp_path / "x" / "mel").rename(tmp_path / "x" / "melanocytic")
    done = evaluate(*words)
    assert done.output.splitlines()[-1].startswith("Error: no label of x (melanocytic) is a class")


def test_a_class_map_may_be_a_file(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("scc: akiec\nisic:\n  NO: nv\n")
    found = maps_of([str(path), "isic:a=b=mel", "un:known=df"], ["isic"])
    assert found == {"": {"scc": "akiec", "un:known": "df"}, "isic": {"NO": "nv", "a=b": "mel"}}
    path.write_text("other:\n  scc: akiec\n")
    with pytest.raises(ConfigError) as error:
        maps_of([str(path)], ["isic"])
    assert str(error.value) == "--map names 'other', which is not a name of --external"


def test_a_label_is_a_class_by_name_then_by_description():
    found = class_map_of(["NV", "melanoma", "x", "vasc"], HAM10000, {"X": "BKL", "vasc": "df"})
    assert found == {"NV": "nv", "melanoma": "mel", "x": "bkl", "vasc": "df"}


def test_a_source_is_a_name_and_a_folder_that_may_have_an_equals_sign():
    (found,) = sources_of(["isic-19=/a/b=c"])
    assert (found.name, found.folder) == ("isic-19", Path("/a/b=c"))

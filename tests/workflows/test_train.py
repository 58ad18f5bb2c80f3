"""The whole path on drawn data: train, kill, resume, evaluate, export, register."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from dermalyze.data.demo.dataset import make_demo_data
from dermalyze.models.checkpoint import load_checkpoint
from dermalyze.models.reference import load_reference

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONFIG = """
model: {name: test_efficientnet, pretrained: false}
data: {image_size: 32}
training: {epochs: 3, batch_size: 8, lr: 3.0e-3, fast_mode: false, device: cpu}
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo_data(tmp_path_factory.mktemp("data") / "demo", num_images=140)


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo):
    """A working folder with a config; the images are prepared once for all tests."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def environment(place):
    env = dict(os.environ, PYTHONPATH=str(ROOT), MLFLOW_DISABLE_TELEMETRY="true")
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{place}/mlflow.db"
    return env


def dermalyze(place, *words, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "dermalyze", *map(str, words)],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def train_words(demo, *more):
    return ("train", "--data-dir", demo, "--config", "config.yaml", *more)


def client(place):
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def run_id_of(output):
    (line,) = [line for line in output.splitlines() if line.startswith("run id: ")]
    return line.removeprefix("run id: ")


@pytest.fixture(scope="module")
def trained(place, demo):
    """Output of one uninterrupted run."""
    return dermalyze(place, *train_words(demo))


def artifact(place, run_id, name):
    run = client(place).get_run(run_id)
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def test_a_run_holds_all_that_the_design_promises(place, trained):
    run = client(place).get_run(run_id_of(trained.stdout))
    folder = artifact(place, run.info.run_id, "")
    names = """config.yaml train_split.csv val_split.csv test_split.csv training_history.json
    checkpoint_best.pt checkpoint_latest.pt training_curves.png augmentation.png
    evaluation/evaluation_metrics.json evaluation/predictions.csv evaluation/confusion_matrix.png
    evaluation/roc_curves.png evaluation/per_class_metrics.png evaluation/calibration_curve.png
    evaluation/judgement.json evaluation/val_predictions.csv evaluation/report.html
    evaluation/model_card.md evaluation/data_card.md audit.json"""
    assert [name for name in names.split() if not (folder / name).is_file()] == []
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "test_efficientnet, simple, 32 px"
    assert run.data.params["training.lr"] == "0.003"
    assert run.data.params["resolved.backbone"] == "test_efficientnet"
    assert run.data.tags["dermalyze.demo_data"] == "true"
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc"):
        assert 0 <= run.data.metrics[f"test/{metric}"] <= 1
    assert len([name for name in run.data.metrics if not name.startswith("system/")]) <= 20
    metrics = json.loads((folder / "evaluation" / "judgement.json").read_text())["metrics"]
    assert 0 <= metrics["recall/mel"] <= 1  # what is not logged is there
    assert (folder / "report.html").read_bytes() == (folder / "evaluation/report.html").read_bytes()
    note = run.data.tags["mlflow.note.content"]
    assert f"accuracy: **{metrics['accuracy']:.3f}**" in note
    experiment = client(place).get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    version = client(place).get_model_version_by_alias("dermalyze", "champion")
    assert version.description.startswith("# Model card")
    history = client(place).get_metric_history(run.info.run_id, "val/loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {
        "demo data-train",
        "demo data-val",
        "demo data-test",
    }
    assert len(run.outputs.model_outputs) == 1
    assert not (place / ".dermalyze" / "runs" / run.info.run_id).exists()


def test_the_summary_tells_what_to_type_next(trained):
    text = trained.stdout
    for words in ("mlflow", " ui", "models serve -m models:/dermalyze@champion", "curl -s http"):
        assert words in text
    assert "not a diagnosis" in text


def test_the_splits_of_the_run_share_no_lesion(place, trained):
    run_id = run_id_of(trained.stdout)
    lesions = []
    for split in ("train", "val", "test"):
        lines = artifact(place, run_id, f"{split}_split.csv").read_text().splitlines()[1:]
        lesions.append({line.split(",")[2] for line in lines})
    assert sum(map(len, lesions)) == len(set.union(*lesions))


def progress(place, run_ids_before):
    """The folder and history of the run that has begun since; None while there is none."""
    folder = place / ".dermalyze" / "runs"
    new = [p for p in folder.glob("*") if p.name not in run_ids_before] if folder.exists() else []
    if not new or not (new[0] / "training_history.json").exists():
        return None
    return new[0], len(json.loads((new[0] / "training_history.json").read_text()))


def start_and_signal(place, words, number, *, epochs, delay):
    """Start a training and signal it `delay` seconds after it has done `epochs` epochs."""
    runs = place / ".dermalyze" / "runs"
    resumed = words[words.index("--resume") + 1] if "--resume" in words else None
    before = {p.name for p in runs.glob("*") if p.name != resumed} if runs.exists() else set()
    process = subprocess.Popen(
        [sys.executable, "-m", "dermalyze", *map(str, words)],
        cwd=place,
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        now = progress(place, before)
        if now is not None and now[1] >= epochs:
            break
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0, "it ended before the signal came"
    now = progress(place, before)
    assert now is not None
    return now[0].name, process.returncode, out + err


def assert_same_end(place, one, other):
    """Bit-identical best and latest weights, and an identical history but for times."""
    for name in ("checkpoint_latest.pt", "checkpoint_best.pt"):
        a, b = (
            torch.load(artifact(place, run_id, name), weights_only=True)["weights"]
            for run_id in (one, other)
        )
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    histories = []
    for run_id in (one, other):
        entries = json.loads(artifact(place, run_id, "training_history.json").read_text())
        timed = ("epoch_seconds", "images_per_second")
        histories.append([{k: v for k, v in e.items() if k not in timed} for e in entries])
    assert histories[0] == histories[1]
    logged = client(place).get_metric_history(other, "train/loss")
    assert [metric.step for metric in logged] == [1, 2, 3]


def test_killed_twice_and_resumed_a_run_ends_in_the_same_bits(place, demo, trained):
    run_id, code, _ = start_and_signal(
        place, train_words(demo), signal.SIGKILL, epochs=0, delay=0.1
    )
    assert code == -signal.SIGKILL
    again, _, _ = start_and_signal(
        place, ("train", "--resume", run_id), signal.SIGKILL, epochs=1, delay=0.03
    )
    assert again == run_id
    done = dermalyze(place, "train", "--resume", run_id)
    assert run_id_of(done.stdout) == run_id
    assert client(place).get_run(run_id).info.status == "FINISHED"
    assert_same_end(place, run_id_of(trained.stdout), run_id)


def test_ctrl_c_leaves_a_killed_run_that_can_be_resumed(place, demo, trained):
    run_id, code, text = start_and_signal(
        place, train_words(demo), signal.SIGINT, epochs=1, delay=0.05
    )
    assert code == 130
    assert f"continue with `dermalyze train --resume {run_id}`" in text
    assert "Traceback" not in text
    assert client(place).get_run(run_id).info.status == "KILLED"
    dermalyze(place, "train", "--resume", run_id)
    assert_same_end(place, run_id_of(trained.stdout), run_id)


def test_a_run_that_ended_well_is_not_resumed(place, trained):
    run_id = run_id_of(trained.stdout)
    done = dermalyze(place, "train", "--resume", run_id, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: run {run_id} is already finished\n",
    )


def test_evaluating_again_gives_the_numbers_of_the_run(place, trained):
    run_id = run_id_of(trained.stdout)
    dermalyze(place, "evaluate", "--run-id", run_id, "--output", "again")
    logged = json.loads(artifact(place, run_id, "evaluation/evaluation_metrics.json").read_text())
    again = json.loads((place / "again" / "evaluation_metrics.json").read_text())
    assert again["metrics"] == pytest.approx(logged["metrics"])
    dermalyze(place, "evaluate", "--run-id", run_id, "--split", "val", "--output", "val")
    assert (
        "val/accuracy"
        in json.loads((place / "val" / "evaluation_metrics.json").read_text())["metrics"]
    )


def test_a_report_is_made_again_from_what_the_run_keeps(place, trained):
    run_id = run_id_of(trained.stdout)
    dermalyze(place, "report", "--run-id", run_id, "--output", "report")
    logged = artifact(place, run_id, "evaluation")
    for name in ("judgement.json", "report.html", "model_card.md", "data_card.md"):
        assert (place / "report" / name).read_bytes() == (logged / name).read_bytes(), name


def test_a_report_is_made_of_anybodys_predictions(place, trained):
    logged = artifact(place, run_id_of(trained.stdout), "evaluation")
    done = dermalyze(
        place, "report", "--predictions", logged / "predictions.csv",
        "--validation", logged / "val_predictions.csv", "--output", "foreign",
    )  # fmt: skip
    assert "For education and research only" in done.stdout
    ours, theirs = (
        json.loads((folder / "judgement.json").read_text())
        for folder in (place / "foreign", logged)
    )
    assert ours["intervals"] == theirs["intervals"]
    assert ours["calibration"] == theirs["calibration"]


def test_a_calibrator_is_never_judged_on_what_it_was_fitted_on(place, trained):
    logged = artifact(place, run_id_of(trained.stdout), "evaluation")
    done = dermalyze(
        place, "report", "--predictions", logged / "predictions.csv",
        "--validation", logged / "predictions.csv", "--output", "mixed", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "is in both the predictions to evaluate and those that the calibrator" in done.stderr


def test_evaluating_other_images_gives_what_predict_answers(place, trained, known):
    from PIL import Image

    run_id = run_id_of(trained.stdout)
    images = place / "others"
    images.mkdir()
    rng = np.random.default_rng(0)
    rows = ["image_id,label"]
    for number, label in enumerate(["nv", "mel", "nv", "bcc"]):
        pixels = rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"other{number}.png")
        rows.append(f"other{number},{label}")
    (place / "labels.csv").write_text("\n".join(rows) + "\n")
    dermalyze(
        place, "evaluate", "--run-id", run_id, "--images", images, "--labels", "labels.csv",
        "--output", "other-evaluation",
    )  # fmt: skip
    answers = dermalyze(place, "predict", "--model", known, images, "--format", "json")
    predicted = [json.loads(line)["predicted_class"] for line in answers.stdout.splitlines()]
    table = (place / "other-evaluation" / "predictions.csv").read_text().splitlines()
    column = table[0].split(",").index("predicted")
    assert [line.split(",")[column] for line in table[1:]] == predicted


def test_a_split_is_evaluated_corrupted_as_well(place, trained):
    run_id = run_id_of(trained.stdout)
    dermalyze(place, "evaluate", "--run-id", run_id, "--split", "val", "--corruptions",
              "--output", "corrupted")  # fmt: skip
    found = json.loads((place / "corrupted" / "judgement.json").read_text())
    table = found["robustness"]
    assert table["num_images"] == found["num_images"]  # none of its classes has more than 30
    assert table["clean"] == pytest.approx(found["metrics"]["balanced_accuracy"])
    assert len(table["balanced_accuracy"]) == len(table["out_of_scope"]) == 15


def test_an_external_source_is_evaluated_into_its_run(place, trained, known):
    """By run and by the exported file alike; nothing of the run's own is changed."""
    run_id = run_id_of(trained.stdout)
    other = make_demo_data(place / "clinic", num_images=42, style="other-clinic")
    for model, output in (("--run-id", "by-run"), ("--model", "by-file")):
        value = run_id if model == "--run-id" else known
        more = ("--prevalence", "nv=0.9") if model == "--run-id" else ()
        dermalyze(place, "evaluate", model, value, "--external", f"clinic={other}",
                  "--output", output, *more)  # fmt: skip
    tables = [
        (place / output / "clinic" / "predictions.csv").read_text().splitlines()
        for output in ("by-run", "by-file")
    ]
    column = tables[0][0].split(",").index("predicted")
    ours, theirs = ([line.split(",")[column] for line in table[1:]] for table in tables)
    assert ours == theirs
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    metrics = client.get_run(run_id).data.metrics
    summary = json.loads((place / "by-run/clinic/evaluation_metrics.json").read_text())["metrics"]
    name = "external/clinic/balanced_accuracy"
    assert metrics[name] == pytest.approx(summary[name])
    assert {f"external/clinic/{end}" for end in ("accuracy_drop", "accuracy_drop_low",
            "set_coverage", "out_of_scope_known")} <= metrics.keys()  # fmt: skip
    logged = {file.path for file in client.list_artifacts(run_id, "external/clinic")}
    assert {"external/clinic/report.html", "external/clinic/mistakes.html"} <= logged


@pytest.fixture(scope="module")
def pictures(place):
    """Three photographs: skin-like ones and a checkerboard."""
    from PIL import Image

    folder = place / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in ("one", "two"):
        pixels = np.array([205, 150, 140]) + rng.normal(0, 9, (60, 80, 3))
        pixels[20:40, 30:55] *= 0.6
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, axis=-1)).save(folder / "board.png")
    return folder


@pytest.fixture(scope="module")
def known(place, trained):
    """The model file of the run."""
    run_id = run_id_of(trained.stdout)
    dermalyze(place, "export-onnx", "--run-id", run_id, "--output", "known.onnx")
    return place / "known.onnx"


def answers_of(place, model, folder, *more):
    done = dermalyze(place, "predict", "--model", model, folder, "--format", "json", *more)
    return {Path(line["image"]).stem: line for line in map(json.loads, done.stdout.splitlines())}


def test_predictor_mlflow_and_pytorch_give_the_same_answers(place, trained, known, pictures):
    """All that a model knows of its limits, from the file, the registry and the checkpoint."""
    import base64

    import mlflow

    from dermalyze.models.torch_predictor import SkinLesionPredictor
    from serving import Predictor

    run_id = run_id_of(trained.stdout)
    onnx = Predictor(known)
    torch_predictor = SkinLesionPredictor(artifact(place, run_id, "checkpoint_best.pt"))
    assert onnx.spec == torch_predictor.spec
    (logged,) = client(place).get_run(run_id).outputs.model_outputs
    mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    paths = sorted(pictures.iterdir())
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    over_http = served.predict(
        {"image": encoded}, params={"level": 0.8, "sensitivity": 0.8, "explain": True}
    )
    for path, told in zip(paths, over_http, strict=True):
        expected = torch_predictor.predict(path, level=0.8, sensitivity=0.8).to_dict()
        found = onnx.predict(path, level=0.8, sensitivity=0.8).to_dict()
        saliency = np.array(told.pop("saliency"))
        for other in (found, told):
            assert other.keys() == expected.keys()
            for key in ("prediction_set", "decision", "quality", "set_size", "set_level"):
                assert other[key] == expected[key], key
            assert "referral" not in expected  # for lack of lesions, which the reason says
            assert other["referral_reason"] == expected["referral_reason"]
            for key in ("probabilities", "logits", "malignant_probability"):
                assert other[key] == pytest.approx(expected[key], abs=1e-4)
            assert other["scope_score"] == pytest.approx(expected["scope_score"], rel=1e-3)
        mine = torch_predictor.explain(path).saliency
        np.testing.assert_allclose(onnx.explain(path).saliency, mine, atol=1e-5)
        np.testing.assert_allclose(saliency, mine, atol=1e-5)
    lesion = served.predict({"image": encoded}, params={"one_lesion": True})
    assert lesion[0]["num_images"] == 3
    assert lesion[0]["probabilities"] == pytest.approx(
        torch_predictor.predict_lesion(paths).probabilities, abs=1e-4
    )


def test_limits_were_fitted_on_validation_lesions_and_judged_on_the_test_split(
    place, trained, known
):
    from serving import Predictor

    spec = Predictor(known).spec
    folder = artifact(place, run_id_of(trained.stdout), "")
    rows = (folder / "val_split.csv").read_text().splitlines()
    column = rows[0].split(",").index("lesion_id")
    lesions = {row.split(",")[column] for row in rows[1:]}
    assert spec.calibrated_on == (
        f"the validation split: {len(rows) - 1} images of {len(lesions)} lesions"
    )
    assert sum(spec.prediction_sets.num_lesions) == len(lesions)
    judged = json.loads((folder / "evaluation" / "judgement.json").read_text())
    assert judged["limits"]["temperature"] == spec.temperature
    assert judged["limits"]["scope"]["max_score"] == spec.scope.max_score
    assert judged["calibration"]["calibrator"]["parameters"]["temperature"] == spec.temperature
    assert "Sets, decisions and scope" in (folder / "evaluation" / "report.html").read_text()


def test_what_is_no_lesion_is_out_of_scope(place, known, pictures):
    answers = answers_of(place, known, pictures)
    assert answers["board"]["decision"] == "out_of_scope"


def test_predict_draws_where_the_evidence_lies(place, known, pictures):
    from PIL import Image

    done = dermalyze(place, "predict", "--model", known, pictures, "--explain", "why", check=False)
    assert done.returncode == 0, done.stderr
    drawn = sorted((place / "why").iterdir())
    assert [path.name for path in drawn] == ["board.png", "one.png", "two.png"]
    with Image.open(drawn[1]) as page:
        assert page.width > 600
        assert len(page.convert("RGB").getcolors(2**20)) > 1000


def test_views_and_networks_go_into_one_file(place, demo, trained, known, pictures):
    first = run_id_of(trained.stdout)
    second = run_id_of(
        dermalyze(
            place, *train_words(demo, "--epochs", "1", "--set", "training.seed=3",
                                "--set", f"data.splits={artifact(place, first, '')}",
                                "--set", "tracking.register=false"),
        ).stdout
    )  # fmt: skip
    alone = dermalyze(place, "export-onnx", "--run-id", first, "--tta", "--output", "views.onnx")
    assert "one network with 8 views" in alone.stdout
    both = dermalyze(
        place, "export-onnx", "--run-id", first, "--run-id", second, "--output", "both.onnx"
    )
    assert "2 networks; " in both.stdout
    answers = answers_of(place, "both.onnx", pictures)
    one = answers_of(place, known, pictures)["one"]
    assert "spread" not in one
    assert 0 < answers["one"]["spread"] < 0.5
    twice = dermalyze(place, "export-onnx", "--run-id", first, "--run-id", first, check=False)
    assert "a run is named twice" in twice.stderr


def test_metadata_is_learned_from_and_may_be_missing(place, demo, pictures):
    done = dermalyze(
        place, *train_words(demo, "--epochs", "1", "--set", "model.use_metadata=true",
                            "--set", "tracking.register=false"),
    )  # fmt: skip
    dermalyze(place, "export-onnx", "--run-id", run_id_of(done.stdout), "--output", "meta.onnx")
    (place / "facts.csv").write_text("image_id,age,sex\none,70,male\n")
    without = answers_of(place, "meta.onnx", pictures)
    known = answers_of(place, "meta.onnx", pictures, "--metadata", "facts.csv")
    assert known["one"]["probabilities"] != without["one"]["probabilities"]
    assert known["two"]["probabilities"] == pytest.approx(without["two"]["probabilities"])
    (place / "facts.csv").write_text("image_id,age\none,old\n")
    refused = dermalyze(
        place, "predict", "--model", "meta.onnx", pictures, "--metadata", "facts.csv", check=False
    )
    assert refused.stderr == (
        "Error: facts.csv, image one: an age must be a number of years from 0 to 120\n"
    )


def test_the_fit_is_judged_and_the_curves_are_drawn(place, trained):
    run_id = run_id_of(trained.stdout)
    said = dermalyze(place, "check-fit", "--run-id", run_id).stdout.splitlines()
    assert said[:3] == ["too short to say", "", "why:"]
    assert said[3] == "  - the history has 3 epochs; a trend needs at least 5"
    dermalyze(place, "plot-training", "--run-id", run_id, "--output", "curves.png")
    assert (place / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_benchmark_times_every_part_of_a_step(place):
    done = dermalyze(place, "benchmark", "--num-batches", 2, "--config", "config.yaml")
    for word in ("data", "forward", "backward", "step", "memory", "epoch"):
        assert word in done.stdout


def test_a_better_model_on_the_same_split_becomes_champion_and_a_worse_one_does_not(
    place, demo, trained
):
    worse = dermalyze(
        place, *train_words(demo, "--epochs", "1", "--set", "training.lr=1.0e-8",
                            "--set", "training.scheduler.eta_min=0.0"),
    )  # fmt: skip
    registry = client(place)
    champion = registry.get_model_version_by_alias("dermalyze", "champion")
    challenger = registry.get_model_version_by_alias("dermalyze", "challenger")
    assert challenger.run_id == run_id_of(worse.stdout)
    assert champion.run_id != challenger.run_id
    reason = challenger.tags["dermalyze.champion_reason"]
    assert "may be worse" in reason
    assert f"not promoted: {reason}" in challenger.description
    compared = dermalyze(place, "compare", champion.run_id, challenger.run_id, "--output", "versus")
    assert "McNemar" in compared.stdout
    assert (place / "versus" / "forest.png").read_bytes().startswith(b"\x89PNG")
    refused = dermalyze(place, "promote", challenger.version, check=False)
    assert refused.returncode == 1
    assert "not promoted" in refused.stdout
    assert dermalyze(place, "promote", challenger.version, "--anyway").stdout.count("champion")
    assert registry.get_model_version_by_alias("dermalyze", "champion").version == (
        challenger.version
    )


def test_a_split_by_image_ends_without_a_calibrator_but_with_a_report(place, demo):
    done = dermalyze(
        place, *train_words(demo, "--epochs", "1", "--set", "data.lesion_aware=false",
                            "--set", "tracking.register=false"),
    )  # fmt: skip
    folder = artifact(place, run_id_of(done.stdout), "evaluation")
    assert "calibration" not in json.loads((folder / "judgement.json").read_text())
    assert "data.lesion_aware false is deprecated; write data.group_by none" in done.stderr
    assert "data.group_by is none" in (folder / "report.html").read_text()


def test_folds_are_trained_with_one_option(place, demo):
    done = dermalyze(place, *train_words(demo, "--folds", "2", "--epochs", "1"))
    run_id = run_id_of(done.stdout.replace(", parent of 2 runs, one per fold", ""))
    table = artifact(place, run_id, "evaluation/predictions.csv").read_text().splitlines()
    assert len(table) - 1 == 140  # every image is judged
    resumed = dermalyze(place, "train", "--resume", run_id, check=False)
    assert "is already finished" in resumed.stderr


def test_sampling_and_weights_together_are_allowed_with_a_warning(place, demo):
    done = dermalyze(
        place, *train_words(demo, "--epochs", "1", "--set", "training.use_weighted_sampling=true",
                            "--set", "tracking.register=false"),
    )  # fmt: skip
    assert "both correct the imbalance" in done.stderr
    tags = client(place).get_run(run_id_of(done.stdout)).data.tags
    assert "both correct the imbalance" in tags["dermalyze.warnings"]


def test_a_run_and_a_checkpoint_are_what_another_training_starts_from(
    place, demo, trained, tmp_path
):
    """The backbone is the trained one without being named; after no update so is the network."""
    run_id = run_id_of(trained.stdout)
    checkpoint = artifact(place, run_id, "checkpoint_best.pt")
    words = (
        *train_words(demo, "--epochs", 1, "--no-tracking", "--set", "model.name=auto"),
        *("--set", "training.lr=1.0e-12", "--set", "training.scheduler.eta_min=0.0"),
    )
    for number, (name, start, backbone) in enumerate(
        [
            (f"run:{run_id}", load_checkpoint(checkpoint), "test_efficientnet"),
            (checkpoint, load_checkpoint(checkpoint), "test_efficientnet"),
            ("reference", load_reference(), "tf_efficientnet_lite0"),
        ]
    ):
        folder = tmp_path / str(number)
        output = dermalyze(place, *words, "--pretrained", name, "--output", folder).stderr
        assert f"pretrained: {name}: backbone and head" in output
        assert f"backbone: {backbone}" in output
        found = torch.load(folder / "checkpoint_best.pt", weights_only=True)["weights"]
        for key, value in start["weights"].items():
            if key.endswith("weight"):
                torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0)


def test_a_run_that_is_not_there_is_no_start(place, demo):
    done = dermalyze(place, *train_words(demo, "--pretrained", "run:none"), check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: no run 'none' in ")

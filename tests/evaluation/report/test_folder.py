"""C = 7 classes; the folder is judged by what is in its files."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from dermalyze.config.schema import EvaluationConfig
from dermalyze.evaluation.evaluate import Predictions, evaluate
from dermalyze.evaluation.predictions import predictions_table, read_predictions
from dermalyze.evaluation.report.folder import format_metrics, read_folder, write_folder
from dermalyze.evaluation.scores import scored_of
from serving.errors import DataError
from serving.ham10000_taxonomy import HAM10000
from serving.taxonomy import DISCLAIMER

C = len(HAM10000.names)
FILES = [
    "calibration_curve.png",
    "confusion_matrix.png",
    "evaluation_metrics.json",
    "judgement.json",
    "per_class_metrics.png",
    "predictions.csv",
    "roc_curves.png",
    "taxonomy.json",
]


def write_evaluation(folder, rows, logits, *, split, context):
    """Evaluate logits of manifest rows into a folder."""
    scored = scored_of(predictions_table(rows, logits, HAM10000), HAM10000)
    predictions = Predictions(scored=scored, split=split, context=context)
    evaluation = evaluate(predictions, EvaluationConfig(replicates=100))
    write_folder(folder, predictions, evaluation)
    return {f"{split}/{name}": value for name, value in evaluation.metrics.items()}


def manifest(labels: list[str], lesions: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": [f"ISIC_{i:07d}" for i in range(len(labels))],
            "label": labels,
            "lesion_id": lesions,
            "dx_type": "histo",
            "age": 40.0,
            "sex": "female",
            "localization": "back",
        }
    )


def test_the_folder_holds_every_file_and_the_numbers_agree(tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.choice(C, 60)
    logits = (rng.normal(size=(60, C)) + np.eye(C)[targets]).astype(np.float32)
    rows = manifest([HAM10000.names[i] for i in targets], [f"HAM_{i // 3}" for i in range(60)])
    folder = tmp_path / "run" / "evaluation"
    context = {"run_id": "abc", "data_fingerprint": "0123"}
    metrics = write_evaluation(folder, rows, logits, split="test", context=context)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    summary = json.loads((folder / "evaluation_metrics.json").read_text(encoding="utf-8"))
    assert summary.pop("metrics") == metrics
    confusion = sklearn_metrics.confusion_matrix(targets, logits.argmax(axis=1), labels=range(C))
    assert summary.pop("confusion_matrix") == confusion.tolist()
    np.testing.assert_allclose(
        summary.pop("normalized_confusion_matrix"), confusion / confusion.sum(axis=1)[:, None]
    )
    assert summary == {
        "split": "test",
        "num_images": 60,
        "num_lesions": 20,
        "class_names": list(HAM10000.names),
        "context": context,
        "disclaimer": DISCLAIMER,
    }
    assert metrics["test/accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == targets))
    assert all(name.startswith("test/") for name in metrics)
    again = read_folder(folder, "test")
    assert again.context == context
    assert again.scored.taxonomy == HAM10000
    _, read, read_targets = read_predictions(folder / "predictions.csv", HAM10000)
    np.testing.assert_array_equal(read, logits)
    np.testing.assert_array_equal(read_targets, targets)


def test_an_image_without_lesion_id_is_a_lesion_of_its_own(tmp_path):
    rows = manifest(["nv", "nv", "mel", "mel", "bkl"], ["HAM_1", "HAM_1", "", "", np.nan])
    write_evaluation(tmp_path, rows, np.eye(C)[:5], split="val", context={})
    summary = json.loads((tmp_path / "evaluation_metrics.json").read_text(encoding="utf-8"))
    assert summary["num_lesions"] == 4


def test_a_refused_evaluation_writes_nothing(tmp_path):
    folder = tmp_path / "evaluation"
    rows = manifest(["nv"], ["HAM_1"])
    with pytest.raises(DataError, match="not finite"):
        write_evaluation(folder, rows, np.full((1, C), np.nan), split="test", context={})
    assert not folder.exists()


def test_the_terminal_table_is_readable_and_shows_what_is_missing():
    values = {"loss": 0.5, "accuracy": 0.75, "balanced_accuracy": 2 / 3, "ece": 0.01234}
    for name in ("precision", "recall", "f1"):
        values |= {f"macro_{name}": 0.5, f"weighted_{name}": 0.25, f"{name}/nv": 1.0}
    values |= {"support/nv": 1005.0, "support/vasc": 0.0}
    expected = """\
images                         1,005
loss (nats)                   0.5000
accuracy                      0.7500
balanced accuracy             0.6667
macro AUC                          -
calibration error (ECE)       0.0123

                 precision sensitivity          F1         AUC      images
nv                  1.0000      1.0000      1.0000           -       1,005
vasc                     -           -           -           -           0
macro mean          0.5000      0.5000      0.5000           -       1,005
weighted mean       0.2500      0.2500      0.2500           -       1,005"""
    assert format_metrics(values, HAM10000) == expected
    prefixed = {f"test/{name}": value for name, value in values.items()}
    assert format_metrics(prefixed, HAM10000) == expected

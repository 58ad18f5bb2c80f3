"""Which metrics an MLflow run shows."""

from dermalyze.tracking.shown_metrics import shown


def test_headlines_and_what_decides_are_shown_and_nothing_of_single_classes():
    names = [
        *("train/loss", "lr", "epoch_seconds", "best_epoch", "val/recall/mel", "val/ece"),
        *("test/macro_auc", "test/macro_auc_low", "test/recall/mel", "test/mcc", "test/brier"),
        *("external/o/accuracy", "external/o/recall/mel", "external/o/accuracy_drop"),
        *("tune/value", "val/weighted_f1"),
    ]
    params = {"training.monitor": "val/recall/mel", "tracking.champion_metric": "mcc"}
    left_out = {"epoch_seconds", "test/macro_auc_low", "test/recall/mel", "test/brier"}
    left_out |= {"external/o/recall/mel", "val/weighted_f1"}
    found = shown(dict.fromkeys(names, 0.5), params)
    assert found == dict.fromkeys((name for name in names if name not in left_out), 0.5)

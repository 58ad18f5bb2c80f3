"""What `mlflow ui` shows of a run: at most 20 metrics, and the machine's load.

Every other metric is in the run's training_history.json and evaluation/judgement.json.
"""

from collections.abc import Mapping

import psutil

# With the metric that chooses the best epoch and the one that chooses the champion: 20.
OF_TRAINING = {
    *("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/balanced_accuracy"),
    *("val/macro_auc", "val/macro_f1", "val/ece", "lr", "images_per_second", "best_epoch"),
}
OF_SPLITS = {
    *("loss", "accuracy", "balanced_accuracy", "balanced_accuracy_elsewhere", "macro_auc"),
    *("macro_f1", "ece"),
}


def shown(metrics: Mapping[str, float], params: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics that are logged to MLflow, given a run's settings.

    Of external sources all but those of single classes are.
    """
    chosen = {params.get("training.monitor"), f"test/{params.get('tracking.champion_metric')}"}
    return {
        name: value
        for name, value in metrics.items()
        if name in OF_TRAINING or name in chosen or _is_shown(*name.split("/"))
    }


def _is_shown(first: str, *rest: str) -> bool:
    if first in ("train", "val", "test"):
        return len(rest) == 1 and rest[0] in OF_SPLITS and first != "train"
    return bool(rest) and (first != "external" or len(rest) == 2)


def load_of_machine() -> dict[str, float]:
    """Return MLflow's system metrics since the last call, as far as they do not need a GPU."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": psutil.disk_usage(".").percent,
    }

"""What the service counts, for Prometheus; no label comes from a client."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from serving.os_errors import writing_temporary_files
from serving.spec import ModelSpec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # set: the processes of the service count together
_FILES = ("counter", "gauge_livesum", "histogram")  # prometheus_client's, one each per process
_FILE_BYTES = 2**18  # more than all paths with all statuses take
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_SCORES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
_MAX_CLASSES = 200  # with a count of their own: their room is limited


_DECISIONS = ("answer", "uncertain", "out_of_scope")


class Metrics:
    """Requests, their time, images by decision."""

    def __init__(self) -> None:
        """Begin at zero.

        Raises:
            StorageError: the processes of the service have no room to count together.
        """
        if folder := os.environ.get(MULTIPROCESS):
            _make_files(Path(folder))
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dermalyze_requests",
            "Requests answered, by path and HTTP status; 0: the client disconnected.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "dermalyze_request_seconds",
            "Time from a request's headers to its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._answers = Counter(
            "dermalyze_answers",
            "Answers given, by decision.",
            ["decision"],
            registry=self._registry,
        )
        self._classes = Counter(
            "dermalyze_predicted_class",
            "Answers given, by predicted class.",
            ["class"],
            registry=self._registry,
        )
        self._confidence = Histogram(
            "dermalyze_confidence",
            "Probability of the predicted class.",
            buckets=_SHARES,
            registry=self._registry,
        )
        self._scope_score = Histogram(
            "dermalyze_scope_score",
            "How unlike the validation images.",
            buckets=_SCORES,
            registry=self._registry,
        )
        self.lost_in_log = Counter(
            "dermalyze_prediction_log_lost",
            "Answers that the prediction log lacks.",
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "dermalyze_requests_in_flight",
            "Requests in progress.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.reloads = Counter(
            "dermalyze_model_reloads",
            "New model files checked while serving.",
            ["outcome"],
            registry=self._registry,
        )

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Count one request; `path` is that of its route, empty: none."""
        name = path or "other"
        self._requests.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def begin(self, spec: ModelSpec) -> None:
        """Let the counts of a model begin at zero, so that its first answer is an increase."""
        self._counted = spec.class_names[:_MAX_CLASSES]
        for name in self._counted:
            self._classes.labels(name)
        for decision in _DECISIONS if spec.abstention else ("none",):
            self._answers.labels(decision)

    def answered(self, answer: Mapping[str, Any]) -> None:
        """Count one answer."""
        name = answer["predicted_class"]
        self._answers.labels(answer.get("decision") or "none").inc()
        self._classes.labels(name if name in self._counted else "other").inc()
        self._confidence.observe(answer["confidence"])
        if "scope_score" in answer:
            self._scope_score.observe(answer["scope_score"])

    def text(self, spec: ModelSpec) -> bytes:
        """Return all of it in Prometheus' text form, with what validation images were like."""
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        known = CollectorRegistry()
        known.register(_Validation(spec))
        return generate_latest(registry) + generate_latest(known)


class _Validation:
    """What the answers are compared with; a constant of the model, so that no process counts it."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    def collect(self) -> Iterator[Metric]:
        """Give the metrics of it that the model has."""
        if (known := self._spec.monitoring) is not None:
            shares = GaugeMetricFamily(
                "dermalyze_validation_class_share",
                "Share of the validation images with this predicted class.",
                labels=["class"],
            )
            for name, share in zip(self._spec.class_names, known.class_shares, strict=True):
                shares.add_metric([name], share)
            yield shares
            yield GaugeMetricFamily(
                "dermalyze_validation_confidence",
                "Mean confidence on validation images.",
                known.mean_confidence,
            )
            yield GaugeMetricFamily(
                "dermalyze_validation_images",
                "Independent validation images that these shares are of.",
                known.num_independent,
            )
        if (scope := self._spec.scope) is not None:
            yield GaugeMetricFamily(
                "dermalyze_validation_out_of_scope",
                "Share of the validation lesions that are called out of scope.",
                scope.false_alarm_rate,
            )


def require_room_for(num_processes: int, folder: Path) -> None:
    """Refuse a folder without room for what so many processes count.

    Raises:
        OSError: there is too little.
    """
    if shutil.disk_usage(folder).free < num_processes * len(_FILES) * _FILE_BYTES:
        raise OSError(errno.ENOSPC, "no room")


def _make_files(folder: Path) -> None:
    """Take the room for what this process counts.

    prometheus_client maps files with holes.  Filling one on a full disk would end the process.
    """
    for name in _FILES:
        with writing_temporary_files(), (folder / f"{name}_{os.getpid()}.db").open("wb") as file:
            file.write(bytes(_FILE_BYTES))

"""What the service counts, for Prometheus; no label comes from a client."""

import errno
import os
import shutil
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serving.os_errors import writing_temporary_files

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # set: the processes of the service count together
_FILES = ("counter", "gauge_livesum", "histogram")  # prometheus_client's, one each per process
_FILE_BYTES = 2**18  # more than all paths with all statuses take
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


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

    def answered(self, decision: str | None) -> None:
        """Count one answer."""
        self._answers.labels(decision or "none").inc()

    def text(self) -> bytes:
        """Return all of it in Prometheus' text form."""
        registry = self._registry
        if os.environ.get(MULTIPROCESS):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


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

"""What the service counts, for Prometheus; no label comes from a client."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # set: the processes of the service count together
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Requests, their time, images by decision."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dermalyze_requests",
            "Requests answered, by path and HTTP status; 0: the client had left.",
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
            "Requests that are being answered.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self.reloads = Counter(
            "dermalyze_model_reloads",
            "New model files looked at while serving.",
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

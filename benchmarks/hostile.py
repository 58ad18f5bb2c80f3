"""Hostile bodies against the service: how long each takes, and how long /health keeps silent.

    PYTHONPATH=tests/support python -m benchmarks.hostile [--only TEXT] [--clients 1]

Each body is within the default bounds; `tests/support/hostile.py` makes it.  Another thread asks
for /health all the time, on connections of its own.  With several clients, all send the same body
at once.  Client and server share the cores of the machine.
"""

import argparse
import http.client
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.hostile import FORM, hostile
from tests.support.servers import memory_of
from tests.support.services import service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="bodies with this in their name")
    parser.add_argument("--clients", type=int, default=1, help="that send a body at once")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as own:
        for name, (kind, body) in hostile().items():
            if args.only not in name:
                continue
            seconds, statuses, silent = attack(own.port, kind, body, args.clients)
            print(
                f"{name:36} {len(body) / 1e6:5.2f} MB  {statuses}  {seconds:6.2f} s"
                f"  /health {silent:6.3f} s  {memory_of(own.pid):5.0f} MB",
                flush=True,
            )


def attack(port: int, kind: str, body: bytes, clients: int) -> tuple[float, list[int], float]:
    """Return seconds until all are answered, the statuses, and the slowest answer of /health."""
    path, done, silent = "/predict" if kind == FORM else "/invocations", threading.Event(), [0.0]

    def ask_for_health() -> None:
        while not done.is_set():
            start = time.perf_counter()
            status_of(port, "GET", "/health")
            silent.append(time.perf_counter() - start)
            done.wait(0.005)

    start = time.perf_counter()
    with ThreadPoolExecutor(clients + 1) as pool:
        pool.submit(ask_for_health)
        try:
            sent = [
                pool.submit(status_of, port, "POST", path, body, {"content-type": kind})
                for _ in range(clients)
            ]
            statuses = sorted({each.result() for each in sent})
        finally:
            done.set()
    return time.perf_counter() - start, statuses, max(silent)


def status_of(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        response.read()
        return response.status
    except OSError:  # silent for longer than the time above
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    main()

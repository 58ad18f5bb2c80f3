"""The service under load, beside `mlflow models serve` with the same model, on loopback.

    python -m benchmarks.service [--data-dir demo] [--seconds 3] [--soak 600]

Clients keep their connections and send JPEG photographs of 600 x 450, one a request: ours as they
are, to /predict, MLflow's as base64 in JSON, the only way that it takes them.  Clients and servers
share the cores of the machine.  The sides take turns of some seconds, for the speed of a machine
drifts, and figures are medians over the rounds.  `--soak` adds so many seconds of mixed load on our
service alone.
"""

import argparse
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import mlflow
import numpy as np

from benchmarks.models import model_files
from benchmarks.predict import write_images
from benchmarks.report import Figure, publish
from dermalyze.data.location import find_data
from dermalyze.export.mlflow_arguments import pyfunc_arguments
from serving import Predictor
from tests.support.servers import free_port, memory_of, running

CLIENTS = (1, 2, 8)


@dataclass(frozen=True)
class Load:
    """What clients saw of a server."""

    per_second: float
    p50: float  # ms
    p99: float  # ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="auto", help="a folder, demo or auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=7, help="in which all servers have a turn")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of mixed load")
    args = parser.parse_args()
    data_dir, _ = find_data(args.data_dir, make=True)
    figures: list[Figure] = []
    context: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        images = [path.read_bytes() for path in write_images(data_dir, home, 50)]
        figures += beside_mlflow(home, images, args.seconds, args.rounds)
        figures += beside_bare(home, images, args.seconds, args.rounds)
        if args.soak:
            context["soak"] = soak(home / "soak", images, args.soak)
    publish("service", figures, seconds=args.seconds, rounds=args.rounds, **context)


def beside_mlflow(home: Path, images: Sequence[bytes], seconds: float, rounds: int) -> list[Figure]:
    model, _ = model_files("MobileNetV3-Small")
    logged = home / "logged"
    mlflow.pyfunc.save_model(logged, **pyfunc_arguments(model))
    raw = [request("/predict", "image/jpeg", image) for image in images]
    wrapped = [request("/invocations", "application/json", as_json(image)) for image in images]
    sides = {
        "ours": (ours(model), raw),
        "ours by JSON": (ours(model), wrapped),
        "two workers": (ours(model, "--workers", "2"), raw),
        "mlflow": (theirs(logged), wrapped),
    }
    loads: dict[tuple[str, int], list[Load]] = {}
    with contextlib.ExitStack() as stack:
        # All are up; those that are not asked wait.  Only so can they take turns of seconds.
        servers = {
            name: stack.enter_context(served(command, home / name))
            for name, (command, _) in sides.items()
        }
        for round_ in range(-1, rounds):  # the first warms them up
            for clients in CLIENTS:
                for name, (port, _) in servers.items():
                    found = load(port, sides[name][1], clients, seconds)
                    print(f"{name}, {clients} clients: {found}", flush=True)
                    if round_ >= 0:
                        loads.setdefault((name, clients), []).append(found)
        memory = {name: megabytes(pid) for name, (_, pid) in servers.items()}
    figures = []
    against = "mlflow models serve"
    for clients in CLIENTS:
        own, same, two, base = (middle(loads[side, clients]) for side in sides)
        who = f"{clients} client{'s' if clients > 1 else ''}"
        figures += [
            ratio(f"throughput, {who}", own.per_second, base.per_second, "/s", against, ">= 1.3"),
            ratio(f"p50, {who}", own.p50, base.p50, "ms", against, ""),
            ratio(f"p99, {who}", own.p99, base.p99, "ms", against, "<= 1.0"),
            ratio(
                f"throughput of /invocations, {who}",
                same.per_second,
                base.per_second,
                "/s",
                against,
                "",
            ),
            ratio(
                f"throughput of two workers, {who}",
                two.per_second,
                own.per_second,
                "/s",
                "one worker",
                ">= 0.95",  # one side differs from itself by as much
            ),
        ]
    figures.append(
        ratio("memory of all processes", memory["ours"], memory["mlflow"], "MB", against, "<= 0.6")
    )
    return figures


def beside_bare(home: Path, images: Sequence[bytes], seconds: float, rounds: int) -> list[Figure]:
    """Compare with a loop over decoding and network, in this process, without HTTP."""
    model, _ = model_files("EfficientNetV2-S")
    requests = [request("/predict", "image/jpeg", image) for image in images]
    predictor = Predictor(model)
    bare: list[float] = []
    loads: dict[int, list[Load]] = {}
    with served(ours(model), home / "bare") as (port, _):
        for round_ in range(-1, rounds):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                predictor.logits(predictor.pixels(images[count % len(images)])[None])
                count += 1
            if round_ >= 0:
                bare.append(count / (time.perf_counter() - start))
            for clients in CLIENTS:
                found = load(port, requests, clients, seconds)
                print(f"EfficientNetV2-S, {clients} clients: {found}", flush=True)
                if round_ >= 0:
                    loads.setdefault(clients, []).append(found)
    return [
        ratio(
            f"EfficientNetV2-S, {clients} client{'s' if clients > 1 else ''}",
            middle(found).per_second,
            statistics.median(bare),
            "/s",
            "bare decoding and network",
            ">= 0.85",
        )
        for clients, found in loads.items()
    ]


def soak(home: Path, images: Sequence[bytes], seconds: float) -> dict[str, object]:
    """Mix all kinds of requests, good and bad; memory must stay, and every one be answered."""
    model, _ = model_files("MobileNetV3-Small")
    boundary = "limit"
    form = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="p"; filename="x"\r\n\r\n'.encode()
        + image
        + b"\r\n"
        for image in images[:4]
    )
    form += f"--{boundary}--\r\n".encode()
    kinds = [
        (200, [request("/predict", "image/jpeg", image) for image in images]),
        (200, [request("/invocations", "application/json", as_json(image)) for image in images]),
        (200, [request("/predict", f"multipart/form-data; boundary={boundary}", form)]),
        (400, [request("/predict", "image/jpeg", image[:3000]) for image in images]),
        (400, [request("/invocations", "application/json", b"[" * 50_000)]),
        (413, [request("/predict", "image/jpeg", bytes(9 * 2**20))]),
        (415, [request("/predict", "image/gif", images[0])]),
    ]
    curve: list[float] = []
    with served(ours(model), home) as (port, pid):
        end = time.perf_counter() + seconds

        def client(first: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            connection, i = connect(port), first
            while time.perf_counter() < end:
                status, requests = kinds[i % len(kinds)]
                i += 1
                found = status_of(connection, requests[i % len(requests)])
                if found in (0, 413):  # the connection is closed after these
                    connection.close()
                    connection = connect(port)
                seen["as it should be" if found == status else f"{found} for {status}"] += 1
            connection.close()
            return seen

        with ThreadPoolExecutor() as pool:
            clients = [pool.submit(client, i) for i in range(4)]
            while time.perf_counter() < end:
                time.sleep(min(10, seconds / 20))
                curve.append(megabytes(pid))
                print(f"{curve[-1]:.0f} MB", flush=True)
            answers = sum((found.result() for found in clients), Counter())
    return {"answers": dict(answers), "memory_mb": [round(value, 1) for value in curve]}


def ours(model: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dermalyze", "serve", "--model", str(model.resolve()), *options]


def theirs(logged: Path) -> list[str]:
    serve = ["models", "serve", "-m", str(logged), "--env-manager", "local"]
    return [sys.executable, "-m", "mlflow", *serve]


@contextlib.contextmanager
def served(command: Sequence[str], home: Path) -> Iterator[tuple[int, int]]:
    home.mkdir(exist_ok=True)
    port = free_port()
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with running(
        [*command, "--port", str(port)],
        health=f"http://127.0.0.1:{port}/health",
        cwd=home,
        env=env,
        log=home / "server.log",
    ) as pid:
        yield port, pid


def request(path: str, kind: str, body: bytes) -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    return f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def as_json(image: bytes) -> bytes:
    return json.dumps({"inputs": [base64.b64encode(image).decode()]}).encode()


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def status_of(connection: socket.socket, request: bytes) -> int:
    """Send a request, read its whole answer, return its status; 0: the connection was closed."""
    with contextlib.suppress(OSError):  # refused before all of it was sent: the answer is there
        connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(65536)
        if not part:
            return 0
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    received = len(body)
    while received < length:
        received += len(connection.recv(65536))
    return int(head.split(b" ", 2)[1])


def load(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Let clients ask one after the other for some seconds; every answer must be 200."""
    end = time.perf_counter() + seconds

    def client(first: int) -> list[float]:
        times = []
        connection, i = connect(port), first
        while (start := time.perf_counter()) < end:
            status = status_of(connection, requests[i % len(requests)])
            if status != 200:
                raise RuntimeError(f"a photograph was answered with {status}")
            times.append(time.perf_counter() - start)
            i += clients
        connection.close()
        return times

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = [second for found in pool.map(client, range(clients)) for second in found]
    p50, p99 = np.percentile(times, [50, 99])
    return Load(len(times) / (time.perf_counter() - start), 1000 * p50, 1000 * p99)


def middle(loads: Sequence[Load]) -> Load:
    """Return the medians over the rounds."""
    return Load(*np.median([astuple(found) for found in loads], axis=0).tolist())


def megabytes(pid: int) -> float:
    """Return the memory of a process and all below it; what they share counts once."""
    total, todo = 0.0, [pid]
    while todo:
        pid = todo.pop()
        with contextlib.suppress(OSError):  # it may have ended
            total += memory_of(pid)
        found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        todo += map(int, found.stdout.split())
    return total


def ratio(what: str, own: float, base: float, unit: str, against: str, goal: str) -> Figure:
    return Figure(
        what=what, ours=own, baseline=base, unit=unit, against=against, ratio=own / base, goal=goal
    )


if __name__ == "__main__":
    main()

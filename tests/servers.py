"""Starting and stopping servers: each in a session of its own, ended by its process id."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from strangers import png
from tiny_model import TINY_ONNX


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], *, health: str, cwd: Path, env: dict[str, str], log: Path
) -> Iterator[int]:
    """Run a server until the block ends; it must answer at `health` within two minutes."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(health):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def service(folder, *options, model=TINY_ONNX, **environment):
    port = free_port()
    command = [sys.executable, "-m", "dermalyze", "serve", "--model", str(model)]
    command += ["--port", str(port), *map(str, options)]
    env = os.environ | environment
    url, log = f"http://127.0.0.1:{port}", folder / "service.log"
    with running(command, health=f"{url}/health", cwd=folder, env=env, log=log) as pid:
        yield Service(port, pid, log)


class Service:
    def __init__(self, port, pid, log):
        self.port, self.pid, self.log = port, pid, log

    def connection(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def said(self, request):
        """Send bytes, return all that comes back until the connection is closed."""
        with self.connection() as client:
            client.sendall(request)
            return read_all(client)

    def predict(self, data=None, path="/predict"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            png() if data is None else data,
            {"Content-Type": "image/png"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def status(self, path, data):
        """Send an image, return the status."""
        try:
            self.predict(data, path)
        except urllib.error.HTTPError as error:
            return error.code
        return 200

    def metrics(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            return response.read().decode()


def read_all(client):
    """Return all that comes until the connection is closed."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def memory_of(pid):
    """Return the memory of a process in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) / 1024

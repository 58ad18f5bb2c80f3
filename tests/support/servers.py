"""Starting and stopping servers: each in a session of its own, ended by its process id."""

import contextlib
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    health: str | tuple[str, int],
    cwd: Path,
    env: dict[str, str],
    log: Path,
) -> Iterator[int]:
    """Run a server until the block ends; it must answer at `health` within two minutes.

    That is an address of HTTP, or host and port where accepting a connection is enough.
    """
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


@contextlib.contextmanager
def mlflow_server(place: Path, port: int) -> Iterator[int]:
    """Run MLflow's tracking server on what is in a folder."""
    env = dict(os.environ, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{place}/server.db",
        "--artifacts-destination", str(place / "artifacts"),
    ]  # fmt: skip
    health = f"http://127.0.0.1:{port}/health"
    with running(command, health=health, cwd=place, env=env, log=place / "server.log") as pid:
        yield pid


@contextlib.contextmanager
def mlflow_models_serve(model_uri: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Serve a model of the present store with `mlflow models serve`; yield address and process."""
    import mlflow

    port, bin_folder = free_port(), Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",  # it looks for uvicorn
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    command = [f"{bin_folder}/mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with running(
        command, health=f"{address}/ping", cwd=folder, env=env, log=folder / "server.log"
    ) as process:
        yield address, process


def _answers(health: str | tuple[str, int]) -> bool:
    try:
        if isinstance(health, tuple):
            socket.create_connection(health, timeout=2).close()
            return True
        with urllib.request.urlopen(health, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


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


def wait_for(condition, seconds=10):
    """Wait until it is true, for some seconds at most."""
    for _ in range(50 * seconds):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")

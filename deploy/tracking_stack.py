"""PostgreSQL, an S3 server and MLflow's tracking server on this machine, without containers.

    make tracking-stack [STACK=.dermalyze/tracking-stack]

Needs the programs of PostgreSQL (Debian: postgresql).  Ctrl-C stops all three; what they store
stays in the folder.  The passwords are in its file `stack.env`, which only you can read, and never
in a command.
"""

import argparse
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

START_SECONDS, STOP_SECONDS = 300, 30  # on a busy machine, too
PORTS = {"postgres": 5433, "s3": 9000, "mlflow": 5000}
DATABASES = ("mlflow", "optuna")  # separate: MLflow and Optuna have a table of the same name
BUCKET = "mlflow"
USER = "dermalyze"


@dataclass(kw_only=True)
class Server:
    """A server as a process in a session of its own, which can be stopped and started again."""

    command: Sequence[str]
    env: Mapping[str, str]
    port: int
    folder: Path  # of its log
    user: str | None = None  # whom it runs as
    stop_signal: int = signal.SIGTERM
    probe: Sequence[str] = ()  # a command that succeeds once it answers; else a connection does
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        """Return the file of what it says."""
        return self.folder / f"{Path(self.command[0]).name}.log"

    def answers(self) -> bool:
        """Return whether it can be used."""
        if self.probe:
            return subprocess.run(self.probe, stdout=subprocess.DEVNULL).returncode == 0
        return _accepts(self.port)

    def start(self) -> None:
        """Start it, and wait until it can be used."""
        if _accepts(self.port):
            sys.exit(f"Error: port {self.port} is in use by another program; stop that one first")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd="/", stdout=log, stderr=log,
                start_new_session=True, user=self.user, group=self.user,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Error: {self.command[0]} did not start; see {self.log}")
            time.sleep(0.1)

    def stop(self, number: int = 0) -> None:
        """Stop it with a signal, by default its own, and wait for its end."""
        if self.process is None:
            return
        _send(self.process, number or self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        _send(self.process, signal.SIGKILL)  # what is left of its session
        self.process.wait()
        self.process = None


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


class Stack:
    """The three servers, and the settings that programs need to use them."""

    def __init__(self, folder: Path, ports: Mapping[str, int]) -> None:
        """Make the folder and its passwords, unless they are there."""
        self.folder, self.ports = folder.resolve(), dict(ports)
        self.url = f"http://127.0.0.1:{ports['mlflow']}"
        self.env = self._settings()
        programs = dict(os.environ) | self.env
        programs["PATH"] = f"{Path(sys.executable).parent}:{programs['PATH']}"
        self.s3 = Server(
            command=["nanio", "serve", "--host", "127.0.0.1", "--port", str(ports["s3"]),
                     "--data-dir", str(self.folder / "s3"), "--no-access-log"],
            env=programs, port=ports["s3"], folder=self.folder,
        )  # fmt: skip
        self.mlflow = Server(
            command=["mlflow", "server", "--host", "127.0.0.1", "--port", str(ports["mlflow"]),
                     "--workers", "1"],
            env=programs | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            port=ports["mlflow"], folder=self.folder,
        )  # fmt: skip
        self.postgres = self._database(programs["PATH"])

    def database(self, name: str) -> str:
        """Return the address of a database, which needs PGPASSWORD."""
        return f"postgresql://{USER}@127.0.0.1:{self.ports['postgres']}/{name}"

    def start(self) -> None:
        """Start all of them; make the databases and the bucket where they are missing."""
        self.postgres.start()
        with psycopg.connect(
            self.database("postgres"), password=self.env["PGPASSWORD"], autocommit=True
        ) as connection:
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
            for name in set(DATABASES) - there:
                connection.execute(f"CREATE DATABASE {name}")
        (self.folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)  # a bucket is a folder
        self.s3.start()
        self.mlflow.start()

    def stop(self) -> None:
        """Stop all of them."""
        for server in (self.mlflow, self.s3, self.postgres):
            server.stop()

    def _settings(self) -> dict[str, str]:
        """Return what MLflow, boto3 and PostgreSQL read from the environment, from `stack.env`."""
        path = self.folder / "stack.env"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            key, secret = secrets.token_hex(10), secrets.token_hex(20)
            settings = {
                "PGPASSWORD": secrets.token_hex(20),
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": secret,
                "NANIO_ACCESS_KEY": key,
                "NANIO_SECRET_KEY": secret,
                "AWS_DEFAULT_REGION": "us-east-1",
                "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
                "MLFLOW_BACKEND_STORE_URI": self.database("mlflow"),
                "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}",
                "MLFLOW_TRACKING_URI": self.url,
            }
            _write_secret(path, "".join(f"{name}={value}\n" for name, value in settings.items()))
        return dict(line.split("=", 1) for line in path.read_text().splitlines())

    def _database(self, path: str) -> Server:
        """Return PostgreSQL, whose files are made unless they are there."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        postgres = shutil.which("postgres", path=":".join([*map(str, reversed(found)), path]))
        if postgres is None:
            sys.exit("Error: PostgreSQL is not installed; run `apt-get install postgresql`")
        folder = self.folder / "postgres"
        user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        if not (folder / "PG_VERSION").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir(mode=0o700)
            password = folder.with_name("password")
            _write_secret(password, self.env["PGPASSWORD"])
            if user:
                for made_for_it in (folder, password):
                    shutil.chown(made_for_it, user, pwd.getpwnam(user).pw_gid)
            made = subprocess.run(
                [Path(postgres).with_name("initdb"), "-D", folder, "-A", "scram-sha-256",
                 "-U", USER, "--pwfile", password],
                cwd="/", user=user, group=user, capture_output=True, text=True,
            )  # fmt: skip
            password.unlink()
            if made.returncode != 0:
                sys.exit(f"Error: cannot make a database in {folder}: {made.stderr.strip()}")
        data, port = str(folder), str(self.ports["postgres"])
        return Server(
            command=[postgres, "-D", data, "-k", data, "-h", "127.0.0.1", "-p", port],
            probe=[str(Path(postgres).with_name("pg_isready")), "-h", "127.0.0.1", "-p", port],
            env={"PATH": path, "LC_ALL": "C.UTF-8"},
            port=self.ports["postgres"],
            folder=self.folder,
            user=user,
            stop_signal=signal.SIGINT,  # without waiting for those who are connected
        )


def main() -> None:
    """Run the stack until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    stops = (signal.SIGINT, signal.SIGTERM)
    for number in stops:  # a shell's job in the background ignores the first
        signal.signal(number, signal.default_int_handler)
    stack = None
    try:
        stack = Stack(parser.parse_args().folder, PORTS)
        stack.start()
        print(
            f"MLflow: {stack.url}; PostgreSQL: {stack.database('optuna')}; stop with Ctrl-C\n"
            f"in another shell: set -a; . {stack.folder}/stack.env; set +a",
            flush=True,
        )
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        for number in stops:
            signal.signal(number, signal.SIG_IGN)  # or a second Ctrl-C would leave servers behind
        if stack is not None:
            stack.stop()


if __name__ == "__main__":
    main()

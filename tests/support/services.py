"""Our service as a process."""

import contextlib
import json
import os
import socket
import sys
import urllib.error
import urllib.request

import pytest
from servers import free_port, read_all, running
from strangers import png
from tiny_model import TINY_ONNX


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


@contextlib.contextmanager
def mlflows_own(model):
    """MLflow's server in process, guarded as a served model guards it; its test takes `store`."""
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    from dermalyze.export.mlflow_arguments import pyfunc_arguments

    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(name="model", **pyfunc_arguments(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring_server, "invocations", scoring_server.invocations)
        patch.setenv("__pyfunc_model_path__", logged.model_uri)
        app = scoring_server.init(mlflow.pyfunc.load_model(logged.model_uri))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

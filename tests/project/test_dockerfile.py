"""The steps of serving/Dockerfile, carried out one by one without a container engine.

An environment that holds nothing stands for the base image, a folder for its file system; what runs
in the end runs as another user, who may write nowhere.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from servers import free_port, running
from strangers import png
from tiny_model import TINY_ONNX

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def steps():
    """Return (instruction, words) of the Dockerfile; of HEALTHCHECK, the words of its command."""
    text = (ROOT / "serving" / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", "\n".join(x for x in text.splitlines() if x[:1] != "#"))
    found = [line.split(" ", 1) for line in lines.splitlines() if line]
    commands = {"HEALTHCHECK": "CMD ", "ENTRYPOINT": ""}
    return [
        (
            name,
            json.loads(rest.split(commands[name])[1] if commands[name] else rest)
            if name in commands
            else shlex.split(rest),
        )
        for name, rest in found
    ]


def test_its_steps_make_a_service_that_answers_as_nobody(tmp_path):
    place = Path(os.path.realpath(tmp_path))
    image, app = place / "image", place / "image" / "app"
    # Copied: nobody may be kept out of the folder that the interpreter is in.
    subprocess.run([sys.executable, "-m", "venv", "--copies", str(image / "python")], check=True)
    env = {"PATH": f"{image}/python/bin:/usr/bin:/bin"}
    app.mkdir()
    entry, health, user = None, None, ""
    for name, words in steps():
        if name == "FROM":
            assert words == ["python:3.11-slim"]
        elif name == "ENV":
            env |= dict(word.split("=", 1) for word in words)
        elif name == "COPY":
            target = app / words[-1]
            for path in (path for source in words[:-1] for path in ROOT.glob(source)):
                if path.is_dir():
                    shutil.copytree(path, target)
                else:
                    shutil.copy(path, target / path.name)
        elif name == "RUN":
            kept = {key: os.environ[key] for key in os.environ if key.startswith("PIP_")}
            subprocess.run(words, cwd=app, env=kept | env, check=True)
        elif name == "USER":
            (user,) = words
        elif name == "HEALTHCHECK":
            health = words
        elif name == "ENTRYPOINT":
            entry = words
        else:
            assert (name, words) in [("WORKDIR", ["/app"]), ("EXPOSE", ["8000"])]
    assert user == "10001:10001"
    installed = subprocess.run(
        ["pip", "list", "--format", "json"], env=env, capture_output=True, check=True
    )
    names = {package["name"].lower() for package in json.loads(installed.stdout)}
    assert {"onnxruntime", "fastapi", "dermalyze"} <= names
    assert not {"torch", "timm", "mlflow", "pandas", "onnx"} & names
    model = place / "model.onnx"
    shutil.copy(TINY_ONNX, model)
    port = free_port()
    command = [str(image / "python" / "bin" / entry[0]), *entry[1:], "--port", str(port)]
    command[command.index("/model/model.onnx")] = str(model)
    if os.geteuid() == 0:  # the container's user
        user, group = user.split(":")
        command = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *command]
        for folder in (place, *place.parents):
            if folder.owner() == "root" and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o055)
    url = f"http://127.0.0.1:{port}"
    with running(command, health=f"{url}/ready", cwd=Path("/"), env=env, log=place / "log"):
        request = urllib.request.Request(f"{url}/predict", png(), {"Content-Type": "image/png"})
        with urllib.request.urlopen(request) as response:
            assert len(json.load(response)["predictions"]) == 1
        with urllib.request.urlopen(f"{url}/") as response:
            assert b"Dermalyze" in response.read()
        asked = [word.replace(":8000", f":{port}") for word in health]
        assert asked != health
        assert subprocess.run(asked, env=env).returncode == 0
    assert subprocess.run(asked, env=env, stderr=subprocess.DEVNULL).returncode != 0

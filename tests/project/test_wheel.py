"""What `pip install` gives: a wheel in an environment of its own, used in another folder.

The environment holds the wheel and, as links into the one that runs the tests, the packages that
the wheel says it needs; the checkout cannot be imported there.
"""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from readme import INSTALLED, README, blocks, script, user_env
from servers import free_port, running
from tiny_model import TINY_ONNX

from serving import Predictor

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SITE = Path(sysconfig.get_paths()["purelib"])
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel made of the source distribution of the tracked files, without the network."""
    folder = tmp_path_factory.mktemp("built")
    with tarfile.open(folder / "tree.tar", "w") as tree:
        for name in tracked():
            tree.add(ROOT / name, name)
    (folder / "tree").mkdir()
    with tarfile.open(folder / "tree.tar") as tree:
        tree.extractall(folder / "tree", filter="data")
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=folder / "tree", check=True)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index",
         "--no-build-isolation", "-w", folder, folder / source.name.removesuffix(".tar.gz")],
        check=True,
    )  # fmt: skip
    (made,) = folder.glob("*.whl")
    return made


def needed(names):
    """The installed distributions of these names and of all that they need in turn."""
    found = {}
    while names:
        name, *names = names
        if name.lower() not in found:
            try:
                found[name.lower()] = importlib.metadata.distribution(name)
            except importlib.metadata.PackageNotFoundError:
                continue  # for another system, or of an extra
            requires = found[name.lower()].requires or []
            names += [re.match(r"[\w.-]+", text)[0] for text in requires if "extra ==" not in text]
    return found.values()


def environment(folder, wheel, *, extra):
    """Install the wheel beside links to what it needs; return the folder of its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = folder / "bin"
    subprocess.run(
        [sys.executable, "-m", "pip", "-q", "--python", programs / "python", "install",
         "--no-deps", "--no-index", wheel],
        check=True,
    )  # fmt: skip
    site = folder / SITE.relative_to(sys.prefix)
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        lines = re.findall(r"^Requires-Dist: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    names = [re.match(r"[\w.-]+", line)[0] for line in lines if extra or "extra ==" not in line]
    for distribution in needed(names):
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(SITE / top)
    for name in ("mlflow", "uvicorn"):  # their programs would start the environment of the tests
        if (site / name).exists():
            (programs / name).write_text(f'#!/bin/sh\nexec {programs}/python -m {name} "$@"\n')
            (programs / name).chmod(0o755)
    return programs


@pytest.fixture(scope="module")
def full(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("full") / "env", wheel, extra=True)


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("light") / "env", wheel, extra=False)


def called(programs, folder, code, **variables):
    """Run lines of a shell in the environment; return what they print."""
    env = user_env(**variables) | {"PATH": f"{programs}:/usr/bin:/bin"}
    env.pop("PYTHONPATH", None)
    return script(code, folder, env)


def test_the_wheel_holds_every_file_of_the_packages_and_the_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {name for name in tracked() if name.startswith(("dermalyze/", "serving/"))}
    expected |= {f"dermalyze/{name}" for name in tracked() if name.startswith("configs/")}
    assert inside == expected - {"serving/Dockerfile"}


def test_the_light_half_predicts_and_serves_with_what_the_wheel_needs(light, tmp_path):
    where = called(light, tmp_path, "python -c 'import dermalyze; print(dermalyze.__file__)'")
    assert where == f"{light.parent / SITE.relative_to(sys.prefix)}/dermalyze/__init__.py\n"
    torch = "python -c 'import importlib.util as i; print(i.find_spec(\"torch\"))'"
    assert called(light, tmp_path, torch) == "None\n"
    Image.effect_noise((16, 12), 90).convert("RGB").save(tmp_path / "lesion.png")
    expected = Predictor(TINY_ONNX).predict(tmp_path / "lesion.png")
    predicted = called(light, tmp_path, f"dermalyze predict --model {TINY_ONNX} lesion.png")
    assert expected.predicted_class in predicted
    said = called(light, tmp_path, "dermalyze predict lesion.png 2>&1")
    assert "model: the reference model of this installation" in said
    assert "CC BY-NC 4.0" in said
    assert Predictor().predict(tmp_path / "lesion.png").predicted_class in said
    lacking = r"Error: this command needs \w+, which is not installed; run `pip install "
    for words in ("train", "check-fit --run-id r", "register-reference", "promote 1",
                  "recalibrate --predictions p.csv --output o.onnx",
                  "serve --model models:/a@b"):  # fmt: skip
        said = called(light, tmp_path, f"dermalyze {words} 2>&1 || true")
        assert re.match(lacking, said), said
    url = f"http://127.0.0.1:{(port := free_port())}"
    with running(
        [str(light / "dermalyze"), "serve", "--model", str(TINY_ONNX), "--port", str(port)],
        health=f"{url}/ready",
        cwd=tmp_path,
        env=user_env(PYTHONPATH=""),
        log=tmp_path / "log",
    ):
        send = "curl -sf --data-binary @lesion.png -H 'Content-Type: image/png'"
        answer = json.loads(called(light, tmp_path, f"{send} {url}/predict"))
        page = called(light, tmp_path, f"curl -sf {url}/ {url}/page.js")
    assert answer["predictions"][0]["predicted_class"] == expected.predicted_class
    assert "Dermalyze" in page


def test_the_commands_of_the_readme_run_in_another_folder(full, tmp_path):
    commands, serving, service = blocks(INSTALLED)
    output = called(
        full,
        tmp_path,
        "dermalyze demo-data data/HAM10000 --images 140\n"
        "dermalyze prepare-data --image-size 32\n"
        "dermalyze train --epochs 1 --image-size 32 --set model.name=test_efficientnet "
        "--set model.pretrained=false",
    )
    (run_id,) = re.findall(r"^run id: (\w+)$", output, re.MULTILINE)
    output = called(full, tmp_path, commands, RUN_ID=run_id)
    assert "differs from PyTorch by at most" in output
    assert Predictor(tmp_path / "page" / "model.onnx").spec.precision == "float16"
    photographs = tmp_path / "lesions" / "HAM10000_images_part_1"
    drawn = {path.stem for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {path.stem for path in photographs.iterdir()} != set()
    for name in ("lesion", "near", "far"):
        shutil.copy(next(photographs.glob("*.jpg")), tmp_path / f"{name}.jpg")
    (tmp_path / "lines.py").write_text(
        "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    )
    assert "predicted_class_description" in called(full, tmp_path, "python lines.py")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")
    assert "predicted_class_description" in called(full, tmp_path, serving)
    answers = called(full, tmp_path, service)
    assert '"disclaimer"' in answers  # of /predict
    assert '"predictions"' in answers  # of /invocations

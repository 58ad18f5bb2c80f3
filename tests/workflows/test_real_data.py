"""The whole path on 200 real images: zips, training, ONNX, registry, a REST answer.

Runs where ../shared holds HAM10000 and the MobileNet weights, and says so where it does not.
"""

import base64
import csv
import json
import os
import re
import subprocess
import sys
import urllib.request
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from servers import free_port, running

from dermalyze import SkinLesionPredictor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT.parent / "shared" / "weights" / "gluon_mobilenetv2.py"


def copy_subset(source: Path, target: Path, num_images: int) -> None:
    """Write a record of `num_images` images, whole lesions, every class with at least four."""
    with (source / "HAM10000_metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lesions = defaultdict(list)
    for row in rows:
        lesions[row["dx"], row["lesion_id"]].append(row)
    by_class = defaultdict(list)
    for (label, _), group in sorted(lesions.items()):
        by_class[label].append(group)
    chosen = [row for groups in by_class.values() for group in groups[:8] for row in group]
    for group in by_class["nv"][8:]:
        if len(chosen) + len(group) > num_images:
            break
        chosen += group
    target.mkdir()
    with (target / "HAM10000_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    names = {row["image_id"] + ".jpg" for row in chosen}
    for part in ("HAM10000_images_part_1.zip", "HAM10000_images_part_2.zip"):
        with zipfile.ZipFile(source / part) as there, zipfile.ZipFile(target / part, "w") as here:
            for name in names.intersection(there.namelist()):
                here.writestr(name, there.read(name))


def test_from_zips_to_a_rest_answer_on_real_images(real_data, tmp_path):
    if not PLUGIN.is_file():
        pytest.skip("the MobileNet weights are not beside the project, in ../shared/weights")
    copy_subset(real_data, tmp_path / "data", 200)
    (tmp_path / "config.yaml").write_text(
        f"model: {{name: gluon_mobilenetv2, plugins: [{PLUGIN}], pretrained: true}}\n"
        "data: {image_size: 64}\n"
        "training: {epochs: 2, batch_size: 16, lr: 1.0e-3}\n"
    )
    env = dict(os.environ, PYTHONPATH=str(ROOT), MLFLOW_DISABLE_TELEMETRY="true")
    env["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path}/mlflow.db"
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "dermalyze", "train", "--data-dir", "data", "--config",
         "config.yaml"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pretrained: gluon_mobilenetv2" in done.stderr
    (run_id,) = re.findall(r"^run id: (\w+)$", done.stdout, re.MULTILINE)
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    run = client.get_run(run_id)
    assert 190 <= int(run.data.params["resolved.num_images"]) <= 200
    assert run.data.params["data.resize_filter"] == "bilinear"  # what the weights were made with
    assert str(client.get_model_version_by_alias("dermalyze", "champion").run_id) == run_id
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    with (artifacts / "test_split.csv").open(newline="") as file:
        image_id = next(csv.DictReader(file))["image_id"]
    data = next(
        archive.read(image_id + ".jpg")
        for part in sorted((tmp_path / "data").glob("*.zip"))
        if image_id + ".jpg" in (archive := zipfile.ZipFile(part)).namelist()
    )
    expected = SkinLesionPredictor(artifacts / "checkpoint_best.pt", plugins=[str(PLUGIN)]).predict(
        data
    )
    port = free_port()
    command = [
        "mlflow", "models", "serve", "-m", "models:/dermalyze@champion", "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "server.log"
    with running(command, health=f"{url}/ping", cwd=tmp_path, env=env, log=log):
        body = json.dumps({"dataframe_records": [{"image": base64.b64encode(data).decode()}]})
        request = urllib.request.Request(
            f"{url}/invocations", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            (answer,) = json.loads(response.read())["predictions"]
    assert answer["predicted_class"] == expected.predicted_class
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)

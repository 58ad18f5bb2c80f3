"""Two, eight and 23 classes, some with odd names: training, MLflow, the service and both pages.

The eight are one run on images in the layout of ISIC 2019; the other networks are trained where
the readers of HAM10000 cannot be imported.
"""

import base64
import csv
import io
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from browsers import Opened, files_of
from isic2019 import draw_isic_2019
from odd_classes import ODD, TWO
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers import mlflow_models_serve
from services import service

from dermalyze.data.readers.isic2019 import TAXONOMY as EIGHT
from dermalyze.export.mlflow_arguments import pyfunc_arguments
from dermalyze.export.web import export_web
from serving import Predictor
from serving.base_predictor import optional_fields
from serving.batch import predict_files
from serving.metadata import Metadata
from serving.output_formats import render

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"

TRAINING = """
import sys
from pathlib import Path
for name in ("ham10000", "isic2018"):
    sys.modules[f"dermalyze.data.readers.{name}"] = None  # as if it were deleted
sys.path.insert(0, sys.argv[1])

import numpy as np, pandas as pd, torch
from odd_classes import ODD, TWO
from dermalyze.config.loading import config_from
from dermalyze.data.patient_metadata import fields_of, metadata_of
from dermalyze.export.onnx import export_onnx
from dermalyze.models.checkpoint import load_member, save_checkpoint
from dermalyze.models.classifier import build_classifier
from dermalyze.models.ensemble import ShippedNetwork
from dermalyze.training.device import choose_device
from dermalyze.training.loop import LearningData, fit
from dermalyze.training.state import new_state
from serving.spec import ModelSpec

class Store:
    def __init__(self, pixels):
        self.pixels = pixels
    def batch(self, rows):
        return self.pixels[rows]

for name, taxonomy in (("two", TWO), ("odd", ODD)):
    number = len(taxonomy)
    rng = np.random.default_rng(0)
    targets = np.arange(3 * max(number, 8)) % number
    pixels = rng.integers(0, 256, (len(targets), 32, 32, 3), dtype=np.uint8)
    rows = np.arange(len(targets))
    facts = pd.DataFrame({"age": 40.0 + rows, "sex": "unknown", "localization": "oral mucosa"})
    fields = fields_of(facts) if name == "odd" else None
    known = {} if fields is None else {
        "metadata": metadata_of(facts, fields), "metadata_parts": fields.parts
    }
    config = config_from({
        "model": {"name": "test_efficientnet", "pretrained": False},
        "training": {"epochs": 1, "batch_size": 8, "device": "cpu"},
        "loss": {"class_weights": "balanced"},
        "data": {"image_size": 32},
    }, ())
    torch.manual_seed(0)
    network, _ = build_classifier(config.model, 32, number, fields)
    device = choose_device(config.training)
    state = new_state(network, config.training, device)
    data = LearningData(
        store=Store(pixels), class_names=taxonomy.names, targets=targets,
        train=rows[number:], val=rows[:number], **known,
    )
    assert len(list(fit(state, data, config, device))) == 1
    spec = ModelSpec(taxonomy=taxonomy, input_size=(32, 32), run_id=name, metadata=fields)
    save_checkpoint(Path(name + ".pt"), state.validated.state_dict(), config.model, spec)
    member, spec = load_member(Path(name + ".pt"))
    report = export_onnx(ShippedNetwork([member]), spec, Path(name + ".onnx"))
    assert report.agrees
"""
TAXONOMIES = {"two": TWO, "eight": EIGHT, "odd": ODD}


@pytest.fixture(scope="module")
def models(store):
    succeed(store, "-c", TRAINING, SUPPORT)
    data = draw_isic_2019(store / "isic2019")
    words = ["--data-dir", data, "--image-size", 32, "--epochs", 2, "--batch-size", 16]
    settings = ["model.name=test_efficientnet", "model.pretrained=false", "training.device=cpu"]
    settings += ["data.val_size=0.25", "evaluation.replicates=100"]
    words += [word for setting in settings for word in ("--set", setting)]
    said = succeed(store, "-m", "dermalyze", "train", *words)
    assert "data: ISIC 2019: 160 images, 8 classes, 80 lesions, no patient ids" in said
    run_id = re.search("run id: (.+)", said)[1]
    words = ["--run-id", run_id, "--output", "eight.onnx"]
    succeed(store, "-m", "dermalyze", "export-onnx", *words)
    return store


def succeed(folder, *words):
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=TAXONOMIES)
def model(request, models):
    return models / f"{request.param}.onnx"


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


@pytest.fixture(scope="module")
def png():
    pixels = np.random.default_rng(7).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def test_the_model_file_knows_its_classes_and_no_others(model, predictor, png):
    assert predictor.spec.taxonomy == TAXONOMIES[model.stem]
    answer = predictor.predict(png)
    assert tuple(answer.probabilities) == predictor.spec.class_names
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    for name in predictor.spec.class_names:
        page = predictor.explain(png, class_name=name).page()
        assert page.width < 2000


def test_each_class_has_its_own_column_and_a_row_is_a_line(tmp_path, model, predictor, png):
    path = tmp_path / "one.png"
    path.write_bytes(png)
    answers = list(predict_files(predictor, [path]))
    names, more = predictor.spec.class_names, optional_fields(predictor.spec)
    text = "\n".join(render(answers, "csv", names, more))
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    for name, prob in answers[0][1].probabilities.items():
        assert float(row[f"prob_{name}"]) == prob
    (line,) = render(answers, "json", names, more)
    assert json.loads(line)["probabilities"] == answers[0][1].probabilities
    table = list(render(answers, "table", names, more))
    assert [len(line.splitlines()) for line in table] == [1, 1, 0, 1]


def test_mlflow_serves_it(tmp_path, model, predictor, png):
    address = "models:/dermalyze@champion"  # as the training has registered it
    if model.stem != "eight":
        with mlflow.start_run():
            address = mlflow.pyfunc.log_model(name="model", **pyfunc_arguments(model)).model_uri
    body = {"dataframe_records": [{"image": base64.b64encode(png).decode()}]}
    with mlflow_models_serve(address, tmp_path) as (address, _):
        request = urllib.request.Request(
            f"{address}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        assert read(request) == {"predictions": [predictor.predict(png).to_dict()]}


def test_the_service_speaks_of_the_classes_at_hand(tmp_path, browser, model, predictor, png):
    names = predictor.spec.class_names
    with service(tmp_path, model=model) as own:
        address = f"http://127.0.0.1:{own.port}/"
        assert own.predict(png) == {"predictions": [predictor.predict(png).to_dict()]}
        version = read(f"{address}version")
        assert version["class_names"] == list(names)
        assert tuple(version.get("malignant", ())) == predictor.spec.taxonomy.malignant
        document = read(f"{address}openapi.json")
        described = document["paths"]["/predict"]["post"]
        content = described["responses"]["200"]["content"]["application/json"]
        assert list(content["example"]["predictions"][0]["probabilities"]) == list(names)
        taken = {parameter["name"] for parameter in described["parameters"]}
        metadata = {"age", "localization"} if model.stem == "odd" else set()
        assert taken == {"level", "sensitivity", "explain", "one_lesion"} | metadata
        assert "akiec" not in json.dumps(document) + json.dumps(version)
        for name in names:
            query = urllib.parse.urlencode({"class_name": name})
            request = urllib.request.Request(
                f"{address}explain?{query}", png, {"Content-Type": "image/png"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                assert response.read(4) == b"\x89PNG"
        with pytest.raises(urllib.error.HTTPError) as caught:
            own.predict(png, "/explain?class_name=akiec")
        message = json.load(caught.value)["message"]
        assert message.startswith("the class must be one of ")
        assert len(message.splitlines()) == 1
        assert list(text_string_to_metric_families(own.metrics()))
        with Opened(browser, address) as page:
            assert_page_shows(page, predictor, png)


def test_the_page_without_a_server_answers_the_same(tmp_path, browser, model, predictor, png):
    export_web(model, tmp_path / "page")
    with (
        files_of(tmp_path / "page") as address,
        Opened(browser, address, viewport={"width": 390, "height": 800}) as page,
    ):
        assert_page_shows(page, predictor, png)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 390  # nothing is cut off
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Save as CSV").click()
        text = waiting.value.path().read_text(encoding="utf-8")
        (row,) = csv.DictReader(io.StringIO(text, newline=""))
        for name, prob in predictor.predict(png).probabilities.items():
            assert float(row[f"prob_{name}"]) == pytest.approx(prob, abs=1e-4)


def test_a_value_that_the_training_images_did_not_record_is_refused(models, png):
    predictor = Predictor(models / "odd.onnx")
    known = predictor.predict(png, metadata=Metadata(age=90, localization="oral mucosa"))
    assert known.probabilities != predictor.predict(png).probabilities
    assert predictor.spec.metadata.columns == ("age", "localization")


def read(address):
    with urllib.request.urlopen(address, timeout=30) as response:
        return json.load(response)


def in_words(taxonomy):
    return zip(taxonomy.names, taxonomy.descriptions, strict=True)


def assert_page_shows(page, predictor, png):
    """All classes, in words or by name, as texts; the most probable first where they are many."""
    taxonomy, answer = predictor.spec.taxonomy, predictor.predict(png)
    page.set_input_files("#files", [{"name": "one.png", "mimeType": "image/png", "buffer": png}])
    page.locator(".card[aria-busy=false]").first.wait_for()
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    words = [description or name for name, description in in_words(taxonomy)]
    assert page.locator(".classes > li > bdi").all_text_contents() == words
    assert f"Distinguishes {len(taxonomy)} classes" in page.locator("header").inner_text()
    rows = page.locator(".probabilities tr")
    assert rows.count() == len(taxonomy)
    assert page.locator("#referral-words").is_visible() == bool(taxonomy.malignant)
    best = taxonomy.description(answer.predicted_class) or answer.predicted_class
    assert best in page.locator("tr.predicted bdi").first.text_content()
    probs = list(answer.probabilities.values())
    if len(probs) > 12:
        probs.sort(reverse=True)
    for row, prob in zip(rows.all(), probs, strict=True):
        assert float(row.locator(".number").text_content()[:-2]) == pytest.approx(
            100 * prob, abs=0.11
        )

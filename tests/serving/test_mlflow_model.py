"""What `mlflow models serve` answers: in process through MLflow's own server, and for real."""

import base64
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from servers import mlflow_models_serve
from strangers import (
    BAD_REQUESTS,
    GOOD_REQUESTS,
    HOW,
    ONE,
    ONE_IMAGE,
    OVER_HTTP_ALONE,
    TWO,
    UNREADABLE,
)
from tiny_model import TINY_ONNX

from dermalyze.export.mlflow_arguments import input_example, pyfunc_arguments
from serving import Predictor
from serving.mlflow_model import DermalyzeModel

BAD_ANYWHERE = {name: BAD_REQUESTS[name] for name in BAD_REQUESTS if name not in OVER_HTTP_ALONE}


@pytest.fixture(scope="module")
def model_uri(store):
    """A LoggedModel in a sqlite store, as a training run logs it."""
    with mlflow.start_run():
        return mlflow.pyfunc.log_model(name="model", **pyfunc_arguments(TINY_ONNX)).model_uri


@pytest.fixture(scope="module")
def model(model_uri):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        return mlflow.pyfunc.load_model(model_uri)


@pytest.fixture(scope="module")
def client(model):
    return TestClient(scoring_server.init(model))


@pytest.fixture(scope="module")
def expected():
    predictor = Predictor(TINY_ONNX)
    return [predictor.predict(base64.b64decode(image)).to_dict() for image in (ONE, TWO)]


@pytest.mark.parametrize("request_body", GOOD_REQUESTS.values(), ids=GOOD_REQUESTS)
def test_two_images_in_every_payload_form_get_the_answers_of_the_predictor(
    client, expected, request_body
):
    answer = client.post("/invocations", json=request_body)
    assert answer.status_code == 200
    assert answer.json() == {"predictions": expected}


@pytest.mark.parametrize("request_body", ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_one_image_in_every_payload_form_gets_one_answer(client, expected, request_body):
    assert client.post("/invocations", json=request_body).json() == {"predictions": expected[:1]}


def test_csv_text_is_a_payload_form_too(client, expected):
    body = f"image\n{ONE}\n{TWO}\n"
    answer = client.post("/invocations", content=body, headers={"content-type": "text/csv"})
    assert answer.json() == {"predictions": expected}


@pytest.mark.parametrize(("request_body", "sentence"), BAD_ANYWHERE.values(), ids=BAD_ANYWHERE)
def test_a_bad_image_or_column_is_400_with_one_sentence(client, request_body, sentence):
    answer = client.post("/invocations", json=request_body)
    assert answer.status_code == 400
    assert answer.json() == {"error_code": "INVALID_PARAMETER_VALUE", "message": sentence}


def test_a_bug_is_500_with_one_sentence(model_uri):
    model = mlflow.pyfunc.load_model(model_uri)
    model.unwrap_python_model()._predictor = None
    answer = TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": [ONE]})
    assert answer.status_code == 500
    assert answer.json() == {
        "error_code": "INTERNAL_ERROR",
        "message": "the model fails; see the server's log",
    }


def test_a_program_may_give_a_mapping_of_lists(model, expected):
    assert model.predict({"image": [ONE, TWO]}) == expected


def test_a_program_may_ask_about_more_images_than_a_request_holds(model, expected):
    table = pd.DataFrame({"image": [ONE, TWO] * 50})
    assert model.predict(table) == expected * 50
    (lesion,) = model.predict(table, params={"one_lesion": True})
    assert lesion["num_images"] == 100


def test_pandas_word_for_what_is_missing_is_one(rich):
    asked = DermalyzeModel()
    asked.load_context(SimpleNamespace(artifacts={"onnx": str(rich)}))
    facts = {"age": pd.array([None], "Int64"), "sex": pd.array([None], "string")}
    with_facts = asked.predict(None, pd.DataFrame({"image": [ONE], **facts}))
    assert with_facts == asked.predict(None, pd.DataFrame({"image": [ONE]}))


def test_all_images_of_a_request_may_show_one_lesion(client):
    body = {"inputs": [ONE, TWO], "params": {"one_lesion": True}}
    (answer,) = client.post("/invocations", json=body).json()["predictions"]
    images = [base64.b64decode(image) for image in (ONE, TWO)]
    assert answer == Predictor(TINY_ONNX).predict_lesion(images).to_dict()
    body["inputs"] = [ONE, "AAAA"]
    assert client.post("/invocations", json=body).json()["message"] == (
        "image 2 of 2: not a JPEG or PNG image (3 bytes)"
    )


def test_the_example_is_synthetic_small_and_answered(model):
    assert len(input_example()["image"][0]) < 2000
    assert list(model.predict(input_example())[0]) == [
        "predicted_class",
        "predicted_class_description",
        "confidence",
        "probabilities",
        "logits",
        "disclaimer",
    ]


def test_the_model_names_what_it_needs_and_nothing_of_the_training_half():
    names = [line.split("==")[0] for line in pyfunc_arguments(TINY_ONNX)["pip_requirements"]]
    assert names == ["mlflow", "numpy", "onnxruntime", "pillow"]


def test_loading_the_model_in_a_program_leaves_mlflow_alone(model):
    assert not hasattr(scoring_server.invocations, "__wrapped__")


WITHOUT_TORCH = """
import sys
BANNED = {"torch", "torchvision", "timm", "onnx", "dermalyze"}
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BANNED:
            raise AssertionError(f"{name} is imported")
sys.meta_path.insert(0, Ban())
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(sys.argv[2])))
print(client.post("/invocations", json={"inputs": [sys.argv[3]]}).text)
"""


@pytest.mark.slow
def test_the_model_answers_where_the_training_half_cannot_be_imported(
    model_uri, expected, tmp_path
):
    """Outside the project, so that `serving` is the copy inside the model."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, mlflow.get_tracking_uri(), model_uri, ONE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"predictions": expected[:1]}


@pytest.fixture(scope="module")
def server(model_uri, tmp_path_factory):
    """The real `mlflow models serve`; yields its address and the id of its process group."""
    with mlflow_models_serve(model_uri, tmp_path_factory.mktemp("server")) as found:
        yield found


def post(address, body, content_type):
    """Return status and text; urllib would add a content type of its own to a plain body."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    headers = {} if content_type is None else {"Content-Type": content_type}
    connection.request("POST", "/invocations", body, headers)
    response = connection.getresponse()
    answer = response.status, response.read().decode("utf-8")
    connection.close()
    return answer


@pytest.mark.slow
def test_the_real_server_answers_every_payload_form(server, expected):
    for name, body in GOOD_REQUESTS.items():
        status, answer = post(server[0], json.dumps(body), "application/json")
        assert (name, status, json.loads(answer)) == (name, 200, {"predictions": expected})


@pytest.mark.slow
def test_the_real_server_refuses_bad_images_with_one_sentence(server):
    for name, (body, sentence) in BAD_REQUESTS.items():
        status, answer = post(server[0], json.dumps(body), "application/json")
        assert (name, status, json.loads(answer)["message"]) == (name, 400, sentence)


@pytest.mark.slow
def test_the_real_server_refuses_what_it_cannot_read_with_one_sentence_and_no_echo(server):
    expected = {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": f"the request cannot be read; {HOW}",
    }
    for name, (body, content_type) in UNREADABLE.items():
        status, answer = post(server[0], body, content_type)
        assert (name, status, json.loads(answer)) == (name, 400, expected)


@pytest.mark.slow
def test_another_content_type_is_415_in_mlflows_own_words(server):
    status, answer = post(server[0], b"SECRET", "image/jpeg")
    assert status == 415
    assert answer == (
        "This predictor only supports the following content types: Types: ['text/csv', "
        "'application/json', 'application/vnd.apache.parquet']. Got 'image/jpeg'."
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look into the server")
def test_the_real_server_never_loads_torch(server):
    mapped = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == server[1]:
                mapped[folder.name] = (folder / "maps").read_text()
        except OSError:
            continue  # it ended while we looked
    assert any("onnxruntime" in text for text in mapped.values())
    assert not any("libtorch" in text for text in mapped.values())

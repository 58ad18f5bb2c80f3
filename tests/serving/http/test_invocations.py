"""`POST /invocations` of our service answers what MLflow's server answers with the same model."""

import json

import pytest
from fastapi.testclient import TestClient
from services import mlflows_own
from strangers import BAD_REQUESTS, GOOD_REQUESTS, ONE, ONE_IMAGE, TWO, UNREADABLE
from tiny_model import TINY_ONNX

from serving.http.app import create_app
from serving.http.settings import ServiceSettings

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def theirs(store):
    with mlflows_own(TINY_ONNX) as client:
        yield client


@pytest.fixture(scope="module")
def ours():
    with TestClient(create_app(ServiceSettings(model=str(TINY_ONNX), max_body_bytes=2**25))) as own:
        yield own


def both(ours, theirs, content, headers):
    found = []
    for client in (ours, theirs):
        response = client.post("/invocations", content=content, headers=headers)
        found.append((response.status_code, response.json()))
    return found


@pytest.mark.parametrize("request_", [*GOOD_REQUESTS.values(), *ONE_IMAGE.values()])
def test_a_request_that_mlflow_answers_is_answered_alike(ours, theirs, request_):
    own, expected = both(ours, theirs, json.dumps(request_), JSON)
    assert own == expected
    assert own[0] == 200


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_request_that_mlflow_refuses_is_refused_with_the_same_sentence(ours, theirs, name):
    content, sentence = BAD_REQUESTS[name]
    own, expected = both(ours, theirs, json.dumps(content), JSON)
    assert own == expected
    assert own == (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": sentence})


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_both(ours, theirs, name):
    content, kind = UNREADABLE[name]
    for client in (ours, theirs):
        headers = {"content-type": kind} if kind else {}
        response = client.post("/invocations", content=content, headers=headers)
        assert response.status_code in (400, 415)
        assert "SECRET" not in response.text


@pytest.mark.parametrize("kind", ["text/csv", "text/csv; charset=utf-8"])
def test_csv_is_answered_alike(ours, theirs, kind):
    content = f"id,image\n1,{ONE}\n2,{TWO}\n"
    own, expected = both(ours, theirs, content, {"content-type": kind})
    assert own == expected
    assert len(own[1]["predictions"]) == 2


@pytest.mark.parametrize("params", [{}, {"level": 0.85}, {"one_lesion": True}, {"explain": False}])
def test_parameters_are_understood_alike(ours, theirs, params):
    content = json.dumps({"inputs": [ONE, TWO], "params": params})
    own, expected = both(ours, theirs, content, JSON)
    assert own == expected
    assert own[0] == 200


@pytest.mark.parametrize("params", [{"level": "high"}, {"explain": 3}, [1], "x", {"leve": 0.9}])
def test_parameters_of_another_kind_are_refused_by_both(ours, theirs, params):
    content = json.dumps({"inputs": [ONE], "params": params})
    for status, body in both(ours, theirs, content, JSON):
        assert status == 400
        assert ONE not in json.dumps(body)

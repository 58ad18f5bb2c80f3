"""Thousands of bodies that mean no good: each is answered or refused, none breaks the service.

The generated ones are 2,000 and more: 1,100 damaged images, 500 odd JSON bodies, and those that
schemathesis makes of the OpenAPI document.
"""

import base64
import http.client
import json
import logging
import threading
import time

import pytest
from crafted import crafted
from fastapi.testclient import TestClient
from hostile import FORM, hostile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import openapi
from schemathesis.checks import CHECKS
from servers import memory_of
from services import mlflows_own, service
from strangers import png, text
from tiny_model import TINY_ONNX

from serving.http.app import create_app
from serving.http.settings import ServiceSettings

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/json"}
CRAFTED = crafted()
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
MANY = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def app(rich):
    return create_app(ServiceSettings(model=str(rich), max_body_bytes=2**20))


@pytest.fixture(scope="module")
def client(app):
    logging.getLogger("serving").setLevel(logging.ERROR)  # ten thousand lines help nobody
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ways(data):
    """Yield every way to send an image: path, keywords of `post`."""
    kind = {"content-type": "image/jpeg"}
    yield "/predict", {"content": data, "headers": kind}
    yield "/predict?explain=true&one_lesion=true", {"content": data, "headers": kind}
    yield "/predict", {"files": [("p", ("p.jpg", data)), ("p", ("p.jpg", png()))]}
    yield "/explain", {"content": data, "headers": kind}
    yield "/invocations", {"content": json.dumps({"inputs": [text(data)]}), "headers": JSON}
    yield (
        "/invocations",
        {"content": f"image\n{text(data)}\n", "headers": {"content-type": "text/csv"}},
    )


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_image_is_answered_or_refused_whichever_way_it_comes(client, name):
    data, answered = CRAFTED[name]
    for path, sent in ways(data):
        response = client.post(path, **sent)
        assert response.status_code == (200 if answered else 400), (path, response.text)
        if not answered:
            message = response.json()["message"]
            assert "image" in message
            assert len(message) < 200
            assert "\n" not in message


@st.composite
def damaged(draw):
    """An image with bytes changed, cut out, doubled or put in."""
    data = bytearray(
        draw(st.sampled_from([data for data, _ in CRAFTED.values() if len(data) < 9000]))
    )
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "double"]))
        if kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 50))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=50))
        elif kind == "double":
            data[at:at] = data[at : at + 200]
    return bytes(data)


@given(data=damaged(), way=st.integers(0, 5))
@settings(MANY, max_examples=1000)
def test_a_damaged_image_is_answered_or_refused(client, data, way):
    path, sent = list(ways(data))[way]
    response = client.post(path, **sent)
    assert response.status_code in (200, 400), response.text


@given(data=st.binary(max_size=500), kind=st.sampled_from(["image/png", "multipart/form-data"]))
@settings(MANY, max_examples=100)
def test_bytes_are_refused(client, data, kind):
    kind += "; boundary=b" if kind.startswith("m") else ""
    response = client.post("/predict", content=data, headers={"content-type": kind})
    assert response.status_code == 400


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just(text(png())),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["image", "columns", "data", "age", "sex", "level", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FORMS = ["inputs", "instances", "dataframe_records", "dataframe_split", "params", "x"]


@given(body=st.dictionaries(st.sampled_from(FORMS), ODD, max_size=3) | ODD)
@settings(MANY, max_examples=500)
def test_odd_json_is_answered_or_refused(client, body):
    response = client.post("/invocations", content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 400), response.text


def test_every_operation_keeps_to_its_own_document(app, client):
    """What schemathesis makes of the document, fitting and not, gets an answer that is in it."""
    schema = openapi.from_asgi("/openapi.json", app)
    checks = [check for check in CHECKS.get_all() if check.__name__ in CHECKED]
    assert len(checks) == len(CHECKED)
    seen = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(MANY, max_examples=150)
        def call(case):
            response = case.call()
            case.validate_response(response, checks=checks)
            seen.setdefault(case.operation.path, set()).add(response.status_code)

        call()
    assert set(seen) == set(schema.raw_schema["paths"])
    assert not any(status >= 500 for statuses in seen.values() for status in statuses)
    assert 200 in seen["/health"]


def test_after_all_of_it_the_process_lives_and_its_memory_returns(tmp_path):
    with service(tmp_path) as own:

        def send():
            for data, _ in CRAFTED.values():
                own.status("/predict", data)

        send()
        before = memory_of(own.pid)
        for _ in range(3):
            send()
        assert own.predict()
        assert memory_of(own.pid) < before + 40  # MB; one image of them alone takes 120
    assert "Traceback" not in own.log.read_text()


def asked(port, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def test_while_a_hostile_body_is_read_health_answers_within_a_second(tmp_path):
    """With the default bounds; a parser in the loop, or for long in C, would keep it silent."""
    slowest, done = {}, threading.Event()
    with service(tmp_path) as own:
        current = ["the start"]

        def ask_for_health():
            while not done.is_set():
                start, name = time.monotonic(), current[0]
                assert asked(own.port, "GET", "/health") == (200, '{"status": "ok"}')
                slowest[name] = max(slowest.get(name, 0), time.monotonic() - start)
                done.wait(0.005)

        thread = threading.Thread(target=ask_for_health)
        thread.start()
        try:
            for name, (kind, body) in hostile().items():
                current[0] = name
                path = "/predict" if kind == FORM else "/invocations"
                status, answer = asked(own.port, "POST", path, body, {"content-type": kind})
                assert (name, status) == (name, 400), answer
                assert len(json.loads(answer)["message"]) < 200
        finally:
            done.set()
            thread.join()
        assert own.predict()
        assert memory_of(own.pid) < 600  # MB; 3,300 before
    assert len(slowest) > len(hostile()) / 2
    assert {name: seconds for name, seconds in slowest.items() if seconds > 1} == {}
    assert "Traceback" not in own.log.read_text()


def test_mlflow_serves_our_model_as_cleanly_as_it_can(store):
    """The same images and bodies for MLflow's server: 200 or 400, one sentence, no echo."""
    with mlflows_own(TINY_ONNX) as client:
        for name, (data, answered) in CRAFTED.items():
            body = {"inputs": [base64.b64encode(data).decode()]}
            response = client.post("/invocations", json=body)
            assert response.status_code == (200 if answered else 400), name
            if not answered:
                assert set(response.json()) == {"error_code", "message"}
                assert len(response.json()["message"]) < 200
        for name, (kind, body) in hostile().items():
            if kind != FORM:
                response = client.post("/invocations", content=body, headers={"content-type": kind})
                assert (name, response.status_code) == (name, 400)
                assert len(response.json()["message"]) < 200

"""The service in process: what it answers, what it refuses and with which words."""

import dataclasses
import gzip
import logging
import re
import shutil
import threading
import zlib

import pytest
from fastapi.testclient import TestClient
from odd_classes import TWO
from rich_model import RICH, rich_bytes, rich_of
from servers import wait_for
from strangers import header_of_a_large_png, png
from tiny_model import SPEC, TINY_ONNX

from serving import Predictor
from serving.errors import ArtifactError
from serving.http.app import create_app
from serving.http.settings import ServiceSettings
from serving.monitoring import Monitoring
from serving.taxonomy import DISCLAIMER

PNG = {"content-type": "image/png"}
# One thread: nothing is timed when the model is loaded, so that tests may slow the network down.
SETTINGS = ServiceSettings(
    model=str(TINY_ONNX), max_body_bytes=20_000, max_pixels=1_000_000, threads=1
)


def client_of(**changes):
    values = {**vars(SETTINGS), **changes}
    return TestClient(create_app(ServiceSettings(**values)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client():
    with client_of() as client:
        yield client


@pytest.fixture(scope="module")
def predictor():
    return Predictor(TINY_ONNX)


def refused(response, status, sentence):
    assert (response.status_code, response.json()["message"]) == (status, sentence)
    assert set(response.json()) == {"error_code", "message"}
    assert response.headers["content-type"] == "application/json"
    return True


def test_a_photograph_gets_the_answer_of_the_predictor(client, predictor):
    data = png(1)
    response = client.post("/predict", content=data, headers=PNG)
    assert response.status_code == 200
    assert response.json() == {"predictions": [predictor.predict(data).to_dict()]}
    assert response.json()["predictions"][0]["disclaimer"] == DISCLAIMER


def test_several_photographs_come_as_a_form_and_are_answered_in_order(client, predictor):
    parts = [("a", ("1.png", png(1))), ("level", "0.95"), ("b", ("2.png", png(2)))]
    files = [(name, value if isinstance(value, tuple) else (None, value)) for name, value in parts]
    response = client.post("/predict", files=files)
    expected = [predictor.predict(png(seed)).to_dict() for seed in (1, 2)]
    assert response.json() == {"predictions": expected}


def test_photographs_of_one_lesion_are_answered_once(client, predictor):
    files = [("photographs", ("x.png", png(seed))) for seed in (1, 2)]
    response = client.post("/predict?one_lesion=true", files=files)
    expected = predictor.predict_lesion([png(1), png(2)]).to_dict()
    assert response.json() == {"predictions": [expected]}


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("level=high", 422, "level must be a number, such as 0.95"),
        ("explain=maybe", 422, "explain must be true or false"),
        (
            "explain=true",
            422,
            "image 1 of 1: this model has no map; export the run again with this version of "
            "dermalyze",
        ),
        (
            "age=50",
            422,
            "image 1 of 1: this model takes no metadata, only images; leave age, sex and "
            "localization out",
        ),
        ("age=130", 422, "image 1 of 1: an age must be a number of years from 0 to 120"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused_without_an_echo(
    client, query, status, sentence
):
    assert refused(client.post(f"/predict?{query}", content=png(), headers=PNG), status, sentence)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (b"SECRET", "image/png", 400, "image 1 of 1: not a JPEG or PNG image (6 bytes)"),
        (b"", "image/jpeg", 400, "image 1 of 1: not a JPEG or PNG image (0 bytes)"),
        (
            png()[:200],
            "image/png",
            400,
            "image 1 of 1: cannot decode the image (200 bytes): it is damaged or cut short",
        ),
        (
            header_of_a_large_png(1001, 1000),
            "image/png",
            400,
            "image 1 of 1: the image is 1001 x 1000; the limit is 1,000,000 pixels",
        ),
        (
            b"SECRET",
            "image/gif",
            415,
            "the content type must be image/jpeg, image/png or multipart/form-data",
        ),
        (
            png(),
            "application/octet-stream",  # as `curl --data-binary` would say, or a proxy
            415,
            "the content type must be image/jpeg, image/png or multipart/form-data",
        ),
        (b"x", "multipart/form-data", 400, "the content type multipart/form-data needs a boundary"),
        (
            b"--b\r\nSECRET",
            "multipart/form-data; boundary=b",
            400,
            "the multipart body cannot be read; send it as a form does",
        ),
        (
            b"--b--\r\n",
            "multipart/form-data; boundary=b",
            400,
            "a request holds from 1 to 32 images, got 0",
        ),
    ],
)
def test_a_body_that_is_no_photograph_is_refused(client, body, content_type, status, sentence):
    response = client.post("/predict", content=body, headers={"content-type": content_type})
    assert refused(response, status, sentence)


def test_more_images_than_the_bound_are_refused_before_one_is_decoded():
    with client_of(max_images=2) as client:
        files = [("photographs", ("x.png", b"no image"))] * 3
        response = client.post("/predict", files=files)
        assert refused(response, 400, "a request holds from 1 to 2 images, got 3")


NOT_WHOLE = "the compressed body is cut short, or more follows it"
TOO_LARGE = "the body is larger than 20,000 bytes; send a smaller photograph, or fewer"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(20_000, 400), (20_001, 413)])
def test_the_bound_of_a_body_holds_to_the_byte(client, size, status, chunked):
    body = bytes(size)
    content = (body[i : i + 999] for i in range(0, size, 999)) if chunked else body
    response = client.post("/predict", content=content, headers=PNG)
    assert response.status_code == status
    if status == 413:
        assert refused(response, 413, TOO_LARGE)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(("size", "status"), [(20_000, 400), (20_001, 413), (10_000_000, 413)])
def test_the_bound_of_a_body_holds_after_decompression(client, size, status, encoding):
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    headers = {**PNG, "content-encoding": encoding}
    response = client.post("/predict", content=pack(bytes(size)), headers=headers)
    assert response.status_code == status


def test_a_compressed_photograph_is_answered(client, predictor):
    headers = {**PNG, "content-encoding": "gzip"}
    response = client.post("/predict", content=gzip.compress(png(1)), headers=headers)
    assert response.json()["predictions"] == [predictor.predict(png(1)).to_dict()]


@pytest.mark.parametrize(
    ("body", "encoding", "status", "sentence"),
    [
        (b"SECRET", "gzip", 400, "the body is not compressed as its header says"),
        (
            gzip.compress(png())[:-9],
            "gzip",
            400,
            "the compressed body is cut short, or more follows it",
        ),
        (
            gzip.compress(png()) * 2,
            "gzip",
            400,
            "the compressed body is cut short, or more follows it",
        ),
        (png(), "br", 415, "the content encoding must be gzip, deflate or none"),
    ],
)
def test_a_compression_that_is_none_is_refused(client, body, encoding, status, sentence):
    response = client.post("/predict", content=body, headers={**PNG, "content-encoding": encoding})
    assert refused(response, status, sentence)


def test_every_answer_has_a_request_id_and_the_security_headers(client):
    for response in (
        client.get("/"),
        client.get("/nowhere"),
        client.post("/predict", content=b"", headers=PNG),
        client.post("/predict", content=bytes(30_000), headers=PNG),
    ):
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in response.headers
        assert "server" not in response.headers


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("a b", False), ("a" * 65, False)])
def test_a_request_id_of_plain_letters_is_kept(client, given, kept):
    answered = client.get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert (answered == given) == kept


def test_the_log_has_the_request_id_and_nothing_that_was_sent(client, caplog):
    caplog.set_level(logging.INFO, "serving")
    response = client.post(
        "/predict?SECRET=1", files=[("SECRET", ("SECRET.png", b"SECRET"))], headers={"x": "SECRET"}
    )
    client.get("/SECRET")
    assert response.status_code == 400
    assert response.headers["x-request-id"] in caplog.text
    assert "path=/predict status=400" in caplog.text
    assert "SECRET" not in caplog.text
    assert "SECRET" not in response.text


def test_a_bug_is_one_sentence_for_the_client_and_a_traceback_in_the_log(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("SECRET")

    monkeypatch.setattr(Predictor, "run", broken)
    with client_of() as client:
        response = client.post("/predict", content=png(), headers=PNG)
    assert refused(response, 500, "the service failed; see the server's log")
    assert "RuntimeError: SECRET" in caplog.text


def test_unknown_paths_and_methods_are_one_sentence(client):
    assert refused(client.get("/x"), 404, "there is nothing at this path; see /openapi.json")
    for method in ("GET", "PUT", "DELETE"):
        response = client.request(method, "/predict")
        assert refused(response, 405, "this path takes another method; see /openapi.json")
        assert response.headers["allow"] == "POST"


def test_without_the_key_nothing_is_answered_but_health_and_the_page():
    with client_of(api_key="right") as client:
        for path in ("/predict", "/explain", "/invocations"):
            assert client.post(path, content=png(), headers=PNG).status_code == 401
        for path in ("/metrics", "/version"):
            assert client.get(path).status_code == 401
        for path in ("/health", "/ready", "/", "/page.js"):
            assert client.get(path).status_code == 200
        wrong = client.get("/version", headers={"authorization": "Bearer wrong"})
        assert refused(
            wrong, 401, "an API key is needed; send the header Authorization: Bearer KEY"
        )
        for headers in ({"authorization": "bearer right"}, {"x-api-key": "right"}):
            assert client.get("/version", headers=headers).status_code == 200
            answered = client.post("/predict", content=png(), headers={**PNG, **headers})
            assert answered.status_code == 200


def test_another_host_name_is_refused_where_names_are_listed():
    with client_of(allowed_hosts=("good.example", "[::1]")) as client:
        for host, status in (
            ("good.example", 200),
            ("GOOD.example:8000", 200),
            ("good.example.", 200),  # the same name, as DNS writes it
            ("good.example.:8000", 200),
            ("good.example..", 400),
            ("[::1]:8000", 200),
            ("::1", 400),
            ("bad.example", 400),
            ("good.example.bad", 400),
            ("", 400),
        ):
            assert client.get("/version", headers={"host": host}).status_code == status, host
            assert client.get("/health", headers={"host": host}).status_code == 200


def test_only_listed_pages_of_other_hosts_may_ask():
    with client_of(cors_origins=("https://good.example",)) as client:
        for origin, allowed in (("https://good.example", True), ("https://bad.example", False)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            asked = client.options("/predict", headers=headers)
            assert (asked.headers.get("access-control-allow-origin") == origin) == allowed


def test_where_every_page_may_ask_none_may_send_what_a_browser_has_stored():
    """So that a page without the key cannot use that of its visitor."""
    with client_of(cors_origins=("*",), api_key="right") as client:
        origin = {"origin": "https://any.example"}
        for key, status in (("", 401), ("right", 200)):
            answer = client.get("/version", headers={**origin, "x-api-key": key})
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


def test_a_request_beyond_those_in_flight_is_told_to_come_again(monkeypatch):
    running, go = threading.Event(), threading.Event()
    run = Predictor.run

    def slow(*args, **kwargs):
        running.set()
        assert go.wait(20)
        return run(*args, **kwargs)

    monkeypatch.setattr(Predictor, "run", slow)
    with client_of(max_in_flight=1) as client:
        first = []
        thread = threading.Thread(
            target=lambda: first.append(client.post("/predict", content=png(), headers=PNG))
        )
        thread.start()
        assert running.wait(20)
        second = client.post("/predict", content=png(), headers=PNG)
        ready = client.get("/ready")
        health = client.get("/health")
        go.set()
        thread.join(20)
        after = client.get("/ready")
    assert refused(second, 503, "the service is busy; try again in a second")
    assert second.headers["retry-after"] == "1"
    assert (ready.status_code, health.status_code, after.status_code) == (503, 200, 200)
    assert first[0].status_code == 200


def test_an_answer_that_takes_too_long_is_given_up_and_its_work_stops(monkeypatch):
    seen = []
    run = Predictor.run

    def slow(self, *args, **kwargs):
        seen.append("begun")
        while not self._options.terminate and len(seen) < 2:
            if stopping.wait(0.01):
                break
        try:
            return run(self, *args, **kwargs)
        except Exception:
            seen.append("stopped")
            raise

    stopping = threading.Event()
    monkeypatch.setattr(Predictor, "run", slow)
    with client_of(request_seconds=0.2) as client:
        files = [("photographs", ("x.png", png(seed))) for seed in range(3)]
        response = client.post("/predict", files=files)
        assert refused(
            response, 504, "there was no answer within 0.2 seconds; send fewer or smaller images"
        )
        for _ in range(200):
            if "stopped" in seen:
                break
            threading.Event().wait(0.01)
    assert seen == ["begun", "stopped"]  # the second image was never looked at


def test_a_new_model_file_is_loaded_and_a_broken_one_is_not(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    shutil.copy(TINY_ONNX, path)

    def put(content):
        (tmp_path / "next").write_bytes(content)
        (tmp_path / "next").replace(path)

    with client_of(model=str(path), watch_seconds=0.02) as client:
        counted = 'dermalyze_model_reloads_total{outcome="%s"} 1.0'
        put(b"no model")
        wait_for(lambda: counted % "refused" in client.get("/metrics").text)
        assert client.post("/predict", content=png(), headers=PNG).status_code == 200
        assert example_of(client)["probabilities"].keys() == set(SPEC.class_names)
        put(rich_bytes(rich_of(TWO)))
        wait_for(lambda: counted % "ok" in client.get("/metrics").text)
        assert client.post("/predict", content=png(), headers=PNG).status_code == 200
        assert list(example_of(client)["probabilities"]) == ["mel", "nv"]  # of the model at hand


def test_the_counts_are_those_of_the_requests(predictor):
    with client_of() as client:
        for _ in range(3):
            client.post("/predict", content=png(), headers=PNG)
        client.post("/predict", content=b"", headers=PNG)
        client.get("/SECRET")
        text = client.get("/metrics").text
    assert 'dermalyze_requests_total{path="/predict",status="200"} 3.0' in text
    assert 'dermalyze_requests_total{path="/predict",status="400"} 1.0' in text
    assert 'dermalyze_requests_total{path="other",status="404"} 1.0' in text
    assert 'dermalyze_answers_total{decision="none"} 3.0' in text
    assert 'dermalyze_request_seconds_count{path="/predict"} 4.0' in text
    assert "dermalyze_requests_in_flight 0.0" in text
    assert "SECRET" not in text


def test_the_counts_of_answers_can_be_compared_with_validation_images(tmp_path):
    cuts = ((0.4, 0.25), (0.9, 0.75))
    known = Monitoring(
        num_independent=90,
        class_shares=(0.25, 0.1, 0.1, 0.05, 0.2, 0.2, 0.1),
        mean_confidence=0.625,
        confidence=cuts,
        embedding=(cuts,) * 7,
        scope_score=(),
        photo_problems=None,
        accuracy=0.75,
    )
    model = tmp_path / "model.onnx"
    model.write_bytes(rich_bytes(dataclasses.replace(RICH, monitoring=known)))
    with client_of(model=str(model)) as client:
        before = client.get("/metrics").text
        answer = client.post("/predict", content=png(), headers=PNG).json()["predictions"][0]
        text = client.get("/metrics").text
    name, confidence = answer["predicted_class"], answer["confidence"]
    assert f'dermalyze_predicted_class_total{{class="{name}"}} 0.0' in before
    assert f'dermalyze_predicted_class_total{{class="{name}"}} 1.0' in text
    assert "dermalyze_confidence_count 1.0" in text
    assert f"dermalyze_confidence_sum {confidence}" in text
    assert f"dermalyze_scope_score_sum {answer['scope_score']}" in text
    assert 'dermalyze_validation_class_share{class="akiec"} 0.25' in text
    assert "dermalyze_validation_confidence 0.625" in text
    assert "dermalyze_validation_images 90.0" in text
    assert "dermalyze_validation_out_of_scope 0.05" in text
    assert "dermalyze_prediction_log_lost_total 0.0" in text


def example_of(client):
    """Return the answer that the OpenAPI document shows."""
    described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    content = described["responses"]["200"]["content"]
    return content["application/json"]["example"]["predictions"][0]


def test_the_openapi_document_names_every_path_with_an_example(client):
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/predict", "/explain", "/invocations", "/health", "/ready", "/version", "/metrics"
    }  # fmt: skip
    body = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert "example" in body["application/json"]
    given = example_of(client)
    assert sum(given["probabilities"].values()) == pytest.approx(1)
    assert DISCLAIMER in document["info"]["description"]
    assert client.get("/docs").status_code == 404  # it would load scripts from another host


def test_a_model_that_is_not_there_is_told_before_anything_listens(tmp_path):
    with pytest.raises(ArtifactError):
        create_app(ServiceSettings(model=str(tmp_path / "none.onnx")))


def test_each_path_that_answers_get_answers_head_alike_and_without_a_body():
    with client_of(api_key="s3cret") as client:
        key = {"x-api-key": "s3cret"}
        paths = [
            path
            for path, operations in client.get("/openapi.json", headers=key).json()["paths"].items()
            if "get" in operations
        ]
        assert "/ready" in paths
        for path in (*paths, "/openapi.json", "/", "/page.js"):
            got, head = client.get(path, headers=key), client.head(path, headers=key)
            assert (head.status_code, head.content) == (200, b"")
            if path != "/metrics":  # which counts the first one
                assert head.headers["content-length"] == str(len(got.content))
        assert client.head("/metrics").status_code == 401
        assert client.head("/health").status_code == 200
        assert client.head("/predict", headers=key).status_code == 405

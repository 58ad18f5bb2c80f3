"""Who may ask what, whatever server and path prefix the service is behind."""

import asyncio
import logging
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from servers import free_port, running
from starlette.applications import Starlette
from starlette.routing import Mount
from strangers import png
from tiny_model import TINY_ONNX

from serving.http.app import create_app
from serving.http.settings import ServiceSettings

KEY = {"x-api-key": "right"}
PNG = {"content-type": "image/png"}
SETTINGS = ServiceSettings(
    model=str(TINY_ONNX), threads=1, api_key="right", allowed_hosts=("good.example",)
)
CLOSED = {  # path -> method
    "/predict": "POST",
    "/explain": "POST",
    "/invocations": "POST",
    "/metrics": "GET",
    "/version": "GET",
}
OPEN = ("/", "/index.html", "/page.js", "/page.css", "/icon.svg", "/openapi.json")
PROBES = ("/health", "/ready")


@pytest.fixture(scope="module")
def service():
    return create_app(SETTINGS)


def under_a_server_with_root_path(service):
    """As uvicorn's --root-path gives it: the path has the prefix."""
    return TestClient(service, base_url="http://good.example", root_path="/derm"), "/derm"


def mounted(service):
    outer = FastAPI()
    outer.mount("/derm", service)
    return TestClient(outer, base_url="http://good.example"), "/derm"


def mounted_twice(service):
    outer = Starlette(routes=[Mount("/a", routes=[Mount("/derm", service)]), Mount("/b", service)])
    return TestClient(outer, base_url="http://good.example"), "/a/derm"


def mounted_under_the_name_of_a_route(service):
    outer = FastAPI()
    outer.mount("/predict", service)
    client = TestClient(outer, base_url="http://good.example", root_path="/health")
    return client, "/health/predict"


def without_prefix(service):
    return TestClient(service, base_url="http://good.example"), ""


PLACES = [
    without_prefix,
    under_a_server_with_root_path,
    mounted,
    mounted_twice,
    mounted_under_the_name_of_a_route,
]


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: place.__name__)
def place(request):
    client, prefix = request.param(create_app(SETTINGS))
    with client:  # one event loop for all
        yield client, prefix


def test_without_the_key_nothing_but_probes_and_page_is_answered(place):
    client, prefix = place
    for path, method in CLOSED.items():
        for headers in (PNG, PNG | {"x-api-key": "wrong"}):
            response = client.request(method, prefix + path, content=png(), headers=headers)
            assert (path, response.status_code) == (path, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            assert client.head(prefix + path, headers=headers).status_code == 401
    for path in (*OPEN, *PROBES):
        assert (path, client.get(prefix + path).status_code) == (path, 200)


def test_with_the_key_every_path_is_answered_and_kept_out_of_caches(place):
    client, prefix = place
    for path, method in CLOSED.items():
        headers = KEY | ({"content-type": "text/csv"} if path == "/invocations" else PNG)
        response = client.request(method, prefix + path, content=png(), headers=headers)
        expected = {"/explain": 422, "/invocations": 400}.get(path, 200)  # no map; no CSV
        assert (path, response.status_code) == (path, expected)
        assert response.headers["cache-control"] == "no-store"


def test_probes_answer_under_any_host_name_and_nothing_else_does(place):
    client, prefix = place
    other = {"host": "10.0.0.7:8000"}
    for path in PROBES:
        assert (path, client.get(prefix + path, headers=other).status_code) == (path, 200)
    for path in (*OPEN, "/version"):
        response = client.get(prefix + path, headers=other | KEY)
        assert (path, response.status_code) == (path, 400)


ODD = (
    "/predict/",
    "//predict",
    "/predict//",
    "/derm/derm/predict",
    "/health/../predict",
    "/%2e/predict",
    "/predict%2f",
    "/health%2fpredict",
    "/PREDICT",
    "/nowhere",
)


def test_an_odd_path_is_closed(place):
    """No 200, no redirect, and no word on whether there is something at it."""
    client, prefix = place
    for path in ODD:
        url = f"http://good.example{prefix}{path}"
        for method in ("GET", "POST"):
            response = client.request(
                method, url, content=png(), headers=PNG, follow_redirects=False
            )
            assert (path, method, response.status_code) == (path, method, 401)


def test_a_path_in_percent_encoding_is_the_path_that_it_encodes(place):
    client, prefix = place
    assert client.post(f"{prefix}/%70redict", content=png(), headers=PNG).status_code == 401
    response = client.post(f"{prefix}/%70redict", content=png(), headers=PNG | KEY)
    assert response.status_code == 200
    assert client.get(f"{prefix}/%68ealth").status_code == 200


def test_another_method_needs_the_key_as_well(place):
    client, prefix = place
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE", "ODD"):
        url = f"{prefix}/predict"
        found = [client.request(method, url, headers=given).status_code for given in ({}, KEY)]
        assert (method, found) == (method, [401, 405])


def test_the_log_and_the_counts_have_the_path_without_its_prefix(place, caplog):
    client, prefix = place
    name = 'dermalyze_requests_total{path="/version",status="200"}'

    def counted():
        lines = client.get(f"{prefix}/metrics", headers=KEY).text.splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(name)), 0.0)

    before = counted()
    caplog.set_level(logging.INFO, "serving")
    client.get(f"{prefix}/version", headers=KEY)
    assert "path=/version status=200" in caplog.text
    assert counted() == before + 1


def test_a_path_that_is_added_later_needs_the_key():
    service = create_app(SETTINGS)
    client = TestClient(service, base_url="http://good.example")
    service.add_api_route("/new", lambda: "new", methods=["GET"])
    service.mount("/health/more", Starlette(routes=[Mount("/", create_app(SETTINGS))]))
    for path in ("/new", "/health/more/version", "/health/more/health"):
        assert (path, client.get(path).status_code) == (path, 401)
        assert (path, client.get(path, headers=KEY).status_code) == (path, 200)


def test_a_preflight_needs_no_key_and_a_refusal_can_be_read_by_the_page():
    origin = "https://page.example"
    service = create_app(
        ServiceSettings(model=str(TINY_ONNX), threads=1, api_key="right", cors_origins=(origin,))
    )
    outer = FastAPI()
    outer.mount("/derm", service)
    client = TestClient(outer)
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "x-api-key",
    }
    preflight = client.options("/derm/predict", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (
        200,
        origin,
    )
    refused = client.post("/derm/predict", content=png(), headers=PNG | {"origin": origin})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)


def sent(service, scope):
    """Give a scope to the application itself; return what it sends."""
    messages = []

    async def receive():
        return {"type": "http.disconnect" if scope["type"] == "http" else "websocket.connect"}

    async def send(message):
        messages.append(message)

    asyncio.run(service(scope, receive, send))
    return messages


@pytest.mark.parametrize("path", ["/predict", "/derm/predict"])
def test_a_server_may_leave_the_prefix_in_the_path_or_not(service, path):
    """Servers disagree (uvicorn changed it in 0.26); Starlette routes both."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "/derm",
        "query_string": b"",
        "headers": [(b"host", b"good.example"), (b"content-type", b"image/png")],
        "client": None,
        "server": None,
        "scheme": "http",
    }
    assert sent(service, scope)[0]["status"] == 401


def test_a_websocket_is_refused_even_with_the_key(service):
    scope = {
        "type": "websocket",
        "path": "/predict",
        "raw_path": b"/predict",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"good.example"), (b"x-api-key", b"right")],
        "subprotocols": [],
        "client": None,
        "server": None,
        "scheme": "ws",
    }
    assert sent(service, scope) == [{"type": "websocket.close", "code": 1008}]


def test_a_body_that_nobody_may_send_takes_no_place(service):
    """A path that takes no POST answers before the body, so that it holds nobody up."""

    async def ask():
        waiting = asyncio.Event()
        answered = asyncio.Event()
        messages = []

        async def receive():
            waiting.set()
            await asyncio.Event().wait()

        async def send(message):
            messages.append(message)
            answered.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/health",
            "raw_path": b"/health",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"good.example"), (b"content-length", b"5000")],
            "client": None,
            "server": None,
            "scheme": "http",
        }
        await asyncio.wait_for(service(scope, receive, send), 20)
        return messages[0]["status"]

    assert asyncio.run(ask()) == 405


OUTER = """
from fastapi import FastAPI
from serving.http.app import create_app

app = FastAPI()
app.mount("/derm", create_app())
app.mount("/predict/predict", create_app())
"""


def status(url, method="GET", **headers):
    body = png() if method == "POST" else None
    request = urllib.request.Request(url, body, PNG | headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.slow
@pytest.mark.parametrize("way", ["--root-path", "mounted"])
def test_a_real_server_asks_for_the_key_under_a_prefix(tmp_path, way):
    (tmp_path / "outer.py").write_text(OUTER)
    app = (
        ["serving.app:create_app", "--factory", "--root-path", "/derm"]
        if way == "--root-path"
        else ["outer:app"]
    )
    port = free_port()
    # With --root-path the proxy in front takes the prefix off, and uvicorn puts it into the scope.
    urls = (
        [f"http://127.0.0.1:{port}"]
        if way == "--root-path"
        else [f"http://127.0.0.1:{port}/derm", f"http://127.0.0.1:{port}/predict/predict"]
    )
    environment = {
        "PYTHONPATH": str(Path.cwd()),
        "DERMALYZE_MODEL": str(TINY_ONNX),
        "DERMALYZE_API_KEY": "right",
        "DERMALYZE_ALLOWED_HOSTS": "localhost",
        "DERMALYZE_THREADS": "1",
    }
    command = [sys.executable, "-m", "uvicorn", *app, "--port", str(port)]
    with running(
        command,
        health=f"{urls[0]}/health",  # by address, which is in no list
        cwd=tmp_path,
        env=os.environ | environment,
        log=tmp_path / "log",
    ):
        for url in urls:
            assert status(f"{url}/version", host="127.0.0.1", **KEY) == 400
            for path, method in CLOSED.items():
                assert (path, status(url + path, method, host="localhost")) == (path, 401)
            assert status(f"{url}/predict", "POST", host="localhost", **KEY) == 200
            assert status(f"{url}/predict/", "POST", host="localhost") == 401

"""The service behind nginx, which is configured by the text of docs/deploying.md: HTTPS, a path."""

import http.client
import json
import re
import ssl
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from browsers import Opened
from proxies import examples, nginx, replaced
from services import service
from strangers import png

from serving.http.settings import ServiceSettings

pytestmark = pytest.mark.slow
_IDLE_SECONDS = 1  # of the service; its default, and nginx's time beside it, are too long to wait
_NUM_CLIENTS = 32
_PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    options = ["--root-path", "/lesions", "--idle-seconds", _IDLE_SECONDS]
    with service(tmp_path_factory.mktemp("service"), *options) as own:
        yield own


@pytest.fixture(scope="module")
def example():
    whole, under_a_path = examples()
    return replaced(whole, "    location / {", f"{under_a_path}    location / {{")


@pytest.fixture(scope="module")
def port(own, example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    with nginx(folder, example, own.port) as port:
        yield port


def https(port):
    context = ssl._create_unverified_context()  # its certificate is its own
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)


def asked(client, method, path, body=None, **headers):
    client.request(method, path, body, headers)
    response = client.getresponse()
    return response, response.read()


def statuses(port, idle_seconds):
    """Ask, with pauses that end a few milliseconds before and after a time, on many connections."""

    def ask(i):
        client, found = https(port), []
        for j in range(5):
            found.append(asked(client, "POST", "/predict", png(), **_PNG)[0].status)
            time.sleep(idle_seconds + 0.012 * (i / _NUM_CLIENTS - 0.5) + 0.0001 * j)
        return found

    with ThreadPoolExecutor(_NUM_CLIENTS) as pool:
        return Counter(status for found in pool.map(ask, range(_NUM_CLIENTS)) for status in found)


def test_a_post_at_the_end_of_an_idle_time_is_answered(own, example, port, tmp_path):
    """Of nginx, whose time is below the service's, and of the service, where it is not."""
    (seconds,) = re.findall(r"keepalive_timeout (\d+)s;", example)
    assert int(seconds) <= ServiceSettings().idle_seconds / 2
    scale = _IDLE_SECONDS / ServiceSettings().idle_seconds
    scaled = replaced(
        example,
        f"{seconds}s;",
        f"{1000 * int(seconds) * scale:.0f}ms;",
    )
    tmp_path.chmod(0o755)
    all_well = Counter({200: 5 * _NUM_CLIENTS})
    with nginx(tmp_path, scaled, own.port) as shorter:
        assert statuses(shorter, int(seconds) * scale) == all_well
        assert statuses(shorter, _IDLE_SECONDS) == all_well
    assert statuses(port, _IDLE_SECONDS) == all_well


def test_the_page_works_under_a_path(browser, port):
    address = f"https://localhost:{port}/lesions/"
    with Opened(browser, address, ignore_https_errors=True) as page:
        page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png()})
        page.locator(".card[aria-busy=false]").wait_for()
        assert page.locator(".card table").count()


def test_addresses_and_refusals_fit_the_path_and_nothing_leads_to_plain_http(port):
    client = https(port)
    document = json.loads(asked(client, "GET", "/lesions/openapi.json")[1])
    assert document["servers"] == [{"url": "/lesions"}]
    response, _ = asked(client, "GET", "/lesions")
    assert (response.status, response.getheader("location")) == (301, "/lesions/")
    for proto in ("http", "https"):
        response, body = asked(
            client, "POST", "/lesions/predict/", png(), **_PNG, **{"X-Forwarded-Proto": proto}
        )
        assert response.status == 404
        assert response.getheader("location") is None
        sentence = "there is nothing at this path; see /lesions/openapi.json"
        assert json.loads(body)["message"] == sentence
    response, _ = asked(client, "POST", "/lesions/predict", png(), **_PNG)
    assert response.status == 200

"""The parts of the service by themselves: bodies, bounds, threads, work that ends, a new model."""

import asyncio
import shutil
import subprocess
import sys
import threading
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from servers import wait_for
from starlette.routing import Route
from strangers import png
from tiny_model import TINY_ONNX

from serving import Predictor
from serving.http.inference import run
from serving.http.load import Load
from serving.http.model_holder import LoadedModel
from serving.http.multipart import read_photographs
from serving.http.request_limits import Bounds, ClientGoneError, RefusedError
from serving.http.settings import ServiceSettings


def test_of_a_form_every_file_is_a_photograph_byte_by_byte_and_all_else_a_field():
    parts = [
        (b'form-data; name="a"; filename="a.png"', png(1)),
        (b'form-data; name="sex"', "féminin".encode()),
        (b"form-data; name=\"b\"; filename*=UTF-8''x.png", png(3)),
        (b'form-data; name="b;filename="', b""),
        (b'form-data; name="a"; filename="b.png"', png(2)),
        (b'form-data; name="level"', b"0.9"),
    ]
    body = b"".join(
        b"--limit\r\nContent-Disposition: " + header + b"\r\n\r\n" + data + b"\r\n"
        for header, data in parts
    )
    body += b"--limit--\r\n"
    photographs, fields = read_photographs(body, "multipart/form-data; boundary=limit")
    assert photographs == [png(1), png(3), png(2)]
    assert fields == {"sex": "féminin", "b;filename=": "", "level": "0.9"}


def test_a_compressed_body_is_unpacked_no_further_than_its_bound():
    packed = zlib.compress(bytes(50_000_000))
    assert len(packed) < 60_000
    sent = []

    async def receive():
        return {"type": "http.request", "body": packed, "more_body": False}

    async def send(message):
        sent.append(message)

    settings = ServiceSettings(model="m", max_body_bytes=60_000)
    routes = [Route("/predict", endpoint=lambda request: None, methods=["POST"])]
    bounds = Bounds(None, settings=settings, load=Load(), routes=routes)
    headers = [(b"content-encoding", b"deflate")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
    tracemalloc.start()
    try:
        asyncio.run(bounds(scope, receive, send))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent[0]["status"] == 413
    assert peak < 5_000_000


def test_work_whose_time_is_over_before_a_thread_is_free_is_never_begun():
    free, begun = threading.Event(), []

    async def asked():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(free.wait)
            with pytest.raises(RefusedError) as refused:
                await run(pool, Predictor(TINY_ONNX), begun.append, silence, 0.05)
            await asyncio.sleep(0.01)  # as the service goes on
            free.set()
        return refused.value.status

    assert asyncio.run(asked()) == 504
    assert begun == []


def test_work_for_a_client_that_has_left_ends_without_an_answer():
    free = threading.Event()

    async def leave():
        return {"type": "http.disconnect"}

    async def asked():
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(ClientGoneError):
                await run(pool, Predictor(TINY_ONNX), lambda own: free.wait(60), leave, 60)
            free.set()

    asyncio.run(asked())


async def silence():
    """Receive nothing more from a client that waits."""
    await asyncio.Event().wait()


def test_a_broken_file_is_looked_at_once(tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(TINY_ONNX, path)
    model = LoadedModel(path, num_threads=1)
    assert not model.changed()
    (tmp_path / "next").write_bytes(b"no model")
    (tmp_path / "next").replace(path)
    assert model.changed()
    assert not model.reload()
    assert not model.changed()


def test_one_image_alone_gets_every_core_and_several_get_one_each(monkeypatch):
    def threads(num_threads):
        """Return those of the network, for an image alone and for several."""
        model = LoadedModel(TINY_ONNX, num_threads=num_threads)
        sessions = [model.predictor(alone=alone)._session for alone in (True, False)]
        return [session.get_session_options().intra_op_num_threads for session in sessions]

    monkeypatch.setattr("serving.http.model_holder._WORTH_SECONDS", 0.0)
    assert threads(3) == [3, 1]
    assert threads(1) == [1, 1]
    monkeypatch.setattr(
        "serving.http.model_holder._WORTH_SECONDS", 60.0
    )  # a network that is fast by itself
    assert threads(3) == [1, 1]


def test_a_request_is_alone_when_for_a_while_no_process_had_another(tmp_path):
    here, elsewhere = Load(shared=tmp_path), process_with_a_request(tmp_path)
    here.add(1)
    assert not here.is_alone()
    elsewhere.stdin.write(b"answered\n")
    elsewhere.stdin.flush()
    assert elsewhere.stdout.readline() == b"answered\n"
    assert not here.is_alone()  # it may come again at once
    wait_for(here.is_alone)
    here.add(1)
    assert not here.is_alone()
    elsewhere.communicate()


def test_a_process_that_was_killed_has_no_requests(tmp_path):
    here, elsewhere = Load(shared=tmp_path), process_with_a_request(tmp_path)
    here.add(1)
    assert not here.is_alone()
    elsewhere.kill()
    elsewhere.communicate()
    wait_for(here.is_alone)


def process_with_a_request(folder):
    program = (
        "import sys; from pathlib import Path; from serving.http.load import Load;"
        "load = Load(shared=Path(sys.argv[1])); load.add(1); print('busy', flush=True);"
        "sys.stdin.readline(); load.add(-1); print('answered', flush=True); sys.stdin.readline()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"busy\n"
    return process

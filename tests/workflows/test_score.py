"""Scoring with Spark, in real processes of which some are killed: one row per image, and its bits.

The tests need Java; `.ci/run` installs it and asserts that all of them ran.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyspark
import pytest
from PIL import Image, ImageFilter
from pyarrow import dataset
from servers import free_port, running, wait_for
from tiny_model import TINY_ONNX

from dermalyze.workflows.score import _JOB, Asked, _begin, _Task
from serving.base_predictor import optional_fields
from serving.errors import ConfigError, ImageError, StorageError
from serving.output_formats import columns, row
from serving.predictor import Predictor
from serving.taxonomy import DISCLAIMER

ASKED = Asked(level=0.9, sensitivity=0.95, max_pixels=40_000_000, partition_images=5)
SPARK_CLASS = str(Path(pyspark.__file__).parent / "bin" / "spark-class")


def photographs(folder, count):
    """Write photographs, of which many have the same content."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i:05d}.jpg"
        if i < 10:
            noise = Image.fromarray(rng.integers(0, 256, (450, 600, 3), dtype=np.uint8))
            noise.filter(ImageFilter.GaussianBlur(3)).save(path)
        else:
            path.hardlink_to(folder / f"{i % 10:05d}.jpg")
    return folder


def started(folder, output, *more):
    """Start the command in a session of its own, whose processes `members` finds."""
    command = [sys.executable, "-m", "dermalyze", "score", "--input", folder, "--output", output]
    with (output.parent / "log").open("w") as log:
        return subprocess.Popen(
            [*map(str, command), "--partition-images", "5", *more],
            stdout=log,
            stderr=log,
            cwd=output.parent,
            start_new_session=True,
        )


def ended(process, output):
    """Wait for the command; return its code and what it said."""
    try:
        return process.wait(timeout=300), (output.parent / "log").read_text()
    finally:
        end_session(process.pid)


def members(session):
    """The processes of a session by id: their parent and command line."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, _, owner = (place / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == session and state != "Z":
                found[int(place.name)] = int(parent), (place / "cmdline").read_text()
    return found


def end_session(session):
    for pid in members(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def python_workers(session):
    """The Python processes of Spark that answer for images, not the one that forks them."""
    found = members(session)
    return [
        pid
        for pid, (parent, line) in found.items()
        if "pyspark" in line and "pyspark" in found.get(parent, (0, ""))[1].partition("java")[0]
    ]


def parts(output):
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}


def wait_for_parts(output, count):
    wait_for(lambda: len(parts(output)) >= count, seconds=240)


def wait_for_end(session):
    """Wait until no JVM and no Python of Spark is left."""
    wait_for(lambda: not members(session), seconds=60)


def rows(output):
    """The result as any reader of Parquet sees it, by image."""
    found = dataset.dataset(output, format="parquet").to_table().to_pylist()
    assert len(found) == len({values["image"] for values in found})
    return {values["image"]: values for values in found}


def expected(folder):
    """What `Predictor` answers, one image at a time."""
    predictor, found = Predictor(num_threads=1), {}
    names, more = predictor.spec.class_names, optional_fields(predictor.spec)
    for path in sorted(folder.iterdir()):
        try:
            answer = predictor.predict(path)
        except ImageError as error:
            answer = error
        values = row(path, answer, names, more)
        cells = [list(value) if isinstance(value, tuple) else value for value in values]
        found[str(path)] = dict(zip(columns(names, more), cells, strict=True))
    return found


@pytest.mark.slow
def test_each_image_is_a_row_with_the_bits_of_the_predictor_and_a_bad_file_is_a_row(tmp_path):
    folder, output = photographs(tmp_path / "photographs", 12), tmp_path / "out"
    (folder / "00000.jpg").rename(folder / "_DSC0001.JPG")  # Spark's own reader leaves it out
    (folder / "00001.jpg").rename(folder / "a:b [1] %20 *.jpg")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "00002.jpg").read_bytes()[:5000])
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    code, said = ended(started(folder, output, "--master", "local[2]"), output)
    assert code == 0, said
    summary = f"{output}: 16 images, 4 of them could not be read, in 4 files; "
    assert re.search(rf"^{re.escape(summary)}[\d.]+ images/s$", said, re.MULTILINE), said
    assert rows(output) == expected(folder)
    code, said = ended(started(folder, output), output)  # needs no Spark: nothing is left to do
    assert code == 0, said
    assert said.splitlines()[1:] == [
        "4 of 4 files are finished and are kept",
        summary[:-2],
        DISCLAIMER,
    ]


@pytest.mark.slow
def test_after_ctrl_c_and_a_killed_driver_the_command_continues(tmp_path):
    folder, output = photographs(tmp_path / "photographs", 150), tmp_path / "out"
    kept = {}
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = started(folder, output, "--master", "local[2]")
        try:
            wait_for_parts(output, len(kept) + 2)
            os.kill(process.pid, number)
            assert process.wait(timeout=60) == code
            wait_for_end(process.pid)
        finally:
            end_session(process.pid)
        assert kept.items() <= parts(output).items()
        kept = parts(output)
        assert len(kept) < 30
    (output / f".part-00029.parquet.{'0' * 32}.partial").touch()  # as a killed task leaves
    process = started(folder, output, "--master", "local[2]")
    try:
        wait_for_parts(output, len(kept) + 2)
        os.kill(python_workers(process.pid)[0], signal.SIGKILL)  # which Spark replaces
    finally:
        code, said = ended(process, output)
    assert code == 0, said
    assert f"\n{len(kept)} of 30 files are finished and are kept\n" in said
    assert kept.items() <= parts(output).items()
    names = {f"part-{i:05d}.parquet" for i in range(30)}
    assert {path.name for path in output.iterdir()} == {*names, _JOB, "_SUCCESS"}
    assert rows(output) == expected(folder)


@pytest.mark.slow
def test_a_standalone_cluster_of_two_workers_loses_one(tmp_path):
    folder, output = photographs(tmp_path / "photographs", 150), tmp_path / "out"
    port = free_port()
    master = f"spark://127.0.0.1:{port}"
    deploy = "org.apache.spark.deploy"
    env = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "512m"}
    local = ["--host", "127.0.0.1", "--webui-port", "0"]
    with contextlib.ExitStack() as stack:

        def server(name, health, *words):
            command = [SPARK_CLASS, f"{deploy}.{name}", *words, *local]
            log = tmp_path / f"{'-'.join(words[-1:])}-{health[1]}.log"
            return stack.enter_context(
                running(command, health=health, cwd=tmp_path, env=env, log=log)
            )

        server("master.Master", ("127.0.0.1", port), "--port", str(port))
        workers = [
            server(
                "worker.Worker",
                ("127.0.0.1", own),
                *(master, "--cores", "1", "--memory", "1g", "--work-dir", str(tmp_path / "work")),
                *("--port", str(own)),
            )
            for own in (free_port(), free_port())
        ]
        process = started(folder, output, "--master", master)
        try:
            wait_for(lambda: all(python_workers(pid) for pid in workers), seconds=240)
            wait_for_parts(output, len(parts(output)) + 2)
            end_session(workers[0])  # the worker, its executor and the executor's Python processes
            assert len(parts(output)) < 30
        finally:
            code, said = ended(process, output)
    assert code == 0, said
    assert rows(output) == expected(folder)


def test_an_output_keeps_its_images_its_model_and_what_was_asked(tmp_path):
    images = [str(path) for path in sorted(photographs(tmp_path / "p", 2).iterdir())]
    job = _begin(tmp_path / "out", TINY_ONNX, images, ASKED)
    assert _begin(tmp_path / "out", TINY_ONNX, images, ASKED) == job
    with pytest.raises(ConfigError) as caught:
        _begin(tmp_path / "out", TINY_ONNX, images[:1], ASKED)
    assert str(caught.value) == (
        f"{tmp_path}/out was begun with another images (2, now 1); name another --output"
    )
    with pytest.raises(ConfigError, match=r"was begun with another model \(\w+, now \w+\)"):
        _begin(tmp_path / "out", Path(images[0]), images, ASKED)
    with pytest.raises(ConfigError) as caught:
        _begin(tmp_path / "p", TINY_ONNX, images, ASKED)
    assert str(caught.value) == (
        f"{tmp_path}/p has files of something else; name a new or empty --output"
    )


def test_a_worker_that_does_not_see_the_folders_writes_no_rows(tmp_path):
    folder = photographs(tmp_path / "p", 1)
    output = tmp_path / "out"
    job = _begin(output, TINY_ONNX, [str(folder / "00000.jpg")], ASKED)
    for seen in ({"input": tmp_path / "elsewhere"}, {"job": "another"}):
        task = {"asked": ASKED, "model": "m", "input": folder, "output": output, "job": job} | seen
        with pytest.raises(StorageError, match="mount both on every worker under the same paths"):
            next(_Task(**task)([(0, [str(folder / "00000.jpg")])]))
    assert parts(output) == {}


def test_without_java_the_command_says_what_to_install(tmp_path):
    photographs(tmp_path / "p", 1)
    command = [sys.executable, "-m", "dermalyze", "score", "--input", "p", "--output", "out"]
    env = os.environ | {"JAVA_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        "Error: Spark needs Java 17 or newer, which was not found; install it (Debian: `apt "
        "install default-jre-headless`) or set JAVA_HOME"
    ]

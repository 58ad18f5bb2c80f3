"""Scoring many photographs with Spark: each task answers for some and writes one Parquet file.

A part of the result is finished if its file exists, and a file appears complete or not at all.  The
images of a part depend only on the sorted list of images, so a second attempt, of a task or of the
whole command, replaces a file with the same rows.  Executors need this package, and must see the
images and the output under the same paths as the driver.  Never imports torch.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyarrow import dataset, parquet
from pyspark import SparkConf, SparkContext, SparkFiles
from pyspark.errors import PySparkException

from serving.atomic_write import PARTIAL, sync, write_text
from serving.base_predictor import optional_fields
from serving.batch import Answer, find_images, left_out
from serving.errors import ConfigError, ImageError, StorageError, one_line
from serving.os_errors import make_folder, reading, writing
from serving.output_formats import columns, row
from serving.prediction import Prediction
from serving.predictor import Predictor
from serving.reference import in_words

logger = logging.getLogger(__name__)

_JOB = "_job.json"  # in the output: what its files answer; readers of Parquet skip names with _
_SUCCESS = "_SUCCESS"  # empty; there once all parts are, as other Spark jobs have it
_PART = re.compile(r"part-(\d+)\.parquet")
_LOCAL = re.compile(r"local(\[(\d+|\*)\])?")
_HERE = re.compile(r"local|spark://(127\.0\.0\.1|localhost)\b")
_ATTEMPTS = 4  # of a task, as Spark has it on a cluster
_ARROW = {
    str: pa.string(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked about the images."""

    level: float  # coverage of the prediction sets
    sensitivity: float  # of the referral
    max_pixels: int  # of an image, width x height
    partition_images: int  # images per file of the output


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a finished output holds, and how fast this command was."""

    images: int
    failed: int  # of them could not be read
    parts: int
    images_per_second: float  # of those scored now; 0: all were there already


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What every task of a job needs beside its images."""

    asked: Asked
    model: str  # name of the file that Spark sends to each executor
    input: Path  # the folder that holds all images
    output: Path
    job: str  # the content of _JOB

    def __call__(self, parts: Iterable[tuple[int, list[str]]]) -> Iterator[int]:
        """Write the file of each part; yield its number."""
        with reading(self.output / _JOB):
            is_shared = self.input.is_dir() and (self.output / _JOB).is_file()
            if not is_shared or (self.output / _JOB).read_text(encoding="utf-8") != self.job:
                raise StorageError(
                    f"{socket.gethostname()} does not see {self.input} and {self.output} as the "
                    "driver does; mount both on every worker under the same paths"
                )
        predictor = _loaded(SparkFiles.get(self.model), self.asked.max_pixels)
        for number, images in parts:
            path = self.output / _name(number)
            if not path.exists():  # else another attempt has written it
                _write(path, _table(predictor, images, self.asked))
            yield number


def score(
    given: str, output: Path, model: Path, asked: Asked, cluster: Mapping[str, str]
) -> Scored:
    """Answer for all images of a folder or a pattern; an interrupted output is continued.

    Args:
        given: a folder, a file, or a pattern such as photos/*/*.jpg.
        output: the folder of the Parquet files.
        model: an ONNX file.
        asked: what to answer.
        cluster: settings of Spark, among them spark.master.

    Raises:
        ImageError: there is no image.
        ConfigError: the output answers something else, Java is missing, or Spark gave up.
        ArtifactError: the model cannot be used.
        StorageError: the output cannot be written, or a worker does not see the folders.
    """
    images = _find(given)
    output = output.absolute()
    predictor = Predictor(model, num_threads=1)
    logger.info(f"model: {in_words(model, predictor.spec)}")
    blank = np.zeros((8, 8, 3), np.uint8)  # refuses a wrong level before Spark starts
    predictor.predict(blank, level=asked.level, sensitivity=asked.sensitivity)
    job = _begin(output, model, images, asked)
    starts = range(0, len(images), asked.partition_images)
    parts = [(i, images[k : k + asked.partition_images]) for i, k in enumerate(starts)]
    finished = _finished(output)
    todo = [part for part in parts if part[0] not in finished]
    seconds = 0.0
    if finished:
        logger.info(f"{len(finished):,} of {len(parts):,} files are finished and are kept")
    if todo:
        folder = Path(os.path.commonpath([Path(images[0]).parent, Path(images[-1]).parent]))
        task = _Task(asked=asked, model=model.name, input=folder, output=output, job=job)
        with _spark(cluster) as context:
            context.addFile(str(model.resolve()))
            start = time.perf_counter()
            context.parallelize(todo, len(todo)).mapPartitions(task).collect()
            seconds = time.perf_counter() - start
    num_now = sum(len(part) for _, part in todo)
    return _finish(output, images, len(parts), num_now / seconds if seconds else 0.0)


def _find(given: str) -> list[str]:
    """List the absolute paths of the images, sorted."""
    paths = [Path(given).absolute()]
    if not paths[0].exists():
        paths = [Path(name) for name in glob(str(paths[0]), recursive=True)]  # noqa: PTH207
    if not paths:
        raise ImageError(
            f"no image at {given}; expected a folder, or a pattern such as 'photos/*/*.jpg'"
        )
    images = sorted(str(path) for path in find_images(paths))
    if others := left_out(paths):
        logger.info(others)
    return images


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _finished(output: Path) -> set[int]:
    return {int(found[1]) for path in output.iterdir() if (found := _PART.fullmatch(path.name))}


def _begin(output: Path, model: Path, images: Sequence[str], asked: Asked) -> str:
    """Make the output, or refuse one that answers something else; return what it answers."""
    with reading(model), model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    names = "\n".join(images).encode(errors="surrogateescape")
    job = {
        "model": digest,
        "images": len(images),
        "list of images": hashlib.sha256(names).hexdigest(),
        **asdict(asked),
    }
    make_folder(output)
    path = output / _JOB
    if path.exists():
        with reading(path):
            earlier = json.loads(path.read_text(encoding="utf-8"))
        for name, value in job.items():
            if earlier.get(name) != value:
                raise ConfigError(
                    f"{output} was begun with another {name.replace('_', '-')} "
                    f"({earlier.get(name)}, now {value}); name another --output"
                )
    elif any(not file.name.startswith(".") for file in output.iterdir()):
        raise ConfigError(f"{output} has files of something else; name a new or empty --output")
    else:
        write_text(path, json.dumps(job, indent=1))
    for left in output.glob(f".*{PARTIAL}"):  # of a task that was killed
        left.unlink(missing_ok=True)
    return json.dumps(job, indent=1)


def _finish(output: Path, images: Sequence[str], num_parts: int, speed: float) -> Scored:
    """Count the rows of the whole output, where each image must have one."""
    with reading(output):
        files = [str(output / _name(number)) for number in sorted(_finished(output))]
        table = dataset.dataset(files, format="parquet").to_table(columns=["image", "error"])
    if table["image"].to_pylist() != [one_line(image) for image in images]:
        raise StorageError(
            f"{output} does not have one row per image: files were changed or deleted; delete it "
            "and start again"
        )
    write_text(output / _SUCCESS, "")
    failed = len(images) - table["error"].null_count
    return Scored(images=len(images), failed=failed, parts=num_parts, images_per_second=speed)


@contextmanager
def _spark(cluster: Mapping[str, str]) -> Iterator[SparkContext]:
    """Connect to Spark, or start it here; what it reports becomes one sentence."""
    home = os.environ.get("JAVA_HOME")
    if shutil.which(str(Path(home, "bin", "java")) if home else "java") is None:
        raise ConfigError(
            "Spark needs Java 17 or newer, which was not found; install it (Debian: `apt install "
            "default-jre-headless`) or set JAVA_HOME"
        )
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.app.name": "dermalyze score",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": str(sys.stderr.isatty()).lower(),
        **cluster,
    }
    if _HERE.match(settings["spark.master"]):  # nobody else needs to reach the driver
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if found := _LOCAL.fullmatch(settings["spark.master"]):
        cores = found[2] or "1"
        # With attempts: by default one Python process that is killed ends the whole job.
        settings["spark.master"] = f"local[{cores},{_ATTEMPTS}]"
        settings.setdefault("spark.log.level", "OFF")
    warnings.filterwarnings("ignore", "PySpark does not yet", FutureWarning)  # of pandas 3, unused
    before = signal.getsignal(signal.SIGINT)
    context = None
    try:
        context = SparkContext(conf=SparkConf().setAll(list(settings.items())))
        signal.signal(signal.SIGINT, before)  # Spark's own handler takes longer than two seconds
        yield context
    except (Py4JError, PySparkException, OSError) as error:
        raise _in_words(error, settings["spark.master"]) from error
    finally:
        if context is not None:
            context.stop()


def _in_words(error: Exception, master: str) -> ConfigError | StorageError:
    text = str(error)
    if own := re.findall(r"^serving\.errors\.\w+: (.+)$", text, re.MULTILINE):
        return StorageError(own[-1])  # of a task
    reason = re.sub(r"An error occurred while calling \S+\s*:\s*", "", text).strip()
    return ConfigError(
        f"Spark on {master} gave up: {reason.splitlines()[0][:300]}; finished files are kept, and "
        "the same command continues"
    )


@lru_cache(1)
def _loaded(model: str, max_pixels: int) -> Predictor:
    """Load the model once per Python process, which takes one task after the other."""
    return Predictor(model, num_threads=1, max_pixels=max_pixels)


def _table(predictor: Predictor, images: Sequence[str], asked: Asked) -> pa.Table:
    """Answer for images one at a time, in the same bits as `Predictor.predict`."""
    names, more = predictor.spec.class_names, optional_fields(predictor.spec)
    rows = []
    for image in map(Path, images):
        answer: Answer
        try:
            answer = predictor.predict(image, level=asked.level, sensitivity=asked.sensitivity)
        except ImageError as error:
            answer = error
        rows.append(row(image, answer, names, more))
    hints = get_type_hints(Prediction)
    types = {name: _ARROW[get_args(hints[name])[0]] for name in more}
    types |= {f"prob_{name}": pa.float64() for name in names} | {"confidence": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns(names, more)])
    cells = [
        pa.array(values, kind)
        for values, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
    ]
    return pa.table(cells, schema=schema)


def _write(path: Path, table: pa.Table) -> None:
    """Write a file whole or not at all; of several attempts at once each has its own partial."""
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with writing(path):
        try:
            partial.write_bytes(buffer.getvalue())
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync(path.parent)

"""How a store is made: in processes or here, from scratch or from an older store."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermalyze.data.pixel_store import builder, decoder, worker_processes
from dermalyze.data.pixel_store.builder import build_pixels
from dermalyze.data.pixel_store.decoder import RowDecoder, Target, thumbnail
from dermalyze.data.pixel_store.store import Preprocessing, open_pixels
from dermalyze.data.pixel_store.worker_processes import decode_in_processes
from dermalyze.data.readers.dataset import MAX_FILE_BYTES, ImageFile
from serving.errors import DataError

SMALL = Preprocessing(image_size=16, resize_mode="squash", resize_filter="bilinear")
ROOT = Path(__file__).parents[3]


def noise(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, **options: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **options)
    return data.getvalue()


def put(folder: Path, name: str, data: bytes) -> dict[str, ImageFile]:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(data)
    return {name: ImageFile(path, "", len(data), path.stat().st_mtime_ns)}


def put_many(folder: Path, num_images: int) -> dict[str, ImageFile]:
    files: dict[str, ImageFile] = {}
    for number in range(num_images):
        files |= put(folder, f"I{number:03d}", encode(noise(number)))
    return files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def workers(monkeypatch):
    """Start processes however little there is to do; return those that were started."""
    monkeypatch.setattr(builder, "_SECONDS_WORTH_A_PROCESS", 1e-6)
    monkeypatch.setattr(builder, "_CHUNK_IMAGES", 4)
    started = []
    start = worker_processes._start

    def recorded(target):
        started.append(start(target))
        return started[-1]

    monkeypatch.setattr(worker_processes, "_start", recorded)
    return started


def in_workers(monkeypatch, code: str) -> None:
    """Run `code`, which may change the module `d`, at the start of each worker."""
    start = "import dermalyze.data.pixel_store.decoder as d\n" + code + "\nd.work()"
    before, _, _ = worker_processes._CODE.rpartition("from ")
    monkeypatch.setattr(worker_processes, "_CODE", before + f"exec({start!r})")


def test_processes_make_the_store_that_one_process_makes(tmp_path, workers):
    files = put_many(tmp_path / "images", 40)
    files |= put(tmp_path / "images", "J_junk", b"not an image")
    files |= put(tmp_path / "images", "J_gone", b"gone in a moment")
    files["J_gone"].path.unlink()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("in/K1.png", encode(noise(50)))
    files["K1"] = ImageFile(tmp_path / "images.zip", "in/K1.png", 1, 2)
    files["K2"] = ImageFile(tmp_path / "images.zip", "in/none.png", 1, 2)
    files["L_huge"] = ImageFile(files["I000"].path, "", MAX_FILE_BYTES + 1, 3)
    here = build_pixels(files, tmp_path / "here", SMALL, workers=1)
    assert workers == []
    there = build_pixels(files, tmp_path / "there", SMALL, workers=2)
    assert len(workers) == 2
    assert contents(there.folder) == contents(here.folder)
    assert there.records == here.records
    problems = {record.image_id: record.problem for record in there.records if record.problem}
    assert problems == {
        "J_gone": f"cannot read {files['J_gone'].path}: No such file or directory",
        "J_junk": "not a JPEG or PNG image (12 bytes)",
        "K2": "cannot read images.zip/in/none.png: no such member",
        "L_huge": f"{files['I000'].path} has 268,435,457 bytes; the limit is 268,435,456",
    }
    assert all(worker.poll() is not None for worker in workers)


def test_a_few_small_images_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(
        worker_processes, "_start", lambda target: pytest.fail("a process was started")
    )
    stored = build_pixels(put_many(tmp_path / "images", 60), tmp_path / "out", SMALL, workers=8)
    assert len(stored.store) == 60


def test_a_worker_imports_none_of_the_heavy_libraries():
    code = "import sys, dermalyze.data.pixel_store.decoder; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in output.stdout.split()}
    assert "PIL" in loaded
    assert loaded.isdisjoint({"torch", "pandas", "mlflow", "onnxruntime", "matplotlib", "sklearn"})


@pytest.mark.parametrize("how", ["standard input", "a script"])
def test_processes_need_nothing_of_the_callers_main_module(tmp_path, how):
    files = put_many(tmp_path / "images", 8)
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path, PosixPath, WindowsPath\n"
        "from dermalyze.data.pixel_store import builder\n"
        "from dermalyze.data.readers.dataset import ImageFile\n"
        "from dermalyze.data.pixel_store.store import Preprocessing\n"
        "builder._SECONDS_WORTH_A_PROCESS = 1e-6\n"
        f"how = {SMALL!r}\n"
        f"print(len(builder.build_pixels({files!r}, Path('out'), how, workers=2).store))\n"
    )
    (tmp_path / "script.py").write_text(script)
    command = (
        [sys.executable, "-P", "-"] if how == "standard input" else [sys.executable, "script.py"]
    )
    done = subprocess.run(
        command, input=script, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("8\n", 0), done.stderr


def test_a_killed_worker_is_one_sentence_and_what_is_finished_is_kept(
    tmp_path, workers, monkeypatch
):
    files = put_many(tmp_path / "images", 40)
    whole = build_pixels(files, tmp_path / "whole", SMALL, workers=1)
    code = worker_processes._CODE
    size = files["I038"].size
    in_workers(
        monkeypatch,
        "import os\ndecode = d.decode_image\n"
        f"bad = open({str(files['I038'].path)!r}, 'rb').read()\n"
        "d.decode_image = lambda data: os.kill(os.getpid(), 9) if data == bad else decode(data)",
    )
    with pytest.raises(DataError) as caught:
        build_pixels(files, tmp_path / "out", SMALL, workers=2)
    assert str(caught.value) == (
        "a process that decodes images was killed (SIGKILL), perhaps for lack of memory; run "
        "it again, if needed with --workers 1 (in training: training.num_workers): finished images "
        "are not decoded again"
    )
    assert all(worker.poll() is not None for worker in workers)
    monkeypatch.setattr(worker_processes, "_CODE", code)
    decoded = count_decodes(monkeypatch)
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert 0 < len(decoded) <= 5 * 4  # at most two chunks a worker and the last one
    assert contents(stored.folder) == contents(whole.folder)
    assert size == files["I038"].size


def test_a_worker_that_cannot_start_is_one_sentence(tmp_path, workers, monkeypatch):
    in_workers(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(DataError, match="decodes images ended with status 3; run it again"):
        build_pixels(put_many(tmp_path / "images", 9), tmp_path / "out", SMALL, workers=2)


def test_what_a_worker_fails_at_is_done_here_or_fails_here(tmp_path, workers, monkeypatch):
    files = put_many(tmp_path / "images", 30)
    in_workers(monkeypatch, "d.decode_image = None")
    stored = build_pixels(files, tmp_path / "out", SMALL, workers=2)
    assert len(stored.store) == 30

    def broken(data: bytes) -> Image.Image:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(decoder, "decode_image", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        build_pixels(files, tmp_path / "other", SMALL, workers=2)
    assert all(worker.poll() is not None for worker in workers)


def test_a_disk_that_is_full_for_a_worker_is_one_sentence_and_no_half_store(
    tmp_path, workers, monkeypatch
):
    files = put_many(tmp_path / "images", 30)
    no_space = f"raise OSError({errno.ENOSPC}, 'No space left on device')"
    in_workers(monkeypatch, f"def full(*a):\n    {no_space}\nd.RowDecoder.decode = full")

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RowDecoder, "decode", full)
    with pytest.raises(DataError, match=r"cannot write 0.0 GB of pixels to .*: no space left; "):
        build_pixels(files, tmp_path / "out", SMALL, workers=2)
    assert list((tmp_path / "out").iterdir()) == []
    assert all(worker.poll() is not None for worker in workers)


def test_a_worker_has_the_path_of_its_caller_and_hears_no_ctrl_c(tmp_path, workers, monkeypatch):
    files = put_many(tmp_path / "images", 30)
    here = build_pixels(files, tmp_path / "here", SMALL, workers=1)
    (tmp_path / "only_here.py").write_text("import os, signal\n")
    monkeypatch.syspath_prepend(tmp_path)
    in_workers(
        monkeypatch,
        "from only_here import os, signal\ndecode = d.decode_image\n"
        "d.decode_image = lambda data: os.kill(os.getpid(), signal.SIGINT) or decode(data)",
    )
    there = build_pixels(files, tmp_path / "there", SMALL, workers=2)
    assert contents(there.folder) == contents(here.folder)


def test_a_worker_whose_caller_is_gone_ends_without_a_word(tmp_path):
    for name in ("pixels", "thumbnails"):
        (tmp_path / name).touch()
    worker = worker_processes._start(
        Target(str(tmp_path / "pixels"), 0, str(tmp_path / "thumbnails"), 16, "squash", "bilinear")
    )
    assert worker.stdin
    assert worker.stdout
    worker.stdout.close()
    worker.stdin.write(b'[[0, "I", "nowhere", ""]]\n')
    assert worker.wait(timeout=60) == 0
    worker.stdin.close()


def test_workers_end_in_the_middle_of_an_image(tmp_path, workers, monkeypatch):
    (file,) = put_many(tmp_path / "images", 1).values()
    for path in (tmp_path / "pixels", tmp_path / "thumbnails"):
        path.touch()
    target = Target(
        str(tmp_path / "pixels"), 0, str(tmp_path / "thumbnails"), 16, "squash", "bilinear"
    )
    in_workers(
        monkeypatch,
        "import time\ndecode = d.decode_image\n"
        "d.decode_image = lambda data: time.sleep(1e9) if data == b'x' else decode(data)",
    )
    hanging = tmp_path / "hanging"
    hanging.write_bytes(b"x")
    jobs = [(0, "I", str(file.path), ""), (1, "J", str(hanging), "")]
    answers = decode_in_processes([[job] for job in jobs for _ in range(4)], target, 2)
    next(answers)
    answers.close()
    assert [worker.poll() for worker in workers] == [-signal.SIGKILL] * 2


def test_no_more_than_two_chunks_a_worker_are_under_way(tmp_path):
    files = put_many(tmp_path / "images", 1)
    asked = 0

    def chunks():
        nonlocal asked
        for row in range(40):
            asked += 1
            yield [(row, "I", str(files["I000"].path), "")]

    paths = [tmp_path / "pixels", tmp_path / "thumbnails"]
    for path in paths:
        path.touch()
    target = Target(str(paths[0]), 0, str(paths[1]), 16, "squash", "bilinear")
    for answered, lines in enumerate(decode_in_processes(chunks(), target, 3)):
        assert asked - answered <= 2 * 3
        assert len(lines) == 1
    assert asked == 40
    assert paths[0].stat().st_size == 40 * 16 * 16 * 3


def count_decodes(monkeypatch) -> list[str]:
    decoded: list[str] = []
    decode = RowDecoder.decode

    def counted(self, row, image_id, read):
        decoded.append(image_id)
        return decode(self, row, image_id, read)

    monkeypatch.setattr(RowDecoder, "decode", counted)
    return decoded


def test_only_what_is_new_or_changed_is_decoded(tmp_path, monkeypatch):
    images = tmp_path / "images"
    files = put_many(images, 12) | put(images, "I005x", b"junk") | put(images, "I006x", b"later")
    files["I006x"].path.unlink()
    old = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    old_bytes = contents(old.folder)
    del files["I003"]
    files |= put(images, "I004", encode(noise(100, 30, 30)))  # changed
    files |= put(images, "I0045", encode(noise(101)))  # new, in the middle
    files |= put(images, "I006x", encode(noise(102))) | {"I006x": files["I006x"]}  # readable now
    decoded = count_decodes(monkeypatch)
    new = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    assert decoded == ["I004", "I0045", "I006x"]
    assert not old.folder.exists()
    scratch = build_pixels(files, tmp_path / "scratch", SMALL, workers=1)
    assert contents(new.folder) == contents(scratch.folder)
    assert new.records == scratch.records
    assert contents(new.folder) != old_bytes


def test_the_old_store_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    files = put_many(tmp_path / "images", 6)
    old = build_pixels(files, tmp_path / "out", SMALL, workers=1)
    before = contents(old.folder)
    more = files | put(tmp_path / "images", "I0020", encode(noise(9)))
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "resize", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_pixels(more, tmp_path / "out", SMALL, workers=1)
    assert contents(old.folder) == before
    assert open_pixels(files, tmp_path / "out", SMALL) is not None
    stored = build_pixels(more, tmp_path / "out", SMALL, workers=1)
    scratch = build_pixels(more, tmp_path / "scratch", SMALL, workers=1)
    assert contents(stored.folder) == contents(scratch.folder)


@pytest.mark.parametrize("what", ["Pillow", "no list", "damaged list", "damaged records", "size"])
def test_nothing_is_copied_from_a_store_of_another_making(tmp_path, monkeypatch, what):
    files = put_many(tmp_path / "images", 6)
    folder = build_pixels(files, tmp_path / "out", SMALL, workers=1).folder
    preprocessing = SMALL
    if what == "Pillow":
        monkeypatch.setattr(builder.PIL, "__version__", "0.0")
    elif what == "no list":
        (folder / "files.json").unlink()
    elif what == "damaged list":
        (folder / "files.json").write_text("[]")
    elif what == "damaged records":
        (folder / "images.json").write_text("[]")
    else:
        preprocessing = Preprocessing(image_size=17, resize_mode="squash", resize_filter="bilinear")
    files |= put(tmp_path / "images", "I1", encode(noise(9)))
    decoded = count_decodes(monkeypatch)
    build_pixels(files, tmp_path / "out", preprocessing, workers=1)
    assert decoded == sorted(files)


def test_content_is_equal_for_equal_images_only(tmp_path):
    image = noise(0, 40, 40)
    one_level_off = image.copy()
    one_level_off[3, 3, 2] ^= 1  # blue, of which grey has a ninth: the thumbnail is the same
    assert thumbnail(Image.fromarray(image)) == thumbnail(Image.fromarray(one_level_off))
    flat = np.full((20, 20, 3), 9, np.uint8)
    images = tmp_path / "images"
    files = {
        **put(images, "a", encode(image)),
        **put(images, "b", encode(image, compress_level=0)),
        **put(images, "c", encode(one_level_off)),
        **put(images, "d", encode(flat)),
        **put(images, "e", encode(flat[:10])),
        **put(images, "f", encode(flat)),
        **put(images, "g", encode(noise(1))),
    }
    records = build_pixels(files, tmp_path / "out", SMALL, workers=1).records
    content = [record.pixels_sha256 for record in records]
    assert [content.index(value) for value in content] == [0, 0, 2, 3, 4, 3, 6]
    assert len({record.sha256 for record in records}) == 6


@pytest.mark.parametrize(("width", "height"), [(200, 150), (600, 450), (2000, 1500)])
def test_a_thumbnail_is_the_mean_of_each_part(width, height):
    ramp = np.add.outer(np.arange(height) / height, np.arange(width) / width) * 127
    ramp = ramp + np.random.default_rng(0).normal(0, 6, ramp.shape)
    grey = np.clip(ramp + 6, 0, 255).astype(np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, axis=2))
    small = np.frombuffer(thumbnail(image), np.uint8).reshape(32, 32)
    rows = np.array_split(grey.astype(float), 32)
    expected = [[part.mean() for part in np.array_split(row, 32, axis=1)] for row in rows]
    assert np.corrcoef(small.ravel(), np.ravel(expected))[0, 1] > 0.998


def test_a_store_is_built_although_an_older_one_lost_its_thumbnails(tmp_path):
    files = put_many(tmp_path / "images", 4)
    folder = build_pixels(files, tmp_path / "out", SMALL, workers=1).folder
    (folder / "thumbnails.npy").unlink()
    files |= put(tmp_path / "images", "I9", encode(noise(9)))
    assert len(build_pixels(files, tmp_path / "out", SMALL, workers=1).store) == 5
    shutil.rmtree(folder, ignore_errors=True)

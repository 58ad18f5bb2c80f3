import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermalyze.config.schema import DataConfig
from dermalyze.data.preparation import fingerprint_of, prepare
from serving.errors import DataError

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
CALL = (
    "import sys; from pathlib import Path; from dermalyze.data.preparation import prepare; "
    "from dermalyze.config.schema import DataConfig; "
    "settings = DataConfig(prepared=sys.argv[2], image_size=64); "
    "prepared = prepare(Path(sys.argv[1]), settings, workers=int(sys.argv[3])); "
)


def noise(seed: int, side: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def write_data(folder: Path, num_images: int, side: int = 24) -> Path:
    """Two images a lesion, classes in turn, in Kaggle's layout; every third has no age."""
    images = folder / "HAM10000_images_part_1"
    images.mkdir(parents=True)
    lines = []
    for number in range(num_images):
        lesion, label = number // 2, ("nv", "mel", "bkl")[number // 2 % 3]
        age = "" if number % 3 == 0 else "50.0"
        lines.append(f"HAM_{lesion:04d},ISIC_{number:04d},{label},histo,{age},male,back\n")
        (images / f"ISIC_{number:04d}.jpg").write_bytes(noise(number, side))
    (folder / "HAM10000_metadata.csv").write_text(HEADER + "".join(reversed(lines)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, except the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def child(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_everything_is_written_and_row_i_of_the_manifest_is_row_i_of_the_store(tmp_path):
    data = write_data(tmp_path / "data", 10)
    prepared = prepare(data, DataConfig(image_size=16), workers=2)
    assert prepared.folder == data / "prepared"
    assert (data / "prepared" / "labels.csv").read_text().splitlines()[:3] == [
        "image_id,label,lesion_id,dx_type,age,sex,localization",
        "ISIC_0000,nv,HAM_0000,histo,,male,back",
        "ISIC_0001,nv,HAM_0000,histo,50.0,male,back",
    ]
    assert prepared.manifest["image_id"].tolist() == [f"ISIC_{n:04d}" for n in range(10)]
    for row, image_id in enumerate(prepared.manifest["image_id"]):
        original = (data / "HAM10000_images_part_1" / f"{image_id}.jpg").read_bytes()
        assert prepared.read_image_bytes(image_id) == original
        assert prepared.manifest["sha256"][row] == hashlib.sha256(original).hexdigest()
        image = Image.open(io.BytesIO(original)).resize((16, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(prepared.store.pixels[row], np.asarray(image))
    assert json.loads((data / "prepared" / "audit.json").read_text())["num_usable"] == 10
    assert (data / "prepared" / "audit.txt").read_text() == prepared.audit.summary()


def test_a_second_call_touches_nothing(tmp_path):
    data = write_data(tmp_path / "data", 6)
    first = prepare(data, DataConfig(image_size=16))
    times = {p: p.stat().st_mtime_ns for p in (data / "prepared").rglob("*") if p.name != ".lock"}
    second = prepare(data, DataConfig(image_size=16))
    assert times == {
        p: p.stat().st_mtime_ns for p in (data / "prepared").rglob("*") if p.name != ".lock"
    }
    assert first.fingerprint == second.fingerprint
    pd.testing.assert_frame_equal(first.manifest, second.manifest)


def test_stores_of_several_sizes_stand_beside_each_other_with_one_audit(tmp_path):
    data = write_data(tmp_path / "data", 6)
    small = prepare(data, DataConfig(image_size=16))
    text = small.audit.to_json()
    large = prepare(data, DataConfig(image_size=24))
    assert large.audit.to_json() == text
    assert large.store.pixels.shape == (6, 24, 24, 3)
    assert len(list((data / "prepared").glob("pixels-*"))) == 2
    assert small.fingerprint == large.fingerprint


def test_the_fingerprint_is_of_content_and_not_of_place_or_time(tmp_path):
    data = write_data(tmp_path / "data", 6)
    prepared = prepare(data, DataConfig(image_size=16))
    columns = ["image_id", "label", "lesion_id", "sha256"]
    lines = sorted("\t".join(values) for values in prepared.manifest[columns].to_numpy().tolist())
    old = hashlib.sha256("\n".join(lines).encode()).hexdigest()  # before there was a taxonomy
    assert prepared.old_fingerprint == old

    zipped = tmp_path / "zipped"
    zipped.mkdir()
    shutil.copy(data / "HAM10000_metadata.csv", zipped / "HAM10000_metadata")
    with zipfile.ZipFile(zipped / "HAM10000_images_part_2.zip", "w") as archive:
        for path in (data / "HAM10000_images_part_1").iterdir():
            archive.write(path, path.name)
    assert prepare(zipped, DataConfig(image_size=24)).fingerprint == prepared.fingerprint

    taxonomy = prepared.taxonomy
    assert fingerprint_of(prepared.manifest[::-1], taxonomy) == prepared.fingerprint != old
    for column in columns:
        changed = prepared.manifest.copy()
        changed.loc[3, column] = "other"
        assert fingerprint_of(changed, taxonomy) != prepared.fingerprint
    patients = prepared.manifest.assign(patient_id="P1")
    assert fingerprint_of(patients, taxonomy) != prepared.fingerprint
    for names, malignant in ((taxonomy.names[::-1], taxonomy.malignant), (taxonomy.names, ())):
        other = dataclasses.replace(taxonomy, names=names, malignant=malignant)
        assert fingerprint_of(prepared.manifest, other) != prepared.fingerprint


def test_a_corrected_label_is_taken_over_without_decoding_again(tmp_path):
    data = write_data(tmp_path / "data", 6)
    prepared = prepare(data, DataConfig(image_size=16))
    (store,) = (data / "prepared").glob("pixels-*")
    inode = (store / "pixels.npy").stat().st_ino
    table = data / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace(",mel,", ",bcc,"))
    again = prepare(data, DataConfig(image_size=16))
    assert (store / "pixels.npy").stat().st_ino == inode
    assert again.manifest["label"].tolist() == ["nv", "nv", "bcc", "bcc", "bkl", "bkl"]
    assert ",bcc," in (data / "prepared" / "labels.csv").read_text()
    assert again.fingerprint != prepared.fingerprint


def test_problems_stop_with_a_sentence_unless_they_are_allowed(tmp_path):
    data = write_data(tmp_path / "data", 6)
    (data / "HAM10000_images_part_1" / "ISIC_0002.jpg").write_bytes(b"junk")
    with (data / "HAM10000_metadata.csv").open("a") as table:
        table.write("HAM_0000,ISIC_0000,mel,histo,50.0,male,back\n")
    with pytest.raises(DataError) as caught:
        prepare(data, DataConfig(image_size=16))
    audit_text = data / "prepared" / "audit.txt"
    assert str(caught.value) == (
        f"{data} has 1 of 6 images missing or broken and 2 contradictions, listed in {audit_text}; "
        "fix the data, or pass --allow-problems"
    )
    assert "ISIC_0000: mel, nv" in audit_text.read_text()
    prepared = prepare(data, DataConfig(image_size=16, allow_problems=True))
    usable = ["ISIC_0001", "ISIC_0003", "ISIC_0004", "ISIC_0005"]
    assert prepared.manifest["image_id"].tolist() == usable
    assert len(prepared.store) == 4


def test_copies_of_a_file_are_not_listed_as_near_duplicates_too(tmp_path):
    data = write_data(tmp_path / "data", 6)
    images = data / "HAM10000_images_part_1"
    shutil.copy(images / "ISIC_0000.jpg", images / "ISIC_0001.jpg")
    problems = prepare(data, DataConfig(image_size=16)).audit.problems
    assert [(p.kind, p.items) for p in problems] == [
        ("same_file", ("ISIC_0000 (HAM_0000, nv), ISIC_0001 (HAM_0000, nv)",))
    ]


def test_data_without_one_usable_image_is_a_sentence(tmp_path):
    data = write_data(tmp_path / "data", 1)
    (data / "HAM10000_images_part_1" / "ISIC_0000.jpg").write_bytes(b"junk")
    with pytest.raises(DataError) as caught:
        prepare(data, DataConfig(image_size=16, allow_problems=True))
    assert str(caught.value) == (
        f"no image of {data} can be used; {data / 'prepared' / 'audit.txt'} says why"
    )


def session(leader: int) -> list[int]:
    """The processes that live in the session of one, itself among them."""
    alive = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, leads = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(leads) == leader and state != "Z":
            alive.append(int(path.name))
    return alive


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "Ctrl-C"])
def test_a_call_stopped_at_any_point_is_gone_on_with_and_ends_the_same(tmp_path, how, workers):
    data = write_data(tmp_path / "data", 240, side=400)
    whole = prepare(data, DataConfig(prepared=str(tmp_path / "whole"), image_size=64))

    stopped = child(CALL, data, tmp_path / "stopped", workers, start_new_session=True)
    journal: list[Path] = []
    while not journal or journal[0].read_bytes().count(b"\n") < 70:
        assert stopped.poll() is None, "the child ended before it could be stopped"
        time.sleep(0.002)
        journal = list((tmp_path / "stopped").glob("*.partial/journal.jsonl"))
    assert len(session(stopped.pid)) == (1 if workers == 1 else 3)
    if how == "Ctrl-C":  # a terminal sends it to everybody
        os.killpg(stopped.pid, signal.SIGINT)
    else:
        stopped.send_signal(signal.Signals[how])
    _, errors = stopped.communicate(timeout=30)
    assert errors.count("Traceback") == (1 if how == "Ctrl-C" else 0), errors
    deadline = time.monotonic() + 10
    while session(stopped.pid):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.01)
    done = [json.loads(line) for line in journal[0].read_text().splitlines() if line[-1:] == "]"]
    assert 70 <= len(done) < 240
    # Spoil the files that the journal has: decoded once more, they would now be broken.
    for row, *_ in done:
        path = data / "HAM10000_images_part_1" / f"ISIC_{row:04d}.jpg"
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    resumed = prepare(data, DataConfig(prepared=str(tmp_path / "stopped"), image_size=64))
    assert resumed.fingerprint == whole.fingerprint
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_calls_at_once_build_one_store_and_answer_alike(tmp_path):
    data = write_data(tmp_path / "data", 120, side=400)
    code = CALL + (
        "path = next(Path(sys.argv[2]).glob('pixels-*/pixels.npy')); "
        "print(prepared.fingerprint, path.stat().st_ino, path.stat().st_mtime_ns)"
    )
    calls = [child(code, data, tmp_path / "out", 2) for _ in range(2)]
    answers = [call.communicate(timeout=60) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    assert {name for name in names if not name.startswith("pixels-")} == {
        "labels.csv",
        "audit.json",
        "audit.txt",
    }
    assert len(names) == 4


def test_a_full_disk_is_one_sentence_and_leaves_no_half_store(tmp_path):
    """A file size limit stands for the disk: writing fails with an OSError in the same places."""
    resource = pytest.importorskip("resource")
    data = write_data(tmp_path / "data", 20)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    outcome = in_fork(lambda: prepare(data, DataConfig(image_size=64)), limit)
    assert outcome == (
        f"DataError: cannot write 0.0 GB of pixels to {data}/prepared: no space left; make room or "
        "pass another folder as --output, in training as data.prepared"
    )
    assert not list((data / "prepared").glob("pixels-*"))


def in_fork(action: Callable[[], object], before: Callable[[], None]) -> str:
    """Run `action` in a forked child after `before`; return its error, or "done"."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads; we exec nothing
        pid = os.fork()
    if pid == 0:
        try:
            before()
            action()
            answer = "done"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


def as_stranger(folder: Path) -> Callable[[], None]:
    """Make the data read-only; return what turns a child into somebody who may not write it."""
    for path in [folder / "data", *(folder / "data").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o755)

    def before() -> None:
        os.chdir(folder)
        if os.geteuid() == 0:
            os.setuid(65534)

    return before


def writable_again(folder: Path) -> None:
    for path in [folder / "data", *(folder / "data").rglob("*")]:
        path.chmod(0o755)


def test_a_read_only_data_folder_says_so_and_names_the_way_out(tmp_path):
    write_data(tmp_path / "data", 4)
    before = as_stranger(tmp_path)
    assert in_fork(lambda: prepare(Path("data"), DataConfig(image_size=16)), before) == (
        "DataError: cannot write to data/prepared: permission denied; pass a folder that can be "
        "written as --output, in training as data.prepared"
    )
    writable_again(tmp_path)


def test_prepared_data_can_be_read_only(tmp_path):
    prepare(write_data(tmp_path / "data", 4), DataConfig(image_size=16))
    before = as_stranger(tmp_path)
    assert in_fork(lambda: prepare(Path("data"), DataConfig(image_size=16)), before) == "done"
    writable_again(tmp_path)


@pytest.mark.slow
def test_the_real_data_is_prepared_as_its_description_says(real_data, tmp_path):
    prepared = prepare(real_data, DataConfig(prepared=str(tmp_path), image_size=32))
    report = prepared.audit
    assert report.images == {
        "akiec": 327, "bcc": 514, "bkl": 1099, "df": 115, "mel": 1113, "nv": 6705, "vasc": 142,
    }  # fmt: skip
    assert report.lesions_with_several_images == 1956
    assert report.missing == {"age": 57, "sex": 57, "localization": 234, "lesion id": 0}
    problems = {(p.kind, p.severity): p.items for p in report.problems}
    assert len(problems["same_file", "information"]) == 2
    # The same photograph in two color castes, under two lesion ids: seen with the eye.
    assert [item[:12] for item in problems["near_duplicate", "warning"]] == ["ISIC_0025226"]
    assert report.stop_reason == ""
    started = time.perf_counter()
    prepare(real_data, DataConfig(prepared=str(tmp_path), image_size=32))
    assert time.perf_counter() - started < 3  # 0.4 s where nothing else runs


@pytest.mark.parametrize("damage", [b"", b"{", b"[[1, 2]]", b'[["no", "such", 1.0]]', b"\xff\xfe"])
@pytest.mark.parametrize("name", ["near_duplicates.json", "images.json", "thumbnails.npy"])
def test_damaged_files_beside_the_pixels_are_made_anew(tmp_path, name, damage):
    data = write_data(tmp_path / "data", 20)
    first = prepare(data, DataConfig(image_size=32))
    (path,) = (data / "prepared").glob(f"pixels-*/{name}")
    good = path.read_bytes()
    path.write_bytes(damage)
    again = prepare(data, DataConfig(image_size=32))
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == good


@pytest.mark.parametrize("name", ["labels.csv", "audit.json", "audit.txt"])
def test_damaged_texts_beside_the_data_are_written_anew(tmp_path, name):
    data = write_data(tmp_path / "data", 20)
    prepare(data, DataConfig(image_size=32))
    path = data / "prepared" / name
    good = path.read_bytes()
    path.write_bytes(good[:10] + b"\xff")
    prepare(data, DataConfig(image_size=32))
    assert path.read_bytes() == good

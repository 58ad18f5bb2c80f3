"""The folder of the page that needs no server: what is in it, and when it is written."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from dermalyze.export import web
from dermalyze.export.web import export_web
from serving.errors import ArtifactError, ConfigError, StorageError
from serving.predictor import Predictor

pytestmark = pytest.mark.slow


def test_the_folder_appears_whole_or_not_at_all(rich, tmp_path, monkeypatch):
    target = tmp_path / "page"

    def broken(*_):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(web, "_list_files", broken)
        with pytest.raises(StorageError, match="no space left"):
            export_web(rich, target)
    assert list(tmp_path.iterdir()) == []
    export_web(rich, target)
    before = (target / "service_worker.js").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(web, "_list_files", broken)
        with pytest.raises(StorageError, match="no space left"):
            export_web(rich, target)
    assert (target / "service_worker.js").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_folder_that_is_no_export_is_left_alone(rich, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        export_web(rich, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not empty and not an earlier export; choose another folder for the page"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_comes_into_the_folder_meanwhile_is_not_replaced(rich, tmp_path, monkeypatch):
    target = tmp_path / "page"

    def load(model):
        target.mkdir()
        (target / "report.html").write_text("of another command")
        return Predictor(model)

    monkeypatch.setattr(web, "Predictor", load)
    with pytest.raises(ConfigError, match="is not empty and not an earlier export"):
        export_web(rich, target)
    assert [path.name for path in target.iterdir()] == ["report.html"]


def test_a_runtime_that_is_not_the_known_one_is_refused(rich, tmp_path, monkeypatch):
    tarball = tmp_path / "x.tgz"
    tarball.write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"x\.tgz is not onnxruntime-web .* its digest differs"):
        export_web(rich, tmp_path / "page", runtime=tarball)
    (tmp_path / "dist").mkdir()
    with pytest.raises(ArtifactError, match=r"dist has no ort\.wasm\.bundle\.min\.mjs; expected"):
        export_web(rich, tmp_path / "page", runtime=tmp_path / "dist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="comes from npm, which is not installed; install"):
        export_web(rich, tmp_path / "page")


def test_the_page_may_reach_nothing_but_its_own_folder(rich_page):
    head = (rich_page / "index.html").read_text().split("</head>")[0]
    policy = head.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src &#x27;none&#x27;" in policy
    assert "http" not in policy
    kept = (rich_page / "service_worker.js").read_text().split("FILES = ")[1].split(";")[0]
    names = {path.name for path in rich_page.iterdir()} - {"service_worker.js", "index.html"}
    assert set(json.loads(kept)) == names | {"./"}


def test_what_was_there_comes_back_if_the_new_folder_cannot_take_its_place(
    rich, tmp_path, monkeypatch
):
    target = tmp_path / "page"
    export_web(rich, target)
    before = (target / "service_worker.js").read_bytes()
    real = Path.rename

    def rename(self, place):
        if self.name == "new":
            raise OSError("no")
        return real(self, place)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(StorageError, match="no"):
            export_web(rich, target)
    assert (target / "service_worker.js").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_what_no_export_has_written_is_never_lost(rich, tmp_path):
    target = tmp_path / "page"
    export_web(rich, target)
    export_web(rich, target)
    (target / ".git").mkdir()
    with pytest.raises(ConfigError) as caught:
        export_web(rich, target)
    assert str(caught.value) == (
        f"{target} holds .git, which is not from an earlier export; move it away, or choose "
        "another folder for the page"
    )
    assert (target / "model.onnx").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file is a file; choose a folder for the page"):
        export_web(rich, tmp_path / "file")


def test_a_runtime_of_another_version_is_refused(rich, rich_page, tmp_path):
    dist = tmp_path / "dist"
    dist.mkdir()
    for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copyfile(rich_page / name, dist / name)
    export_web(rich, tmp_path / "page", runtime=dist)
    bundle = dist / "ort.wasm.bundle.min.mjs"
    version = f"v{web.RUNTIME_VERSION}".encode()
    bundle.write_bytes(bundle.read_bytes().replace(version, b"v1.0.0", 1))
    with pytest.raises(ArtifactError, match=r"dist is not onnxruntime-web 1\.30\.0"):
        export_web(rich, tmp_path / "page", runtime=dist)


def test_a_runtime_that_npm_changed_is_neither_used_nor_kept(rich, tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho other > onnxruntime-web-1.30.0.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    cache = tmp_path / "cache" / "dermalyze"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    cache.mkdir(parents=True)
    (cache / f"onnxruntime-web-{web.RUNTIME_VERSION}.tgz").write_text("cut short")
    with pytest.raises(ArtifactError, match="npm sent another onnxruntime-web"):
        export_web(rich, tmp_path / "page")
    npm.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match=r"npm cannot fetch onnxruntime-web 1\.30\.0; check its"):
        export_web(rich, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_runtime_comes_with_its_license(rich_page):
    said = (rich_page / "ort.txt").read_text()
    assert f"onnxruntime-web {web.RUNTIME_VERSION}, under this license:" in said
    assert "Copyright (c) Microsoft Corporation" in said

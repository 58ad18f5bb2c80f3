"""An exported model -> a folder with a page that runs it in the browser, without a server.

The page is the service's own (`serving/http/static`), with `browser/backend.js` in the place of the
one that asks a service.  onnxruntime-web, which runs the model, comes from npm; checked by digest.
"""

import base64
import hashlib
import html
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from serving.atomic_write import PARTIAL, sync, whole_folder
from serving.errors import ArtifactError, ConfigError
from serving.http.model_info import describe
from serving.os_errors import make_folder, read_bounded, writing
from serving.predictor import Predictor
from serving.reference import REFERENCE, in_words

logger = logging.getLogger(__name__)

RUNTIME = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
_RUNTIME_SHA512 = (  # of npm's tarball
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
_RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_MAX_RUNTIME_BYTES = 2**28
_MARK = "dermalyze.json"  # tells an export from any other folder
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_HEAD = "<head>\n"


def export_web(model: Path, output: Path, *, runtime: Path | None = None) -> str:
    """Write the folder, whole or not at all; an earlier export at its place is replaced.

    Args:
        model: an ONNX file of `dermalyze export-onnx`.
        output: the folder.
        runtime: npm's tarball of onnxruntime-web, or its unpacked `dist`; None: npm fetches it.

    Returns:
        What was written, in words.

    Raises:
        ArtifactError: the model or the runtime cannot be used.
        ConfigError: the folder holds something else, or there is no npm.
    """
    _check_place(output)
    predictor = Predictor(model)
    if model == REFERENCE:
        logger.info(f"model: {in_words(model, predictor.spec)}")
    with whole_folder(output, keep=False) as made:
        _check_place(output)  # again, where no other command of ours can write to it
        _copy(resources.files("serving.http") / "static", made)
        _copy(resources.files("dermalyze.export") / "browser", made)
        _write_runtime(made, runtime)
        shutil.copyfile(model, made / "model.onnx")
        _write_json(made / "spec.json", json.loads(predictor.spec.to_json()))
        _write_json(made / "description.json", describe(predictor.spec))
        names = sorted([_MARK, *(file.name for file in made.iterdir())])
        mark = {"made_by": "dermalyze export-web", "run_id": predictor.spec.run_id, "files": names}
        _write_json(made / _MARK, mark)
        _add_policy(made / "index.html")
        _list_files(made)
        size = sum(file.stat().st_size for file in made.iterdir())
        for file in made.iterdir():
            sync(file)
        made.chmod(0o755)
    return (
        f"{len(names)} files, {size / 1e6:.1f} MB; put them on any web server, "
        f"or look at them here: python -m http.server --bind 127.0.0.1 --directory {output}"
    )


def _check_place(output: Path) -> None:
    """Refuse a place that holds what no export has written: the folder is replaced as a whole."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"{output} is a file; choose a folder for the page")
    found = {file.name for file in output.iterdir()} - {PARTIAL}  # which a kill has left
    if found and _MARK not in found:
        raise ConfigError(
            f"{output} is not empty and not an earlier export; choose another folder for the page"
        )
    if foreign := sorted(found - _files_of(output)):
        raise ConfigError(
            f"{output} holds {foreign[0]}, which is not from an earlier export; move it away, or "
            "choose another folder for the page"
        )


def _files_of(folder: Path) -> set[str]:
    """Name the files that an earlier export has written."""
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
        return set(mark["files"])
    except (OSError, ValueError, TypeError, KeyError):
        return {_MARK}


def _copy(source: Traversable, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file():
            (target / file.name).write_bytes(file.read_bytes())


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _add_policy(page: Path) -> None:
    """Let the page reach nothing but its own folder, whoever serves it."""
    text = page.read_text(encoding="utf-8")
    assert text.count(_HEAD) == 1, "a page without a policy must not leave"
    policy = html.escape(_POLICY, quote=True)
    tag = f'  <meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    page.write_text(text.replace(_HEAD, _HEAD + tag, 1), encoding="utf-8")


def _list_files(folder: Path) -> None:
    """Tell the service worker what to keep, under a name that changes with any of it."""
    worker = folder / "service_worker.js"
    names = sorted(file.name for file in folder.iterdir() if file != worker)
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    kept = json.dumps(["./", *(name for name in names if name != "index.html")])  # "./" is it
    text = worker.read_text(encoding="utf-8")
    text = text.replace("@DIGEST@", digest.hexdigest()[:16]).replace('["@FILES@"]', kept)
    worker.write_text(text, encoding="utf-8")


def _write_runtime(folder: Path, runtime: Path | None) -> None:
    if runtime is not None and runtime.is_dir():
        for name in _RUNTIME_FILES:
            if not (runtime / name).is_file():
                raise ArtifactError(
                    f"{runtime} has no {name}; expected the folder dist of {RUNTIME} "
                    f"{RUNTIME_VERSION}"
                )
            shutil.copyfile(runtime / name, folder / name)
        with (folder / _RUNTIME_FILES[0]).open("rb") as file:
            if f" v{RUNTIME_VERSION}\n".encode() not in file.read(200):  # its first comment
                raise ArtifactError(f"{runtime} is not {RUNTIME} {RUNTIME_VERSION}")
    else:
        _unpack(runtime if runtime is not None else _fetched(), folder)
    license_text = (resources.files("onnxruntime") / "LICENSE").read_text(encoding="utf-8")
    (folder / "ort.txt").write_text(
        f"ort* are files of {RUNTIME} {RUNTIME_VERSION}, under this license:\n\n{license_text}",
        encoding="utf-8",
    )


def _unpack(tarball: Path, folder: Path) -> None:
    """Take the runtime's files out of npm's tarball, if it is the one that we know."""
    try:
        content = read_bounded(tarball, _MAX_RUNTIME_BYTES)
    except OSError as error:
        raise ArtifactError(f"cannot read {tarball}: {error.strerror}") from error
    if not _is_known(content):
        raise ArtifactError(
            f"{tarball} is not {RUNTIME} {RUNTIME_VERSION} from npm: its digest differs; "
            f"get it with `npm pack {RUNTIME}@{RUNTIME_VERSION}`"
        )
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in _RUNTIME_FILES:
            file = archive.extractfile(f"package/dist/{name}")
            assert file is not None  # the digest is known
            (folder / name).write_bytes(file.read())


def _is_known(tarball: bytes) -> bool:
    return base64.b64encode(hashlib.sha512(tarball).digest()).decode() == _RUNTIME_SHA512


def _fetched() -> Path:
    """Return the tarball, fetched once with the user's npm and then kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dermalyze"
    kept = cache / f"{RUNTIME}-{RUNTIME_VERSION}.tgz"
    if kept.is_file() and _is_known(kept.read_bytes()):
        return kept
    by_hand = "or fetch it elsewhere and name the file with --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"{RUNTIME} comes from npm, which is not installed; install it, {by_hand}"
        )
    make_folder(cache)
    with writing(cache), tempfile.TemporaryDirectory(dir=cache) as folder:
        done = subprocess.run(
            [npm, "pack", "--silent", f"{RUNTIME}@{RUNTIME_VERSION}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        files = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(files) != 1:
            raise ConfigError(
                f"npm cannot fetch {RUNTIME} {RUNTIME_VERSION}; check its settings, {by_hand}"
            )
        if not _is_known(files[0].read_bytes()):  # never kept: it would be found again
            raise ArtifactError(
                f"npm sent another {RUNTIME} {RUNTIME_VERSION} than expected: its digest differs; "
                f"check its registry, {by_hand}"
            )
        files[0].replace(kept)
    return kept

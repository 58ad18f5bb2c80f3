"""The page that needs no server: what it answers is what Python answers."""

import json
import shutil

import numpy as np
import pytest
from browsers import Opened, chromium, files_of
from crafted import ORIENTATION, crafted, exif, saved
from PIL import Image
from rich_model import RICH, rich_bytes
from strangers import text

from dermalyze.export import web
from dermalyze.export.web import export_web
from serving import Predictor
from serving.errors import ArtifactError, ConfigError, DermalyzeError
from serving.metadata import Metadata

pytestmark = pytest.mark.slow

ANSWERED = {name: data for name, (data, answered) in crafted().items() if answered}
REFUSED = {name: data for name, (data, answered) in crafted().items() if not answered}
# Browsers turn inks into colors in a way of their own: the answer is one, but not Python's.
OTHERWISE = ("CMYK JPEG",)

PREDICT = """async ([text, options]) => {
  const backend = await import(new URL("backend.js", location.href));
  const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  try {
    return { answer: await backend.predict(new Blob([data]), options) };
  } catch (error) {
    return { error: error.message, known: error instanceof backend.BackendError };
  }
}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("rich") / "rich.onnx"
    path.write_bytes(rich_bytes())
    return path


@pytest.fixture(scope="module")
def predictor(model):
    return Predictor(model)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "page"
    export_web(model, folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(browser, folder):
    with files_of(folder) as address, Opened(browser, address) as page:
        yield page


def answer_of(page, data, **options):
    return page.evaluate(PREDICT, [text(data), options])


def assert_same(found, expected, difference):
    """Compare answers as JSON has them: words to the letter, numbers to the difference."""
    assert list(found) == list(expected)
    for key, value in expected.items():
        if key in ("probabilities", "logits") or isinstance(value, float):
            assert found[key] == pytest.approx(value, abs=difference), key
        elif key != "decision_reason":
            assert found[key] == value, key


@pytest.mark.parametrize("name", [name for name in ANSWERED if name not in OTHERWISE])
def test_an_image_of_any_kind_gets_pythons_answer(page, predictor, name):
    data = ANSWERED[name]
    expected = predictor.predict(data).to_dict()
    found = answer_of(page, data, explain=False)["answer"]
    # PNG is decoded here; of JPEG each decoder has its own rounding.
    kept_whole = data.startswith(b"\x89PNG")
    assert_same(found, expected, 1e-5 if kept_whole else 0.02)


def test_level_metadata_and_map_are_pythons(page, predictor):
    data = ANSWERED["one pixel"]
    for level, facts in ((0.8, {}), (0.95, {"age": "40", "sex": "male", "localization": "back"})):
        known = Metadata.of(facts)
        expected = predictor.predict(data, metadata=known, level=level).to_dict()
        found = answer_of(page, data, level=level, metadata=facts)["answer"]
        saliency = found.pop("saliency")
        np.testing.assert_allclose(saliency, predictor.explain(data).saliency, atol=1e-5)
        assert_same(found, expected, 1e-5)
        assert found["decision_reason"] == expected["decision_reason"]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_turned_as_its_tag_says(page, predictor, turn):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:10], pixels[10:, :15], pixels[10:, 15:] = (230, 60, 60), (60, 60, 230), (90, 200, 90)
    data = saved(Image.fromarray(pixels), "JPEG", exif=exif({ORIENTATION: turn}), quality=95)
    found = answer_of(page, data, explain=False)["answer"]
    assert_same(found, predictor.predict(data).to_dict(), 0.02)


@pytest.mark.parametrize("name", REFUSED)
def test_what_python_refuses_is_refused_with_the_same_sentence(page, predictor, name):
    with pytest.raises(DermalyzeError) as caught:
        predictor.predict(REFUSED[name])
    sentence = str(caught.value)
    found = answer_of(page, REFUSED[name])
    assert found == {"error": f"{sentence[0].upper()}{sentence[1:]}.", "known": True}


def test_every_decision_is_said_in_pythons_words(browser, tmp_path):
    """Answered, uncertain, out of scope by the score and by the photograph, no threshold at all."""
    from dataclasses import replace

    abstention = replace(RICH.abstention, min_confidence=1.01)
    specs = {"usual": RICH, "never": replace(RICH, abstention=abstention)}
    specs["far"] = replace(RICH, scope=replace(RICH.scope, max_score=1e-4), quality=None)
    images = [png_up_to(high) for high in (24, 60, 100, 160, 220, 250)]
    decisions = set()
    for name, spec in specs.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(rich_bytes(spec))
        export_web(path, tmp_path / name)
        predictor = Predictor(path)
        with files_of(tmp_path / name) as address, Opened(browser, address) as page:
            for data in images:
                expected = predictor.predict(data).to_dict()
                found = answer_of(page, data, explain=False)["answer"]
                assert_same(found, expected, 1e-5)
                assert found["decision_reason"] == expected["decision_reason"]
                decisions.add((name, expected["decision"]))
    assert len(decisions) >= 5


def png_up_to(high):
    pixels = np.random.default_rng(high).integers(20, high, (45, 60, 3)).astype(np.uint8)
    return saved(Image.fromarray(pixels), "PNG")


def test_once_loaded_it_works_without_a_network_and_a_new_export_takes_over(
    browser, model, tmp_path, predictor
):
    data = png_up_to(220)
    folder = tmp_path / "page"
    export_web(model, folder)
    with files_of(folder) as address:
        opened = Opened(browser, address)
        with opened as page:
            page.evaluate("navigator.serviceWorker.ready.then(() => true)")
            opened.context.set_offline(True)
            page.reload()
            page.get_by_text("Model of run").wait_for()
            expected = predictor.predict(data).to_dict()
            assert_same(answer_of(page, data, explain=False)["answer"], expected, 1e-5)
            opened.context.set_offline(False)
            (folder / "icon.svg").unlink()
            path = tmp_path / "other.onnx"
            from dataclasses import replace

            path.write_bytes(rich_bytes(replace(RICH, run_id="another")))
            export_web(path, folder)
            page.reload()  # shows what was kept, and fetches what is new
            for _ in range(100):
                page.wait_for_timeout(100)
                page.reload()
                page.get_by_text("Model of run").wait_for()
                if page.get_by_text("Model of run another.").count():
                    break
            else:
                raise AssertionError("the old export is still shown")


def test_the_folder_appears_whole_or_not_at_all(model, tmp_path, monkeypatch):
    target = tmp_path / "page"

    def broken(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(web, "_list_files", broken)
        with pytest.raises(OSError, match="no space left"):
            export_web(model, target)
    assert list(tmp_path.iterdir()) == []
    export_web(model, target)
    before = (target / "service_worker.js").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(web, "_list_files", broken)
        with pytest.raises(OSError, match="no space left"):
            export_web(model, target)
    assert (target / "service_worker.js").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_folder_that_is_no_export_is_left_alone(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        export_web(model, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is not empty and no earlier export; choose another folder for the page"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_runtime_that_is_not_the_known_one_is_refused(model, tmp_path, monkeypatch):
    tarball = tmp_path / "x.tgz"
    tarball.write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"x\.tgz is not onnxruntime-web .* its digest differs"):
        export_web(model, tmp_path / "page", runtime=tarball)
    (tmp_path / "dist").mkdir()
    with pytest.raises(ArtifactError, match=r"dist has no ort\.wasm\.bundle\.min\.mjs; expected"):
        export_web(model, tmp_path / "page", runtime=tmp_path / "dist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="comes from npm, which is not installed; install"):
        export_web(model, tmp_path / "page")


def test_the_page_may_reach_nothing_but_its_own_folder(folder):
    head = (folder / "index.html").read_text().split("</head>")[0]
    policy = head.split('http-equiv="Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src &#x27;none&#x27;" in policy
    assert "http" not in policy
    kept = (folder / "service_worker.js").read_text().split("FILES = ")[1].split(";")[0]
    names = {path.name for path in folder.iterdir()} - {"service_worker.js", "index.html"}
    assert set(json.loads(kept)) == names | {"./"}

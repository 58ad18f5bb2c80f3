"""The page that needs no server: what it answers is what Python answers."""

import contextlib
import gzip
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import pytest
from browsers import Opened, files_of
from crafted import ORIENTATION, crafted, exif, saved
from PIL import Image
from rich_model import RICH, rich_bytes
from servers import wait_for
from strangers import text
from tiny_model import TINY_ONNX

from dermalyze.export.web import export_web
from serving import Predictor
from serving.errors import DermalyzeError
from serving.metadata import Metadata
from serving.reference import REFERENCE

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
def predictor(rich):
    return Predictor(rich)


@pytest.fixture(scope="module")
def page(browser, rich_page):
    with files_of(rich_page) as address, Opened(browser, address) as page:
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


@pytest.mark.parametrize("sensitivity", [0.8, 0.85, 0.95, 0.975])
def test_the_referral_and_its_reason_are_pythons(page, predictor, sensitivity):
    for high in (24, 60, 100, 160, 220, 250):
        expected = predictor.predict(png_up_to(high), sensitivity=sensitivity).to_dict()
        found = answer_of(page, png_up_to(high), sensitivity=sensitivity, explain=False)["answer"]
        assert_same(found, expected, 1e-5)
        assert found["referral_reason"] == expected["referral_reason"]


def test_a_sensitivity_that_no_model_has_is_refused_with_pythons_sentence(page, predictor):
    with pytest.raises(DermalyzeError) as caught:
        predictor.predict(png_up_to(220), sensitivity=1)
    sentence = str(caught.value).replace("got 1", "got 1.0")  # JavaScript has one kind of number
    found = answer_of(page, png_up_to(220), sensitivity=1)
    assert found == {"error": f"{sentence[0].upper()}{sentence[1:]}.", "known": True}


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


def test_a_model_that_has_nothing_but_classes_gets_pythons_answer(browser, tmp_path):
    export_web(TINY_ONNX, tmp_path / "page")
    data, predictor = png_up_to(220), Predictor(TINY_ONNX)
    with files_of(tmp_path / "page") as address, Opened(browser, address) as page:
        found = answer_of(page, data)
        assert_same(found["answer"], predictor.predict(data).to_dict(), 1e-5)
        with pytest.raises(DermalyzeError) as caught:
            predictor.predict(data, metadata=Metadata(age=40))
        found = answer_of(page, data, metadata={"age": "40"})
    sentence = str(caught.value)
    assert found == {"error": f"{sentence[0].upper()}{sentence[1:]}.", "known": True}


@pytest.mark.parametrize(
    "facts",
    [{"age": age} for age in (" ", "Unknown", " 40 ", "4e1", "0x10", "abc", "-1", "121", 120)]
    + [{"age": age} for age in ("N/A", "4_5")]
    + [{"sex": sex} for sex in (" MALE ", "UNKNOWN", "other", "-", "None", "<NA>")],
)
def test_metadata_are_read_as_python_reads_them(page, predictor, facts):
    data = ANSWERED["one pixel"]
    found = answer_of(page, data, metadata=facts, explain=False)
    try:
        expected = predictor.predict(data, metadata=Metadata.of(facts))
    except DermalyzeError as error:
        sentence = str(error)
        assert found == {"error": f"{sentence[0].upper()}{sentence[1:]}.", "known": True}
    else:
        assert_same(found["answer"], expected.to_dict(), 1e-5)


def test_numbers_between_two_are_written_as_python_writes_them(browser, tmp_path):
    data = png_up_to(220)
    for i, (risk, confidence, score) in enumerate(
        [(0.025, 0.3125, 99.0), (0.125, 0.0625, 99.0), (0.1, 0.5, -100.5), (0.1, 0.5, -12.25)]
    ):
        spec = replace(
            RICH,
            abstention=replace(RICH.abstention, risk=risk, min_confidence=confidence),
            scope=replace(RICH.scope, max_score=score),
            quality=None,
        )
        path = tmp_path / f"{i}.onnx"
        path.write_bytes(rich_bytes(spec))
        export_web(path, tmp_path / str(i))
        with files_of(tmp_path / str(i)) as address, Opened(browser, address) as page:
            found = answer_of(page, data, explain=False)["answer"]
        assert found["decision_reason"] == Predictor(path).predict(data).decision_reason


def test_an_aborted_question_ends_at_once_as_the_platform_says_it(page):
    asked = """async ([text, before]) => {
      const backend = await import(new URL("backend.js", location.href));
      const data = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      const stop = new AbortController();
      if (before) stop.abort();
      const answered = backend.predict(new Blob([data]), { signal: stop.signal });
      stop.abort();
      try {
        await answered;
        return "answered";
      } catch (error) {
        return [error.name, error instanceof DOMException];
      }
    }"""
    for before in (True, False):
        assert page.evaluate(asked, [text(png_up_to(99)), before]) == ["AbortError", True]
    assert "answer" in answer_of(page, png_up_to(99))


def test_a_model_that_cannot_be_run_is_told_in_words(browser, rich, tmp_path):
    export_web(rich, tmp_path / "page")
    (tmp_path / "page" / "model.onnx").write_bytes(b"no model")
    with files_of(tmp_path / "page") as address:
        page = browser.new_context().new_page()
        page.goto(address)
        page.get_by_text(
            "This browser cannot run the model; load the page again, or try a newer one."
        ).wait_for()
        page.context.close()


def test_an_isolated_page_uses_more_threads_and_answers_the_same(browser, rich_page, predictor):
    apart = {"Cross-Origin-Opener-Policy": "same-origin"}
    apart["Cross-Origin-Embedder-Policy"] = "require-corp"
    data = png_up_to(220)
    with files_of(rich_page, headers=apart) as address, Opened(browser, address) as page:
        assert page.evaluate("crossOriginIsolated")
        found = answer_of(page, data, explain=False)["answer"]
    assert_same(found, predictor.predict(data).to_dict(), 1e-5)


def test_once_loaded_it_works_without_a_network_and_a_new_export_takes_over(
    browser, rich, tmp_path, predictor
):
    data = png_up_to(220)
    folder = tmp_path / "page"
    export_web(rich, folder)
    # Many hosts answer by what is accepted; what was kept must be found all the same.
    headers = {"Vary": "Accept, Origin"}
    with contextlib.ExitStack() as opened:
        with files_of(folder, headers=headers) as address:
            page = opened.enter_context(Opened(browser, address))
            page.evaluate("navigator.serviceWorker.ready.then(() => true)")
            (kept,) = page.evaluate("caches.keys()")
        page.reload()  # the server has ended: Chromium's own "offline" would outlast its end
        page.get_by_text("Model of run").wait_for()
        expected = predictor.predict(data).to_dict()
        assert_same(answer_of(page, data, explain=False)["answer"], expected, 1e-5)
        page.goto(f"{address}index.html")
        page.get_by_text("Model of run").wait_for()
        (folder / "icon.svg").unlink()
        path = tmp_path / "other.onnx"
        path.write_bytes(rich_bytes(replace(RICH, run_id="another")))
        export_web(path, folder)
        with files_of(folder, headers=headers, port=urlsplit(address).port):
            page.goto(address)  # shows what was kept, and fetches what is new
            wait_for(lambda: kept not in page.evaluate("caches.keys()"), seconds=60)
            page.reload()
            page.get_by_text("Model of run another.").wait_for()


def test_the_page_of_the_reference_model_answers_offline_and_is_small(browser, tmp_path):
    export_web(REFERENCE, tmp_path / "page")
    sent = sum(len(gzip.compress(file.read_bytes())) for file in (tmp_path / "page").iterdir())
    assert sent <= 16e6
    data = ANSWERED["one pixel"]
    with files_of(tmp_path / "page") as address, Opened(browser, address) as page:
        found = answer_of(page, data, explain=False)["answer"]
    assert_same(found, Predictor().predict(data).to_dict(), 1e-4)

"""The page in a real browser: each of its actions, at two widths."""

import csv
import io
import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browsers import SIZES, Opened, files_of
from PIL import Image
from rich_model import RICH
from services import service
from strangers import text

from serving import Predictor
from serving.ham10000_taxonomy import HAM10000
from serving.metadata import Metadata
from serving.taxonomy import DISCLAIMER

pytestmark = pytest.mark.slow


def png_of(seed, high, size=(45, 60)):
    """A PNG of noise up to `high`, which is what the rich model decides by."""
    pixels = np.random.default_rng(seed).integers(20, high, (*size, 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


PHOTOGRAPHS = {  # name -> bytes, and the decision that the model comes to
    "answer.png": (png_of(3, 220), "Answer"),
    "uncertain.png": (png_of(1, 100), "Uncertain"),
    "dull.png": (png_of(0, 24), "Out of scope"),
}


@pytest.fixture(scope="module")
def predictor(rich):
    return Predictor(rich)


@pytest.fixture(scope="module")
def served(rich, tmp_path_factory):
    bounds = ["--max-body-bytes", 50_000]
    with service(tmp_path_factory.mktemp("page"), *bounds, model=rich) as own:
        yield f"http://127.0.0.1:{own.port}/"


@pytest.fixture(scope="module")
def static(rich_page):
    with files_of(rich_page) as address:
        yield address


@pytest.fixture(params=["served", "static"])
def address(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=list(SIZES))
def page(request, browser, address):
    """The page, loaded; afterwards nothing went to another host or against its policy."""
    width, height = SIZES[request.param]
    with Opened(browser, address, viewport={"width": width, "height": height}) as page:
        yield page


def choose(page, *names, field="#files"):
    files = [file_of(name) for name in names]
    before = page.locator(".card").count()
    page.set_input_files(field, files)
    settled(page, before + len(names))


def file_of(name):
    data, _ = PHOTOGRAPHS.get(name, (b"SECRET", ""))
    return {"name": name, "mimeType": "image/png", "buffer": data}


def settled(page, count):
    page.locator(".card[aria-busy=false]").nth(count - 1).wait_for()
    assert page.locator(".card").count() == count


def card_of(page, name):
    return page.locator(".card").filter(has=page.get_by_role("heading", name=name, exact=True))


def test_each_photograph_gets_all_that_the_model_says(page, predictor):
    choose(page, *PHOTOGRAPHS)
    for name, (data, decision) in PHOTOGRAPHS.items():
        card, answer = card_of(page, name), predictor.predict(data)
        text = card.inner_text()
        rows = card.locator("tr")
        assert rows.count() == 7
        for i, (label, prob) in enumerate(answer.probabilities.items()):
            row = rows.nth(i).inner_text()
            assert HAM10000.description(label) in row
            assert f"{100 * prob:.1f} %" in row
            bar, cell = (rows.nth(i).locator(part).bounding_box() for part in (".fill", ".bar"))
            assert bar["width"] == pytest.approx(max(1, prob * cell["width"]), abs=1.5)
        assert f"{decision}: {answer.decision_reason}." in text
        said = ", ".join(HAM10000.description(label) for label in answer.prediction_set)
        assert f"Prediction set, right for 90 % of each class: {said}." in text
        assert answer.set_note in text
        assert all(hint in text for hint in answer.quality)
        assert DISCLAIMER in text
    assert DISCLAIMER in page.locator("header").inner_text()
    assert "3 photographs shown." in page.get_by_role("status").inner_text()


def test_the_map_lies_over_the_photograph_and_follows_the_slider(page, predictor):
    choose(page, "answer.png")
    picture, drawn = page.locator(".frame img"), page.locator("canvas.map")
    for side in ("x", "y", "width", "height"):
        assert drawn.bounding_box()[side] == pytest.approx(picture.bounding_box()[side], abs=1)
    slider = page.get_by_label("Strength of the map")
    for _ in range(100):
        slider.press("ArrowLeft")
    assert drawn.evaluate("canvas => canvas.style.opacity") == "0"
    slider.press("End")
    assert drawn.evaluate("canvas => canvas.style.opacity") == "1"
    # The most evidence of the map is where its most opaque pixel is: of 2 x 2 quarters.
    saliency = predictor.explain(PHOTOGRAPHS["answer.png"][0]).saliency
    row, column = np.unravel_index(saliency.argmax(), saliency.shape)
    corners = drawn.evaluate(
        """canvas => {
          const pen = canvas.getContext("2d"), w = canvas.width - 1, h = canvas.height - 1;
          return [[0, 0], [w, 0], [0, h], [w, h]].map(([x, y]) =>
            pen.getImageData(x, y, 1, 1).data[3]);
        }"""
    )
    assert int(np.argmax(corners)) == 2 * row + column


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_photographs_may_be_dropped_and_pasted(page, how):
    page.evaluate(
        """([how, names, texts]) => {
          const data = new DataTransfer();
          texts.forEach((text, i) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            data.items.add(new File([bytes], names[i], {type: "image/png"}));
          });
          const event = how === "drop"
            ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
          document.body.dispatchEvent(event);
        }""",
        [how, ["one.png"], [text(PHOTOGRAPHS["answer.png"][0])]],
    )
    settled(page, 1)
    assert "Answer:" in card_of(page, "one.png").inner_text()


def test_a_photograph_may_be_taken(page):
    assert page.locator("#camera").get_attribute("capture") == "environment"
    choose(page, "answer.png", field="#camera")
    assert "Answer:" in page.locator(".card").inner_text()


def test_level_and_metadata_count_for_the_photographs_that_follow(page, predictor):
    choose(page, "uncertain.png")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("The prediction set contains the true class for").select_option("95 %")
    page.get_by_label("The referral flag finds").select_option("80 %")
    page.get_by_label("Age in years").fill("71")
    page.get_by_label("Sex").select_option("male")
    page.get_by_label("Site").select_option("back")
    choose(page, "uncertain.png")
    data = PHOTOGRAPHS["uncertain.png"][0]
    known = Metadata(age=71, sex="male", localization="back")
    first = predictor.predict(data)
    second = predictor.predict(data, metadata=known, level=0.95, sensitivity=0.8)
    assert first.confidence != pytest.approx(second.confidence, abs=0.01)
    for i, (answer, level) in enumerate(((first, "90 %"), (second, "95 %"))):
        text = page.locator(".card").nth(i).inner_text()
        assert f"{100 * answer.confidence:.1f} %" in text
        said = ", ".join(HAM10000.description(name) for name in answer.prediction_set)
        assert f"Prediction set, right for {level} of each class: {said}." in text
        assert ("Refer: " if answer.referral else "No referral: ") in text
        assert f"{answer.referral_reason}." in text


def test_what_is_saved_is_what_was_answered(page, predictor):
    choose(page, *PHOTOGRAPHS, "=broken,.png")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(download.value.path().read_text())
    for row, (name, (data, _)) in zip(saved, PHOTOGRAPHS.items(), strict=False):
        assert row.pop("image") == name
        assert row.pop("probabilities") == pytest.approx(
            predictor.predict(data).probabilities, abs=1e-3
        )
        assert row["disclaimer"] == DISCLAIMER
        assert "saliency" not in row
    assert saved[3]["error"].startswith("Not a JPEG or PNG image")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "dermalyze.csv"
    text = download.value.path().read_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["image"] for row in rows] == [*PHOTOGRAPHS, "'=broken,.png"]
    for row, (data, decision) in zip(rows, PHOTOGRAPHS.values(), strict=False):
        answer = predictor.predict(data)
        assert float(row["prob_mel"]) == pytest.approx(answer.probabilities["mel"], abs=1e-3)
        assert row["prediction_set"] == "; ".join(answer.prediction_set)
        assert row["decision"] == decision.lower().replace(" ", "_")
    assert {row["disclaimer"] for row in rows} == {DISCLAIMER}


def test_a_printed_page_has_the_answers_and_no_buttons(page, predictor):
    choose(page, "answer.png")
    name = predictor.predict(PHOTOGRAPHS["answer.png"][0]).predicted_class_description
    page.emulate_media(media="print")
    for part in (".drop", "#tools", ".remove", ".strength", "#options", "#choose-title", "#words"):
        assert not page.locator(part).first.is_visible()
    for part in (".card table", ".card canvas", ".card .disclaimer"):
        assert page.locator(part).first.is_visible()
    legend = f"The lighter the map, the more evidence for {name}; without color: none."
    assert page.get_by_text(legend).is_visible()
    page.emulate_media(media="screen")
    page.evaluate("window.print = () => { document.title = 'printed'; }")
    page.get_by_role("button", name="Print").click()
    assert page.title() == "printed"


def test_what_is_removed_is_gone_and_the_focus_stays_on_the_page(page):
    choose(page, *PHOTOGRAPHS)
    page.get_by_role("button", name="Remove uncertain.png").click()
    assert [h.inner_text() for h in page.locator(".card h3").all()] == ["answer.png", "dull.png"]
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Remove dull.png"
    page.get_by_role("button", name="Remove all").click()
    assert page.locator(".card").count() == 0
    assert page.get_by_text("No results yet.").is_visible()
    assert page.evaluate("document.activeElement.id") == "results"


def test_a_file_that_is_no_photograph_is_told_and_does_not_stop_the_others(page):
    choose(page, "answer.png", "text.png", "uncertain.png")
    card = card_of(page, "text.png")
    assert "Not a JPEG or PNG image (6 bytes)." in card.inner_text()
    assert card.locator("img").count() == 0
    assert "3 photographs shown, 1 of them without an answer." in (
        page.get_by_role("status").inner_text()
    )


def test_the_keyboard_reaches_everything_in_order(page):
    choose(page, "answer.png")
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.type ||"
                " document.activeElement.tagName"
            )
        )
    expected = ["A", "files", "camera", "SUMMARY", "save-json", "save-csv", "print", "clear"]
    assert list(dict.fromkeys(name for name in seen if name in expected)) == expected
    assert "range" in seen
    for name in ("files", "save-json"):  # and one sees where one is
        page.locator(f"#{name}").focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        outlined = f"label[for={name}]" if name == "files" else f"#{name}"
        style = page.locator(outlined).evaluate("part => getComputedStyle(part).outlineStyle")
        assert style == "solid", name


def test_nothing_is_wider_than_the_screen(page):
    choose(page, *PHOTOGRAPHS, "text.png")
    page.get_by_text("Options", exact=True).click()
    page.get_by_text("What the words mean").click()
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_against_wcag(browser, address, scheme):
    with Opened(browser, address, color_scheme=scheme) as page:
        choose(page, *PHOTOGRAPHS, "text.png")
        page.get_by_text("Options", exact=True).click()
        page.get_by_text("What the words mean").click()
        page.wait_for_timeout(500)  # the bars have grown
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = Axe().run(page, options={"runOnly": tags})
        assert found.violations_count == 0, found.generate_report()
        assert found.response["passes"]


def test_axe_finds_a_label_that_is_missing(browser, address):
    with Opened(browser, address) as page:
        page.evaluate("document.querySelector('label[for=level]').remove()")
        page.get_by_text("Options", exact=True).click()
        assert Axe().run(page).violations_count > 0


def test_nothing_moves_for_those_who_do_not_want_it(browser, address):
    with Opened(browser, address, reduced_motion="reduce") as page:
        choose(page, "answer.png")
        style = "bar => getComputedStyle(bar).transitionDuration"
        assert page.locator(".fill").first.evaluate(style) in ("0s", "")


def test_a_cancelled_upload_leaves_nothing_behind(browser, served):
    with Opened(browser, served) as page:
        choose(page, "answer.png")
        held = []
        page.route("**/predict*", lambda route: held.append(route))
        page.set_input_files("#files", [file_of(name) for name in [*PHOTOGRAPHS] * 4])
        page.get_by_text("1 of 13 photographs answered.").or_(
            page.get_by_text("0 of 12 photographs answered.")
        ).wait_for()
        assert page.locator("progress").is_visible()
        page.get_by_role("button", name="Cancel").click()
        settled(page, 1)
        assert not page.locator("progress").is_visible()
        assert "1 photograph shown." in page.get_by_role("status").inner_text()
        page.set_input_files("#files", [file_of("uncertain.png")])
        page.get_by_text("0 of 1 photographs answered.").wait_for()
        held[-1].continue_()
        settled(page, 2)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (413, "The photograph is larger than this service takes. Send a smaller one."),
        (504, "The service took too long. Try again, or send a smaller photograph."),
        (500, "The service failed; see the server's log."),
        (502, "The service failed (502). Try again later."),
        (None, "The service does not answer. Is it still running, and is there a network?"),
    ],
)
def test_errors_of_the_service_are_told_in_human_words(browser, served, status, sentence):
    messages = {500: json.dumps({"message": "the service failed; see the server's log"})}

    def answer(route):
        if status is None:
            route.abort()
        else:
            route.fulfill(status=status, body=messages.get(status, "<html>"))

    with Opened(browser, served) as page:
        page.route("**/predict*", answer)
        choose(page, "answer.png")
        assert sentence in page.locator(".card").inner_text()


def test_a_photograph_over_the_bound_is_told(browser, served):
    with Opened(browser, served) as page:
        large = {"name": "large.png", "mimeType": "image/png", "buffer": png_of(0, 250, (300, 300))}
        page.set_input_files("#files", [large])
        settled(page, 1)
        assert "larger than this service takes" in page.locator(".card").inner_text()


def test_a_busy_service_is_asked_again(browser, served):
    times = []

    def answer(route):
        times.append(route)
        if len(times) < 3:
            route.fulfill(status=503, headers={"retry-after": "0.1"}, body="{}")
        else:
            route.continue_()

    with Opened(browser, served) as page:
        page.route("**/predict*", answer)
        choose(page, "answer.png")
        assert "Answer:" in page.locator(".card").inner_text()
    assert len(times) == 3


def test_a_service_with_a_key_asks_for_it(browser, rich, tmp_path):
    with service(tmp_path, model=rich, DERMALYZE_API_KEY="right") as own:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{own.port}/")
        field = page.get_by_label("This service requires an API key")
        for key in ("wrong", "right"):
            field.wait_for()
            field.fill(key)
            page.get_by_role("button", name="Use this key").click()
        page.get_by_text(re.compile(f"Model of run {RICH.run_id}")).wait_for()
        choose(page, "answer.png")
        assert "Answer:" in page.locator(".card").inner_text()
        page.close()

"""The report of an audit, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from boxloss.cli import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

HOSTILE = "</script><script>alert(1)</script>\"'`<img src=x onerror=alert(2)>{{ 7 * 7 }}"
CLASSES = ["cat", "dog", HOSTILE]
NAMES = ["a.jpg", 'b"><img src=x onerror=alert(3)>.jpg', "c&amp;.jpg"]


@dataclass
class Tab:
    """A tab with a report, and all that went wrong or out in it."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def shown(self) -> list[dict[str, Any]]:
        """What the visible cards are about, in their order."""
        found: list[dict[str, Any]] = self.page.eval_on_selector_all(
            ".card:not([hidden])", "cards => cards.map(card => ({...card.dataset, text: card.innerText}))"
        )
        return found

    def kinds(self) -> list[str]:
        return [card["kind"] for card in self.shown()]

    def card(self, kind: str) -> Any:
        """The first card of a kind."""
        return self.page.locator(f".card[data-kind={kind}]").first

    def chip(self, kind: str) -> Any:
        """The switch of a kind."""
        return self.page.locator("label.chip", has_text=kind)

    def downloaded(self, into: Path) -> list[dict[str, Any]]:
        """The findings in the file that the button gives."""
        with self.page.expect_download() as waiting:
            self.page.get_by_role("button", name="Download accepted").click()
        assert waiting.value.suggested_filename == "accepted.json"
        waiting.value.save_as(into)
        found: list[dict[str, Any]] = json.loads(into.read_text())["findings"]
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium's sandbox does not work for root, as whom tests run in containers.
        chromium = started.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=os.geteuid() != 0)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels with mistakes, predictions, pictures and reports."""
    root = tmp_path_factory.mktemp("<b>audit & 'more'")
    rng = np.random.default_rng(0)
    boxes = [(3, [20, 20, 60, 60]), (1, [120, 20, 60, 60]), (2, [20, 120, 60, 60]), (2, [120, 120, 60, 60])]
    annotations = [
        {"id": image * 10 + number, "image_id": image, "category_id": category, "bbox": box}
        for image in range(3)
        for number, (category, box) in enumerate(boxes)
    ]
    annotations.append({"id": 99, "image_id": 2, "category_id": 1, "bbox": [280, 180, 40, 40]})
    labels = {
        "images": [{"id": n, "file_name": name, "width": 300, "height": 200} for n, name in enumerate(NAMES)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
        "annotations": annotations,
    }
    results = [
        {"image_id": image, "category_id": category, "bbox": [*(np.array(box) + rng.integers(0, 5, 4)).tolist()]}
        | {"score": round(0.9 - image / 10, 2)}
        for image in range(3)
        for category, box in [(3, boxes[0][1]), (2, boxes[1][1]), (2, boxes[2][1]), (1, [220, 20, 60, 60])]
    ]
    (root / "labels.json").write_text(json.dumps(labels))
    (root / "results.json").write_text(json.dumps(results))
    (root / "pictures").mkdir()
    for name in NAMES[:2]:
        Picture.fromarray(rng.integers(0, 255, (100, 150, 3), "u1")).save(root / "pictures" / name)
    _audit(root, "blank.html", "--output", root / "all.json")
    _audit(root, "pictures.html", "--images", root / "pictures")
    return root


def _audit(root: Path, report: str, *options: object) -> None:
    files = ["--labels", root / "labels.json", "--predictions", root / "results.json", "--report", root / report]
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, [*files, *options])])
    assert not ended.value.code


@pytest.fixture(params=["blank.html", "pictures.html"])
def tab(browser: Any, folder: Path, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A fresh tab; at the end nothing was complained of, and nothing asked of a network."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    opened = Tab(context.new_page())
    opened.page.on("console", lambda message: opened.said.append(message.text))
    opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.said.append(dialog.message))
    opened.page.on("request", lambda asked: opened.asked.append(asked.url))
    address = (folder / request.param).as_uri()
    opened.page.goto(address)
    yield opened
    context.close()
    assert opened.said == []
    assert {url for url in opened.asked if not url.startswith(("data:", "blob:"))} == {address}


# What it shows


def test_all_findings_are_drawn_and_named(tab: Tab, folder: Path) -> None:
    found = json.loads((folder / "all.json").read_text())["findings"]
    assert len(tab.shown()) == len(found) == 16
    assert set(tab.kinds()) == {"missing", "spurious", "bad_location", "wrong_class", "outside"}
    scores = [float(card["score"]) for card in tab.shown()]
    assert scores == sorted(scores, reverse=True)
    for kind, label, prediction in (
        ("missing", 0, 1),
        ("spurious", 1, 0),
        ("wrong_class", 1, 1),
        ("outside", 1, 0),
    ):
        card = tab.card(kind)
        assert card.locator("rect.label").count() == label
        assert card.locator("rect.prediction").count() == prediction
    assert "The model sees cat here (score 0.90), and there is no label." in tab.card("missing").inner_text()
    assert "cat to dog" in tab.card("wrong_class").inner_text()
    assert tab.page.locator(".tile.strong b").inner_text() == "16"


def test_boxes_are_drawn_where_they_are(tab: Tab, folder: Path) -> None:
    """The missing cat of the first image is near its right edge, where the scene ends."""
    x, _, width, height = json.loads((folder / "results.json").read_text())[3]["bbox"]
    card = tab.card("missing")
    scene, sheet, box = (card.locator(name).bounding_box() for name in (".scene", "rect.sheet", "rect.prediction"))
    assert [sheet[side] for side in ("x", "width")] == pytest.approx([scene[side] for side in ("x", "width")], abs=1)
    line = 2.5  # Pixels by which the drawn box is larger than itself.
    gap = sheet["x"] + sheet["width"] - box["x"] - box["width"]
    assert (box["height"] - line) / (box["width"] - line) == pytest.approx(height / width, rel=0.02)
    assert (gap + line / 2) / (box["width"] - line) == pytest.approx((300 - x - width) / width, abs=0.05)


def test_pictures_are_drawn_where_there_are(tab: Tab, folder: Path) -> None:
    loaded = tab.page.evaluate(
        """() => Promise.all([...document.querySelectorAll("image")].map((image) => new Promise((done) => {
          const copy = new Image();
          copy.onload = () => done(copy.naturalWidth > 0);
          copy.onerror = () => done(false);
          copy.src = image.getAttribute("href");
        })))"""
    )
    wanted = 0 if tab.page.url.endswith("blank.html") else sum("c&" not in card["text"] for card in tab.shown())
    assert loaded == [True] * wanted


def test_hostile_names_are_shown_as_they_are(tab: Tab) -> None:
    texts = " ".join(card["text"] for card in tab.shown())
    assert HOSTILE in texts
    for name in NAMES:
        assert name in texts
    assert "49" not in tab.page.locator("#class").inner_text()
    assert tab.page.locator("#class option", has_text=HOSTILE).count() == 1
    assert tab.page.locator("img").count() == 0
    assert tab.page.locator("script").count() == 2
    assert "<b>audit & 'more'" in tab.page.locator(".sources").inner_text()


def test_the_browser_itself_forbids_the_network(browser: Any, folder: Path) -> None:
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((folder / "blank.html").as_uri())
    for attempt in (
        "fetch('http://127.0.0.1:9/')",
        "new Promise((done) => { const i = new Image(); i.onerror = done; i.src = 'http://127.0.0.1:9/x.png'; })",
        "eval('1')",
    ):
        page.evaluate(f"() => {{ try {{ return Promise.resolve({attempt}).catch(() => 0) }} catch {{}} }}")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in text for text in said) >= 3
    page.close()


# Filters and order


def test_kinds_can_be_left_out(tab: Tab) -> None:
    tab.chip("Bad location").click()
    assert "bad_location" not in tab.kinds()
    assert tab.page.locator("#status").inner_text() == f"{len(tab.shown())} of 16 shown, 0 accepted"
    for kind in ("Missing label", "Spurious label", "Wrong class", "Outside its image"):
        tab.chip(kind).click()
    assert tab.shown() == []
    assert tab.page.get_by_text("No finding fits these filters.").is_visible()
    tab.chip("Outside its image").click()
    assert tab.kinds() == ["outside"]


def test_a_class_can_be_chosen(tab: Tab) -> None:
    tab.page.locator("#class").select_option(label=HOSTILE)
    shown = tab.shown()
    assert shown
    assert all(HOSTILE in card["text"] for card in shown)
    tab.page.locator("#class").select_option("")
    assert len(tab.shown()) == 16


def test_a_least_score_can_be_set(tab: Tab) -> None:
    everything = [float(card["score"]) for card in tab.shown()]
    tab.page.get_by_label("Least score").fill("0.8")
    assert [float(card["score"]) for card in tab.shown()] == [score for score in everything if score >= 0.8]
    assert tab.page.locator("#score-shown").inner_text() == "0.80"


def test_findings_can_be_sorted(tab: Tab) -> None:
    by_score = tab.shown()
    tab.page.locator("#order").select_option("kind")
    assert tab.kinds() == sorted(tab.kinds())
    tab.page.locator("#order").select_option("image")
    images = [next(name for name in NAMES if name in card["text"]) for card in tab.shown()]
    assert images == sorted(images)
    tab.page.locator("#order").select_option("score")
    assert tab.shown() == by_score


# Decisions


def test_accepted_findings_are_downloaded(tab: Tab, tmp_path: Path) -> None:
    button = tab.page.get_by_role("button", name="Download accepted")
    assert button.is_disabled()
    for kind in ("missing", "wrong_class", "outside"):
        tab.card(kind).get_by_role("button", name="Accept").click()
    tab.card("spurious").get_by_role("button", name="Reject").click()
    tab.card("outside").get_by_role("button", name="Accept").click()  # Again, to undo it.
    assert tab.card("missing").get_by_role("button", name="Accept").get_attribute("aria-pressed") == "true"
    assert tab.page.locator("#status").inner_text() == "16 of 16 shown, 2 accepted"
    accepted = tab.downloaded(tmp_path / "accepted.json")
    assert sorted(finding["kind"] for finding in accepted) == ["missing", "wrong_class"]


def test_the_download_corrects_the_labels(tab: Tab, folder: Path, tmp_path: Path) -> None:
    tab.page.locator("#decision").select_option("open")
    tab.page.get_by_role("button", name="Accept shown").click()
    everything = tab.downloaded(tmp_path / "accepted.json")
    assert len(everything) == 16
    output = tmp_path / "fixed.json"
    arguments = ["--labels", folder / "labels.json", "--accepted", tmp_path / "accepted.json", "--output", output]
    with pytest.raises(SystemExit) as ended:
        main(["correct", *map(str, arguments)])
    assert not ended.value.code
    fixed = json.loads(output.read_text())
    assert {category["name"] for category in fixed["categories"]} == set(CLASSES)
    assert (
        len(fixed["annotations"]) == 13 + 3 - 4
    )  # Three cats are new; three dogs and the cat at the edge, where no model sees them, are gone.


def test_decisions_can_be_shown_alone_and_taken_back(tab: Tab) -> None:
    tab.card("missing").get_by_role("button", name="Accept").click()
    tab.card("spurious").get_by_role("button", name="Reject").click()
    show = tab.page.locator("#decision")
    for wanted, kinds in (("accepted", ["missing"]), ("rejected", ["spurious"])):
        show.select_option(wanted)
        assert tab.kinds() == kinds
    show.select_option("open")
    assert len(tab.shown()) == 14
    show.select_option("")
    tab.page.get_by_role("button", name="Reset shown").click()
    assert tab.page.locator("#status").inner_text() == "16 of 16 shown, 0 accepted"


def test_decisions_outlive_a_reload(tab: Tab) -> None:
    tab.card("missing").get_by_role("button", name="Accept").click()
    tab.page.reload()
    assert tab.page.locator("#status").inner_text() == "16 of 16 shown, 1 accepted"
    assert "accepted" in tab.card("missing").get_attribute("class").split()


def test_keys_do_it_all(tab: Tab) -> None:
    for key in ("j", "a", "j", "r", "k", "j", "j", "a", "a"):
        tab.page.keyboard.press(key)
    states = tab.page.eval_on_selector_all(".card", "cards => cards.slice(0, 4).map(card => card.className)")
    assert states == ["card accepted", "card rejected", "card", "card"]
    assert tab.page.evaluate("document.activeElement.dataset.number") == "2"


# Every screen


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen(tab: Tab, width: int, scheme: str) -> None:
    tab.page.emulate_media(color_scheme=scheme)
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true; })")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = (
        sum(map(int, tab.page.evaluate(f"getComputedStyle(document.body).{name}")[4:-1].split(",")))
        for name in ("color", "backgroundColor")
    )
    assert (ink < paper) == (scheme == "light")


def test_print_has_the_findings_without_the_buttons(tab: Tab) -> None:
    tab.page.emulate_media(media="print")
    assert not tab.page.get_by_role("button", name="Download accepted").is_visible()
    assert not tab.card("missing").get_by_role("button", name="Accept").is_visible()
    assert tab.card("missing").is_visible()
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.page.locator("details:not([open])").count() == 0


def test_labels_without_faults_make_a_report_that_says_so(browser: Any, folder: Path, tmp_path: Path) -> None:
    labels = json.loads((folder / "labels.json").read_text())
    labels["annotations"] = labels["annotations"][:4]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(SystemExit):
        main(["audit", "--labels", str(tmp_path / "labels.json"), "--report", str(tmp_path / "r.html")])
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    assert page.get_by_text("Nothing: no odd shapes and no duplicates.").is_visible()
    assert errors == []
    page.close()

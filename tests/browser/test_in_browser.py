"""Pages in a real browser: `make test-browser`. SCREENSHOTS=folder saves screenshots of the pages."""

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, tiny_images

from utils import (
    ask,
    compare,
    dataset_map,
    decompose,
    find_problems,
    find_shortcuts,
    find_suspects,
    frozen_baseline,
    gallery,
    grid,
    hide_windows,
    identify_folder,
    judge,
    load_splits,
    methods_of,
    plane,
    report,
    review,
    scan,
    smallest_edit,
    view,
    write_metrics,
)
from utils.data.batches import to_pixels
from utils.data.corrections import apply_review
from utils.network.distance import blurred
from utils.notebooks import NOTEBOOKS, write
from utils.show.html import page

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no browser: install Debian's package chromium, or Chrome", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser does")

FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
LAPTOP = {"width": 1366, "height": 768}
PHONE = {"width": 390, "height": 844}
HOSTILE = "<img src=x onerror=alert(1)>.jpg", "</script><script>alert(1)</script>.jpg"
PIXELS = """(number) => {
  const canvas = document.querySelector("[data-view]").shadowRoot.querySelector(`[data-image="${number}"] canvas`);
  return [canvas.width, canvas.height, ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
}"""


@dataclass
class Opened:
    """A page in the browser."""

    page: object
    faults: list[str]
    """Its errors, its dialogs, and its requests to a host."""

    def canvas(self, number) -> np.ndarray:
        """Return the pixels over image 1 or 2, uint8 (H, W, 4)."""
        width, height, *pixels = self.page.evaluate(PIXELS, number)
        return np.array(pixels, np.uint8).reshape(height, width, 4)

    def move_to(self, number, y, x):
        """Move over a place of an image, both in [0, 1]."""
        box = self.page.locator(f"[data-image='{number}'] .stage").first.bounding_box()
        self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def drag(self, number, start, end):
        """Drag the mouse from one place (y, x) of an image to another, both in [0, 1]."""
        self.move_to(number, *start)
        self.page.mouse.down()
        self.move_to(number, *end)
        self.page.mouse.up()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def shown(self) -> str:
        return self.page.locator(".shown").first.inner_text()

    def told(self) -> str:
        """What is said of the place, of the box, or of the progress."""
        return self.page.locator("[aria-live]").first.inner_text()

    def table(self, save) -> pd.DataFrame:
        """Return the table that `save` downloads."""
        with self.page.expect_download() as download:
            save()
        assert download.value.suggested_filename == "review.csv"
        return pd.read_csv(download.value.path(), keep_default_na=False)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        flags = list(FLAGS)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            flags.append("--no-sandbox")
        opened = started.chromium.launch(executable_path=BROWSER, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Return a function that opens a file, and saves a screenshot in SCREENSHOTS; any fault fails the test."""
    all_faults = []

    def opened(path: Path, viewport=LAPTOP, screenshot="", first=""):
        """first: a script that runs before those of the page."""
        tab = browser.new_page(viewport=viewport)
        tab.add_init_script(first)
        faults = []
        all_faults.append(faults)

        def on_console(message):
            if message.type == "error":
                faults.append(message.text)

        def on_dialog(dialog):
            faults.append(f"dialog {dialog.message}")
            dialog.dismiss()

        def on_request(request):
            if not request.url.startswith(("file:", "data:")):
                faults.append(request.url)

        tab.on("console", on_console)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", on_dialog)
        tab.on("request", on_request)
        tab.goto(path.as_uri())
        tab.wait_for_timeout(300)
        if screenshot and os.environ.get("SCREENSHOTS"):
            name = f"{screenshot}_{viewport['width']}.png"
            tab.screenshot(path=Path(os.environ["SCREENSHOTS"], name), full_page=True)
        return Opened(tab, faults)

    yield opened
    for faults in all_faults:
        assert faults == []


@pytest.fixture
def pair(calibrated):
    """Return all that a viewer shows of a pair."""
    splits = calibrated.load_splits()
    explanation = calibrated.explain(splits.files(splits.test_pairs, 1)[0])
    matches = decompose(calibrated.network, explanation, "layer2", steps=4)
    edit = smallest_edit(calibrated.network, explanation, calibrated.references)
    return explanation, judge(calibrated.network, explanation), matches, edit


@pytest.fixture
def windows(calibrated, pair):
    return hide_windows(calibrated.network, pair[0])


@pytest.fixture
def viewer(pair, windows, open_page, tmp_path):
    return open_page(saved(view(*pair, windows), tmp_path))


def saved(element, folder):
    element.saved(folder)
    return folder / f"{element.name}.html"


def test_the_other_image_lights_up_where_it_matches(viewer, pair):
    _, _, matches, _ = pair
    height, width = matches.bias1.shape  # no more than the cells of the viewer
    places = matches.places.numpy()
    strongest = places.max()
    for number in (1, 2):
        by_place = places
        if number == 2:
            by_place = places.transpose(2, 3, 0, 1)
        y, x = np.unravel_index(by_place.reshape(height * width, -1).max(axis=1).argmax(), (height, width))
        viewer.move_to(number, (y + 0.5) / height, (x + 0.5) / width)
        lit = viewer.canvas(3 - number)[..., 3].astype(int)
        rows, columns = lit.shape
        row, column = np.unravel_index(by_place[y, x].argmax(), (height, width))
        assert lit[int((row + 0.5) * rows / height), int((column + 0.5) * columns / width)] == lit.max() > 0
        dark = np.argwhere(by_place[y, x] < 0)
        for row, column in dark:
            assert lit[int((row + 0.5) * rows / height), int((column + 0.5) * columns / width)] == 0
        assert f"{strongest:.4f}" in viewer.page.locator(".matched").inner_text()
    viewer.page.mouse.move(2, 2)
    assert viewer.page.locator(".matched").inner_text() == ""


def test_the_map_is_that_of_the_explanation(viewer, pair):
    explanation, *_ = pair
    heatmap = explanation.factual[0, 0].numpy()
    shown = viewer.canvas(1)[..., 3].astype(float)
    rows = ((np.arange(heatmap.shape[0]) + 0.5) / heatmap.shape[0] * shown.shape[0]).astype(int)
    columns = ((np.arange(heatmap.shape[1]) + 0.5) / heatmap.shape[1] * shown.shape[1]).astype(int)
    cover = 255 * 0.6 * np.clip(heatmap / 0.25, 0, 1)
    assert np.corrcoef(shown[np.ix_(rows, columns)].ravel(), cover.ravel())[0, 1] > 0.97


def test_keys_slider_and_zoom(viewer):
    viewer.page.locator("[data-image='1'] .stage").focus()
    factual = viewer.canvas(1)
    viewer.page.keyboard.press("c")
    assert not np.array_equal(viewer.canvas(1), factual)
    viewer.page.keyboard.press("f")
    assert np.array_equal(viewer.canvas(1), factual)
    viewer.page.keyboard.press("h")
    assert not viewer.canvas(1).any()
    viewer.page.keyboard.press("h")
    viewer.page.locator("[name=opacity]").fill("0.2")
    assert viewer.canvas(1)[..., 3].max() < factual[..., 3].max()
    viewer.page.locator("[name=colours]").select_option("inferno")
    assert not np.array_equal(viewer.canvas(1)[..., :3], factual[..., :3])
    layers = viewer.page.locator(".layer")
    viewer.page.locator("[data-image='2'] .stage").focus()
    viewer.page.keyboard.press("+")
    transforms = [layers.nth(index).evaluate("layer => layer.style.transform") for index in range(2)]
    assert transforms[0] == transforms[1]
    assert "scale(2)" in transforms[0]
    viewer.page.keyboard.press("0")
    assert "scale(1)" in layers.first.evaluate("layer => layer.style.transform")
    viewer.page.keyboard.press("m")
    assert "strongest match of each place" in viewer.shown()


def test_before_and_after_the_edit(viewer, pair):
    *_, edit = pair
    viewer.page.locator("[data-image='1'] .stage").focus()
    viewer.page.keyboard.press("b")
    assert f"after: similarity {edit.after:.3f}" in viewer.shown()
    sources = viewer.page.locator("figure img").evaluate_all("images => images.map(image => image.src)")
    viewer.page.keyboard.press("b")
    assert f"before: similarity {edit.before:.3f}" in viewer.shown()
    assert viewer.page.locator("figure img").evaluate_all("images => images.map(image => image.src)") != sources


def test_keys_choose_a_place_that_is_described_in_words(viewer):
    stage = viewer.page.locator("[data-image='1'] .stage")
    stage.focus()
    viewer.page.keyboard.press("ArrowRight")
    assert "This place of image 1" in viewer.page.locator("[aria-live]").inner_text()
    viewer.page.keyboard.press("Escape")
    assert viewer.page.locator("[aria-live]").inner_text() == ""
    assert "image 1" in stage.get_attribute("aria-label")


def assert_told(text, answer, close):
    """The text says what a box adds, which share that is, and what its counterpart adds."""
    found = re.search(
        r"The box in image (\d) adds (\S+) to the inner product .*, (\S+) % of what .*; (\S+) with its counterpart, "
        r"outlined in image (\d)",
        text,
    )
    number, value, share, counterpart, other = (float(part) for part in found.groups())
    assert (number, other) == (answer.number, 3 - answer.number)
    assert value == pytest.approx(answer.value, abs=close)
    assert share / 100 == pytest.approx(answer.share, abs=close)
    assert counterpart == pytest.approx(answer.counterpart_value, abs=close)


def outlined(canvas, box):
    """Whether a box (top, left, bottom, right) is outlined in white in the middle of each of its sides."""
    height, width = canvas.shape[:2]
    top, left, bottom, right = box
    middle = (top + bottom) / 2, (left + right) / 2
    for y, x in ((top, middle[1]), (bottom, middle[1]), (middle[0], left), (middle[0], right)):
        row, column = min(round(y * height), height - 1), min(round(x * width), width - 1)
        near = canvas[max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        if not (near == 255).all(axis=2).any():
            return False
    return True


@pytest.mark.parametrize("number", [1, 2])
def test_a_box_by_mouse(viewer, calibrated, pair, number):
    matches = pair[2]
    viewer.page.locator("[name=box]").click()
    assert viewer.page.locator("[name=box]").get_attribute("aria-pressed") == "true"
    viewer.drag(number, (0.1, 0.22), (0.7, 0.83))
    box = (0.1, 0.22, 0.7, 0.83)
    answer = ask(calibrated.network, matches, **{f"box{number}": box})
    assert_told(viewer.told(), answer, close=0.01)
    assert outlined(viewer.canvas(number), box)
    assert outlined(viewer.canvas(3 - number), answer.counterpart)
    lit = viewer.canvas(3 - number)[..., 3]
    strongest = np.unravel_index(answer.partners.argmax().item(), answer.partners.shape)
    row, column = ((place + 0.5) / count for place, count in zip(strongest, answer.partners.shape, strict=True))
    assert lit[int(row * lit.shape[0]), int(column * lit.shape[1])] > 100
    viewer.move_to(3 - number, 0.5, 0.5)  # which selects no place
    assert "The box in image" in viewer.told()
    viewer.drag(number, (0.9, 0.9), (0.4, 0.5))  # towards the upper left
    assert_told(viewer.told(), ask(calibrated.network, matches, **{f"box{number}": (0.4, 0.5, 0.9, 0.9)}), close=0.01)
    viewer.drag(number, (0.6, 0.5), (-0.1, 1.2))  # beyond the border
    assert_told(viewer.told(), ask(calibrated.network, matches, **{f"box{number}": (0.0, 0.5, 0.6, 1.0)}), close=0.01)


def test_a_box_by_mouse_in_the_enlarged_image(viewer, calibrated, pair):
    viewer.page.locator("[data-image='1'] .stage").focus()
    viewer.press("x", "+")
    viewer.drag(1, (0.0, 0.0), (1.0, 0.5))
    assert_told(viewer.told(), ask(calibrated.network, pair[2], (0.25, 0.25, 0.75, 0.5)), close=0.01)


def test_a_box_by_keys_alone(viewer, calibrated, pair):
    matches = pair[2]
    viewer.press("Tab")
    while viewer.page.evaluate("document.activeElement.shadowRoot?.activeElement?.className") != "stage":
        viewer.press("Tab")
    viewer.press("Tab")
    for keys, box in (
        (["x"], (0.3, 0.3, 0.7, 0.7)),
        (["ArrowDown", "ArrowDown", "ArrowLeft"], (0.38, 0.26, 0.78, 0.66)),
        (["Shift+ArrowRight"] * 3 + ["Shift+ArrowUp"], (0.38, 0.26, 0.74, 0.78)),
        (["ArrowUp"] * 30 + ["Shift+ArrowLeft"] * 30, (0.0, 0.26, 0.36, 0.3)),  # to the border, to the smallest box
    ):
        viewer.press(*keys)
        answer = ask(calibrated.network, matches, box2=box)
        assert_told(viewer.told(), answer, close=1e-3)
        assert outlined(viewer.canvas(2), box)
        assert outlined(viewer.canvas(1), answer.counterpart)
    factual = viewer.canvas(1)
    viewer.press("x")
    assert viewer.told() == ""
    assert not np.array_equal(viewer.canvas(1), factual)


def test_the_nearest_window_is_hidden(viewer, pair, windows):
    explanation = pair[0]
    viewer.page.locator("[name=box]").click()
    viewer.drag(2, (0.8, 0.05), (0.95, 0.2))
    viewer.page.locator("[name=window]").click()
    box = windows.boxes[7 * 6 + 0]  # the lower left one
    canvas = viewer.canvas(2)
    height, width = canvas.shape[:2]
    assert outlined(canvas, (box[0], box[1], 0.995, box[3]))
    inside = canvas[int(0.8 * height) : int(0.9 * height), int(0.1 * width) : int(0.2 * width)]
    assert (inside[..., 3] == 255).all()
    pixels = to_pixels(blurred(explanation.images[0])[1].cpu(), explanation.source.normalization).numpy()
    expected = cv2.resize(pixels, (width, height))[int(0.8 * height) : int(0.9 * height)]
    expected = expected[:, int(0.1 * width) : int(0.2 * width)].astype(int)
    assert np.abs(inside[..., :3] - expected).max() <= 8  # what the network saw
    after = replace(explanation, distance=windows.distances[1, 6, :1])
    probability, probability_before = after.probability[0, 0].item(), explanation.probability[0, 0].item()
    assert viewer.told().startswith(
        "With exactly this box of image 2 blurred, the network says: "
        f"similarity {after.similarity.item():.3f} (before {explanation.similarity.item():.3f}), "
        f"probability of one class {probability:.2f} (before {probability_before:.2f}), "
        f'decision "{after.decision()}" (before "{explanation.decision()}").'
    )
    viewer.press("ArrowUp")  # another box, which the network has not seen
    assert "blurred" not in viewer.told()
    assert "The box in image 2" in viewer.told()
    viewer.press("d")
    assert "blurred" in viewer.told()


def test_escape_removes_the_box_and_an_edit_has_none(viewer):
    viewer.page.locator("[data-image='1'] .stage").focus()
    before = viewer.canvas(1)
    for ways in (("x", "Escape"), ("d", "Escape"), ("x", "b", "f")):
        viewer.press(*ways)
        assert viewer.told() == ""
        assert np.array_equal(viewer.canvas(1), before)
        assert viewer.page.locator("[name=box]").get_attribute("aria-pressed") == "false"
    viewer.press("b", "x")
    assert "The box in image 1" in viewer.told()


def test_without_matches_or_windows_nothing_is_offered(pair, open_page, tmp_path):
    explanation, verdict, matches, _ = pair
    for parts, buttons in (((verdict,), []), ((verdict, matches), ["box"])):
        opened = open_page(saved(view(explanation, *parts), tmp_path))
        for name in ("box", "window"):
            assert opened.page.locator(f"[name={name}]").count() == buttons.count(name)
        opened.page.locator("[data-image='1'] .stage").focus()
        opened.press("d")
        assert opened.told() == ""


def test_hostile_names_are_shown_as_they_are(pair, open_page, tmp_path):
    explanation, *_ = pair
    named = replace(explanation, names=(HOSTILE,), source=replace(explanation.source, classes=(HOSTILE,)))
    for element in (view(named), grid(named)):
        opened = open_page(saved(element, tmp_path))
        if element.name.startswith("pairs"):
            opened.page.locator(".tile").click()
        captions = opened.page.locator("figcaption").all_inner_texts()
        assert all(name in caption for name, caption in zip(HOSTILE, captions, strict=True))


def test_a_tile_opens_its_viewer_and_escape_closes_it(calibrated, open_page, tmp_path):
    splits = calibrated.load_splits()
    explanation = calibrated.explain(*splits.files(splits.test_pairs, 3))
    opened = open_page(saved(grid(explanation, calibrated.network), tmp_path), screenshot="grid")
    opened.page.locator(".tile").nth(1).focus()
    opened.page.keyboard.press("Enter")
    dialog = opened.page.locator("dialog[open]")
    assert explanation[1].names[0][0] in dialog.inner_text()
    opened.move_to(1, 0.5, 0.5)
    assert "This place of image 1" in dialog.locator(".matched").inner_text()
    opened.page.mouse.move(2, 2)
    opened.press("x")
    assert "The box in image 1" in dialog.locator(".matched").inner_text()
    opened.press("Escape")  # removes the box
    assert dialog.count() == 1
    opened.press("Escape")
    assert dialog.count() == 0


@pytest.mark.parametrize("believed", [False, True])
def test_tiles_are_grey_where_maps_are_not_better_than_chance(calibrated, open_page, tmp_path, monkeypatch, believed):
    splits = calibrated.load_splits()
    explanation = calibrated.explain(*splits.files(splits.test_pairs, 1))
    monkeypatch.setattr("utils.show.viewer.is_believed", lambda verdict: believed)
    opened = open_page(saved(grid(explanation), tmp_path))
    colours = opened.page.locator(".tile canvas").first.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    )
    red, green, blue, cover = np.array(colours).reshape(-1, 4).T
    seen = cover > 100  # others are rounded
    assert seen.any()
    assert (np.abs(red - green)[seen].max() <= 3 and np.abs(green - blue)[seen].max() <= 3) != believed


def test_two_points_of_the_map_are_a_pair(calibrated, open_page, tmp_path):
    images = gallery(calibrated)
    opened = open_page(saved(plane(calibrated, images, dataset_map(images.embeddings)), tmp_path), screenshot="map")
    points = opened.page.locator("svg path[role=button]")
    assert points.count() == len(images)
    for number in (0, 3):
        points.nth(number).focus()
        assert images.names[number] in opened.page.locator(".hovered").inner_text()
        opened.page.keyboard.press("Enter")
    explanation = calibrated.explain((images.paths[0], images.paths[3]))
    text = opened.page.locator(".pair").inner_text()
    assert f'decided "{explanation.decision()}"' in text
    assert float(text.split("Similarity ")[1].split()[0]) == pytest.approx(explanation.similarity.item(), abs=0.002)


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("hidden", [False, True])
def test_the_viewer_fits_the_screen(pair, windows, open_page, tmp_path, viewport, hidden):
    opened = open_page(saved(view(*pair, windows), tmp_path), viewport, "viewer")
    if hidden:
        opened.page.locator("[name=window]").click()
    boxes = [opened.page.locator(f"[data-image='{number}'] .stage").bounding_box() for number in (1, 2)]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"] for box in boxes)
    assert all(box["y"] + box["height"] <= viewport["height"] for box in boxes)
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
@pytest.mark.parametrize("path", sorted(ROOT.glob(NOTEBOOKS)), ids=lambda path: path.stem)
def test_executed_notebooks_request_nothing_and_their_viewers_work(path, viewport, open_page, tmp_path):
    write(nbformat.read(path, as_version=4), tmp_path / "notebook.html")
    opened = open_page(tmp_path / "notebook.html", viewport, path.stem)
    views = opened.page.locator("[data-view]")
    assert all(views.evaluate_all("hosts => hosts.map(host => host.shadowRoot.childElementCount > 1)"))
    if path.name.startswith("02"):
        opened.page.locator("[data-image='1'] .stage").scroll_into_view_if_needed()
        opened.move_to(1, 0.5, 0.5)
        assert "This place of image 1" in opened.page.locator(".matched").inner_text()


def test_a_tap_lights_the_match_and_leaves_it_lit(pair, browser, tmp_path):
    path = saved(view(*pair), tmp_path)
    tab = browser.new_context(viewport=PHONE, has_touch=True).new_page()
    tab.goto(path.as_uri())
    tab.locator("[data-image='1'] .stage").tap()
    tab.wait_for_timeout(100)
    assert "This place of image 1" in tab.locator(".matched").inner_text()


def test_a_finger_draws_a_box(pair, windows, calibrated, browser, tmp_path):
    path = saved(view(*pair, windows), tmp_path)
    tab = browser.new_context(viewport=PHONE, has_touch=True).new_page()
    tab.goto(path.as_uri())
    tab.locator("[name=box]").tap()
    tab.locator("[name=box][aria-pressed=true]").wait_for()  # a tap clicks a little later
    tab.wait_for_timeout(200)  # until the browser knows that fingers no longer scroll there
    assert tab.locator("[data-image='1'] .stage").evaluate("stage => getComputedStyle(stage).touchAction") == "none"
    stage = tab.locator("[data-image='1'] .stage").bounding_box()
    fingers = tab.context.new_cdp_session(tab)
    for kind, y, x in (("touchStart", 0.1, 0.2), ("touchMove", 0.4, 0.5), ("touchMove", 0.7, 0.9), ("touchEnd", 0, 0)):
        point = {"x": stage["x"] + x * stage["width"], "y": stage["y"] + y * stage["height"]}
        points = [] if kind == "touchEnd" else [point]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    tab.wait_for_timeout(100)
    answer = ask(calibrated.network, pair[2], (0.1, 0.2, 0.7, 0.9))
    assert_told(tab.locator("[aria-live]").inner_text(), answer, close=0.02)
    tab.locator("[name=window]").tap()
    tab.locator("[aria-live]", has_text="exactly this box of image 1 blurred").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_the_report_requests_nothing_and_its_viewers_work(calibrated, open_page, tmp_path, viewport):
    splits = calibrated.load_splits()
    distances = calibrated.distances(splits, splits.test_pairs)
    baseline = frozen_baseline(calibrated.config, splits, calibrated.runtime)
    metrics = write_metrics(calibrated, splits, distances, baseline)
    methods = {calibrated.method: methods_of(calibrated.settings)[calibrated.method]}
    rows = compare(methods, calibrated, splits.files(splits.test_pairs, 4), splits)
    parts = find_suspects(calibrated, splits), find_shortcuts(calibrated, splits)
    path = saved(report(calibrated, splits, distances, metrics, rows, *parts), tmp_path)
    opened = open_page(path, viewport, "report")
    assert opened.page.locator("h2").first.inner_text() == "Summary"
    opened.page.locator("[data-image='1'] .stage").first.scroll_into_view_if_needed()
    opened.move_to(1, 0.5, 0.5)
    assert "This place of image 1" in opened.page.locator(".matched").first.inner_text()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE])
def test_the_page_of_identified_images_fits_the_screen(calibrated, open_page, tmp_path, viewport):
    folder = calibrated.config.data_path
    table = identify_folder(calibrated, folder, folder, tmp_path, 0.2, explained=2)
    opened = open_page(tmp_path / "identified.html", viewport, "identified")
    assert opened.page.locator("article").count() == len(table)
    assert opened.page.locator("article").first.inner_text().count("rather than") == 1
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_a_page_may_load_nothing(open_page, tmp_path):
    """A request against the policy of a page is a fault: without this, the other tests could miss one."""
    (tmp_path / "page.html").write_text(page("title", '<img src="https://example.org/image.png">'))
    opened = open_page(tmp_path / "page.html")
    assert opened.faults
    opened.faults.clear()


def test_canvas_returns_what_a_script_has_drawn(open_page, tmp_path):
    script = "canvas.getContext('2d').fillRect(0, 0, 2, 1)"
    body = (
        "<div data-view><template shadowrootmode=open><div data-image=1><canvas width=4 height=3></canvas></div>"
        f"</template></div><script>const canvas = document.querySelector('div').shadowRoot.querySelector('canvas'); "
        f"{script}</script>"
    )
    (tmp_path / "page.html").write_text(page("title", body))
    assert open_page(tmp_path / "page.html").canvas(1)[..., 3].tolist() == [[255, 255, 0, 0], [0] * 4, [0] * 4]


REFUSED = """Object.defineProperty(window, "localStorage", {
  get() { throw new DOMException("The operation is insecure.", "SecurityError"); },
});"""
# whether the page asks the browser not to close it at once; Chromium shows no dialog without a screen
CLOSING = """() => {
  const event = new Event("beforeunload", { cancelable: true });
  window.dispatchEvent(event);
  return event.defaultPrevented;
}"""
COLUMNS = ["image", "class", "problem", "evidence", "suggestion", "beside"]
NOTES = "plain", 'commas, "quotes",\nand lines', "Ümläute ß €, 写真, =1+1"


@pytest.fixture
def reviewed(tiny_data, tmp_path):
    """The page of three problems: a label, a near-duplicate, and a file that cannot be read."""
    rows = [
        ("blue/blue_0.png", "blue", "label", "8 of 10 neighbours are of the class red.", "red", "red/red_1.png"),
        (
            "green/green_0.png",
            "green",
            "near-duplicate",
            "3 of 64 bits of the hashes differ.",
            "drop",
            "green/green_1.png",
        ),
        ("red/absent.png", "red", "unreadable", "The file cannot be decoded.", "drop", ""),
    ]
    problems = pd.DataFrame(rows, columns=COLUMNS)
    return saved(review(problems, tiny_data), tmp_path)


def question_of(opened):
    return opened.page.locator("h2").inner_text()


def open_tab(context, path) -> Opened:
    """Open the page of a review in a tab that shares its storage with those of the context."""
    opened = Opened(context.new_page(), [])
    opened.page.goto(path.as_uri())
    opened.page.locator("h2").wait_for()
    return opened


def test_a_review_by_mouse(reviewed, open_page):
    opened = open_page(reviewed)
    page = opened.page
    page.locator("[name=by]").fill("Grüß, Gott")
    assert "the image gets the class red" in page.locator("[name=wrong]").inner_text()
    for number, (decision, note) in enumerate(zip(("wrong", "correct", "unsure"), NOTES, strict=True)):
        assert opened.told().startswith(f"{number} of 3 reviewed.")
        page.locator("[name=note]").fill(note)
        page.locator(f"[name={decision}]").click()
    assert opened.told().startswith("3 of 3 reviewed.")
    table = opened.table(page.locator("[name=save]").click)
    assert list(table) == ["image", "class", "problem", "suggestion", "decision", "note", "by"]
    assert table["image"].tolist() == ["blue/blue_0.png", "green/green_0.png", "red/absent.png"]
    assert table["class"].tolist() == ["blue", "green", "red"]
    assert table["problem"].tolist() == ["label", "near-duplicate", "unreadable"]
    assert table["suggestion"].tolist() == ["red", "drop", "drop"]
    assert table["decision"].tolist() == ["wrong", "correct", "unsure"]
    assert table["note"].tolist() == list(NOTES)
    assert set(table["by"]) == {"Grüß, Gott"}


def test_a_review_by_keys_alone(reviewed, open_page):
    opened = open_page(reviewed)
    page = opened.page
    first = question_of(opened)
    opened.press("2")  # without a click before
    assert "1 of 3 reviewed. Problem 1: wrong, the image gets the class red." in opened.told()
    assert question_of(opened) != first
    opened.press("z")
    assert opened.told().startswith("0 of 3 reviewed.")
    assert question_of(opened) == first
    opened.press("ArrowRight", "n", "u")  # the third, after which the first open one comes
    assert question_of(opened) == first
    opened.press("C")  # with caps lock
    opened.press("ArrowLeft", "p", "3")  # another decision on the first
    while page.evaluate("document.activeElement.shadowRoot.activeElement.name") != "note":
        opened.press("Tab")
    page.keyboard.type("cuz 123")
    assert opened.told().startswith("2 of 3 reviewed. Problem 1: unsure")
    opened.press("Escape", "w")
    with page.expect_download():
        opened.press("s")
    opened.press("z", "z")
    table = opened.table(lambda: opened.press("s"))
    assert table["image"].tolist() == ["blue/blue_0.png", "red/absent.png"]
    assert table["decision"].tolist() == ["correct", "unsure"]
    opened.press("z", "z", "z")
    assert opened.told() == "0 of 3 reviewed. There is no decision to undo."
    assert opened.table(lambda: opened.press("s")).empty


def test_a_held_key_decides_once_in_a_review(reviewed, open_page):
    opened = open_page(reviewed)
    for _ in range(3):
        opened.page.keyboard.down("1")
    opened.page.keyboard.up("1")
    assert opened.told().startswith("1 of 3 reviewed.")


def test_a_review_continues_after_a_reload_and_in_another_tab(reviewed, browser):
    context = browser.new_context(viewport=LAPTOP)
    first, second = open_tab(context, reviewed), open_tab(context, reviewed)
    first.page.locator("[name=by]").fill("Ada")
    first.page.locator("[name=note]").fill(NOTES[1])
    first.page.locator("[name=wrong]").click()
    second.page.get_by_text("1 of 3 reviewed.").wait_for()
    second.page.reload()
    second.page.get_by_text("1 of 3 reviewed.").wait_for()
    assert "beside the other one" in question_of(second)  # the first open one
    second.press("3")
    first.page.get_by_text("2 of 3 reviewed.").wait_for()
    first.page.reload()
    first.page.get_by_text("2 of 3 reviewed.").wait_for()
    first.press("ArrowLeft", "ArrowLeft", "1")
    table = first.table(lambda: first.press("s"))
    assert table[["decision", "by"]].to_numpy().tolist() == [["correct", "Ada"], ["unsure", "Ada"]]
    assert table["note"][0] == NOTES[1]
    first.page.reload()
    first.page.get_by_text("2 of 3 reviewed.").wait_for()  # also after it was saved
    assert first.page.locator(".refused").is_hidden()
    context.close()


def test_a_later_page_continues_with_the_answers_of_an_earlier_one(reviewed, tiny_data, browser):
    context = browser.new_context(viewport=LAPTOP)
    opened = open_tab(context, reviewed)
    opened.press("2", "1")
    rows = [
        ("red/red_2.png", "red", "label", "New.", "blue", ""),
        ("green/green_0.png", "green", "near-duplicate", "Found again.", "drop", "green/green_1.png"),
        ("green/green_0.png", "green", "label", "New.", "red", ""),
        ("blue/blue_0.png", "blue", "label", "Suggested by another network.", "green", ""),
    ]
    later = saved(review(pd.DataFrame(rows, columns=COLUMNS), tiny_data, name="later"), reviewed.parent)
    opened.page.goto(later.as_uri())
    opened.page.get_by_text("2 of 4 reviewed.").wait_for()
    assert question_of(opened) == "Is the class red correct?"  # the first open one
    opened.press("3")
    assert question_of(opened) == "Is the class green correct?"
    table = opened.table(lambda: opened.press("s"))
    assert table[["image", "suggestion", "decision"]].to_numpy().tolist() == [
        ["red/red_2.png", "blue", "unsure"],
        ["green/green_0.png", "drop", "correct"],
        ["blue/blue_0.png", "red", "wrong"],  # the class that was decided
    ]
    context.close()


def test_a_later_page_offers_its_own_suggestion_where_none_was_taken(reviewed, tiny_data, browser):
    context = browser.new_context(viewport=LAPTOP)
    opened = open_tab(context, reviewed)
    opened.press("3")  # unsure whether the class is red
    row = ("blue/blue_0.png", "blue", "label", "Suggested by another network.", "green", "")
    later = saved(review(pd.DataFrame([row], columns=COLUMNS), tiny_data, name="later"), reviewed.parent)
    opened.page.goto(later.as_uri())
    opened.page.get_by_text("1 of 1 reviewed.").wait_for()
    assert "the image gets the class green" in opened.page.locator("[name=wrong]").inner_text()
    opened.press("2")
    assert opened.table(lambda: opened.press("s"))["suggestion"].tolist() == ["green"]
    context.close()


def test_a_label_gets_a_third_class_or_is_dropped(reviewed, open_page):
    opened = open_page(reviewed)
    page = opened.page
    choice = page.locator("[name=class]")
    assert choice.locator("option").all_inner_texts() == ["green", "red", "none: drop the image"]
    assert choice.input_value() == "red"
    opened.press("o")  # the keys of the field are its own
    opened.press("g")
    assert "the image gets the class green" in page.locator("[name=wrong]").inner_text()
    assert opened.told().startswith("0 of 3 reviewed.")
    opened.press("Enter")
    assert "Problem 1: wrong, the image gets the class green." in opened.told()
    assert choice.is_hidden()  # of a near-duplicate
    opened.press("o", "p")
    assert opened.table(lambda: opened.press("s"))["suggestion"].tolist() == ["green"]
    choice.select_option("drop")
    assert "Problem 1: wrong, this image is dropped." in opened.told()
    assert opened.page.evaluate(CLOSING) is False  # the browser keeps it
    opened.press("Escape")
    table = opened.table(lambda: opened.press("s"))
    assert table[["suggestion", "decision"]].to_numpy().tolist() == [["drop", "wrong"]]
    opened.press("1")
    opened.press("p")
    assert opened.table(lambda: opened.press("s"))["suggestion"].tolist() == ["red"]  # which is not correct


def test_a_card_names_the_other_decisions_on_its_image(tiny_data, open_page, tmp_path):
    rows = [
        ("blue/blue_0.png", "blue", "near-duplicate", "Equal.", "drop", "blue/blue_1.png"),
        ("blue/blue_0.png", "blue", "label", "Looks red.", "red", ""),
    ]
    opened = open_page(saved(review(pd.DataFrame(rows, columns=COLUMNS), tiny_data), tmp_path))
    opened.press("2")
    assert opened.page.locator(".evidence").inner_text() == "Looks red. Problem 1: wrong, this image is dropped."


def test_where_storage_is_refused_the_review_works_and_says_so(reviewed, open_page):
    opened = open_page(reviewed, first=REFUSED)
    assert "does not keep the review" in opened.page.locator(".refused").inner_text()
    opened.press("1", "2")
    assert opened.page.evaluate(CLOSING)  # the browser asks before what is not saved is lost
    assert opened.table(lambda: opened.press("s"))["decision"].tolist() == ["correct", "wrong"]
    assert not opened.page.evaluate(CLOSING)


def test_a_review_where_storage_holds_something_else(reviewed, open_page):
    opened = open_page(reviewed, first="Storage.prototype.getItem = () => '{damaged';")
    opened.press("1")
    assert opened.told().startswith("1 of 3 reviewed.")


@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_a_review_fits_the_screen(reviewed, open_page, viewport):
    opened = open_page(reviewed, viewport, "review")
    for number in range(3):
        parts = opened.page.locator(".pictures img, .missing, [name=correct], [name=wrong], [name=unsure]").all()
        assert len(parts) == (4 if number == 2 else 5)
        for part in parts:
            box = part.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= viewport["width"]
            assert box["y"] + box["height"] <= viewport["height"]
            assert box["height"] >= 44  # of a finger
        for picture in opened.page.locator(".pictures img").all():
            box = picture.bounding_box()
            assert min(box["width"] / 48, box["height"] / 40) * 48 >= 200  # the image within it, 48 by 40 pixels
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        opened.press("n")


def test_a_review_shows_the_focus_and_tells_its_progress(reviewed, open_page):
    opened = open_page(reviewed)
    status = opened.page.locator("[role=status]")
    assert status.get_attribute("aria-live") == "polite"
    names = []
    while "save" not in names:
        opened.press("Tab")
        focused = opened.page.evaluate_handle("document.activeElement.shadowRoot.activeElement")
        names.append(focused.evaluate("node => node.name"))
        assert focused.evaluate("node => getComputedStyle(node).outlineWidth") == "3px"
    assert names == ["correct", "wrong", "unsure", "class", "note", "previous", "next", "undo", "by", "save"]
    opened.page.locator("[name=unsure]").focus()
    opened.press("Enter")
    assert status.inner_text() == "1 of 3 reviewed. Problem 1: unsure, nothing changes."
    assert opened.page.evaluate("document.activeElement.shadowRoot.activeElement.name") == "unsure"
    opened.press("p")
    assert opened.page.locator("[aria-pressed=true]").get_attribute("name") == "unsure"


def test_a_review_shows_hostile_names_as_they_are(tiny_data, open_page, tmp_path):
    name, text = HOSTILE
    row = {"image": name, "class": text, "problem": "label", "evidence": text, "suggestion": name, "beside": text}
    opened = open_page(saved(review(pd.DataFrame([row]), tiny_data), tmp_path))
    assert opened.page.locator("figcaption").all_inner_texts() == [f"this image: {name}", f"for comparison: {text}"]
    assert opened.page.locator(".evidence").inner_text() == text
    opened.press("w")
    assert name in opened.told()
    assert opened.table(lambda: opened.press("s"))["image"].tolist() == [name]


def test_from_an_incorrect_label_to_its_correction(make_config, open_page, tmp_path):
    """Two moved images are found before training, reviewed by keys alone, and have their class in the next run."""
    tiny_images(tmp_path / "Data")
    for name in ("red_3", "red_4"):
        shutil.move(tmp_path / "Data" / "red" / f"{name}.png", tmp_path / "Data" / "blue")
    settings = {"data_path": str(tmp_path / "Data"), "image.size": [64, 64], "corrections": None}
    config = make_config(settings)
    problems = find_problems(config)
    opened = open_page(saved(review(problems.table, config.data_path), tmp_path))
    for image, suggestion in problems.table[["image", "suggestion"]].to_numpy():
        opened.press("w" if image.startswith("blue/red_") and suggestion == "red" else "c")
    opened.table(lambda: opened.press("s")).to_csv(tmp_path / "saved.csv", index=False)
    file = tmp_path / "corrections.csv"
    apply_review(tmp_path / "saved.csv", file, scan(config.data_path))
    folder = load_splits(make_config(settings | {"corrections": str(file)}, "second.yml")).folder
    actual = dict(zip(folder.names, np.array(folder.classes)[folder.labels], strict=True))
    assert actual["blue/red_3.png"] == actual["blue/red_4.png"] == "red"
    assert sum(name.partition("/")[0] != own for name, own in actual.items()) == 2
    assert find_problems(make_config(settings | {"corrections": str(file)}, "third.yml")).table.empty

"""Figures to touch: what the page holds is what Python stored, and what a browser shows is what Python computes from it."""
import base64
import importlib.util
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_browser import CHROMIUM, PATIENCE, SMALL, Page, browser, give_up  # noqa: F401, the fixture

from pinmem.desk import Desk, State, probe
from pinmem.evaluation import LOGIT_SCORES, ROW_SCORES
from pinmem.explorer import (coarse_view, longest, pack_numbers, pack_runs, picture_uri, stepper, touch_explorer, touchable,
                             unknown_part, unknown_words, wiper, words)
from pinmem.labels import CLASSES, IGNORE, colourise
from pinmem.memory_read import read_weights
from pinmem.model import build_model
from pinmem.report import Picture, explorer_picture, wipe_picture, write_report


def plain(colour, size=(40, 20)): return np.full((*size[::-1], 3), colour, np.uint8)


def unpack_numbers(text, low, step): return low + step * np.frombuffer(base64.b64decode(text), "<u2").astype(float)


def unpack_runs(text): return np.repeat(*np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 2).T)


def facts(figure): return json.loads(re.search('<script type="application/json">(.*?)</script>', figure, re.S)[1])


@pytest.fixture(scope="module")
def desk():
    torch.manual_seed(0)
    return Desk({name: build_model(memory=memory, tau=0.1, **SMALL) for name, memory in (("filled", True), ("bare", False))})


@pytest.fixture(scope="module")
def view(desk): return desk.view(State("filled", "town", 3, x=100, y=70))


@pytest.fixture(scope="module")
def figure(view): return touch_explorer(view)


@pytest.fixture(scope="module")
def cosines(figure, view):
    "As a browser has them."
    return unpack_numbers(*facts(figure)["cosines"]).reshape(view.thought.s.shape)


def test_the_page_holds_what_was_computed(figure, view, cosines):
    data = facts(figure)
    assert abs(cosines - view.thought.s).max() <= 0.51 * data["cosines"][2] < 2e-5
    for name, mask in (("pred", view.trained), ("truth", view.truth)):
        assert np.array_equal(unpack_runs(data[name]), mask.ravel())
    assert data["size"] == [256, 128] and data["grid"] == list(view.thought.s.shape[1:]) and data["names"] == CLASSES
    assert facts(touch_explorer(view._replace(truth=None)))["truth"] is None
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(re.search('href="data:image/jpeg;base64,([^"]*)', figure)[1]))))
    assert abs(picture.astype(int) - view.image).mean() < 4
    assert (data["score"], data["threshold"], data["stored"], data["coarse"]) == ("cosine", 0.5, "logit", [32, 64])
    blocks = view.thought.z.reshape(19, 32, 4, 64, 4).mean((2, 4))
    assert np.allclose(unpack_numbers(*data["logits"]), -blocks.max(0).ravel(), atol=0.51 * data["logits"][2] + 1e-6)


@pytest.mark.parametrize("score", [*LOGIT_SCORES, *ROW_SCORES])
def test_any_score_may_be_the_first(view, score):
    chosen = view._replace(state=replace(view.state, score=score, threshold=0.25))
    data, (found, _) = facts(touch_explorer(chosen)), unknown_part(coarse_view(chosen))
    assert (data["score"], data["threshold"], data["stored"]) == (score, 0.25, score if score in LOGIT_SCORES else "logit")
    if score in LOGIT_SCORES: assert np.allclose(unpack_numbers(*data["logits"]), found.ravel(), atol=data["logits"][2])


def test_numbers_and_runs_of_every_kind():
    rng = np.random.default_rng(0)
    for v in (rng.normal(size=(3, 4)), np.zeros(5), np.array([1e-3, -7.0])):
        text, low, step = pack_numbers(v)
        assert abs(unpack_numbers(text, low, step).reshape(v.shape) - v).max() <= 0.51 * step
    for mask in (np.full((40, 30), IGNORE), rng.integers(0, 19, (9, 7)), np.zeros((1, 1)), np.repeat([[3, 4]], 255, 1)):
        mask = mask.astype(np.uint8)
        assert np.array_equal(unpack_runs(pack_runs(mask)), mask.ravel())


def test_figures_are_small_and_ask_nobody(figure):
    pair = plain(90), plain(200)
    for kind, text, most in (("explorer", figure, 50_000), ("stepper", stepper(pair, "ab"), 18_000), ("wiper", wiper(*pair), 18_000)):
        assert len(text) < most, f"{kind} takes {len(text)} bytes"
        assert not re.search(r"http|url\(|\bimport\b|fetch|src=\"(?!data:)", re.sub(r"base64,[^\"]*", "", text))
        assert "\n\n" not in text, "an empty line would end it in Markdown"
        script = text[text.rindex("<script>"):]
        assert len(script) < 15_000 and text.count("\n") == script.count("\n") and script.count("</script") == 1


def test_text_stays_text(view):
    bad = '<b onload="x">&</script>'
    for text in (stepper([plain(0)], [bad]), stepper([plain(0)], ["a"], [bad]), wiper(plain(0), plain(1), (bad, "b")),
                 wiper(plain(0), plain(1), alt=bad), touchable("explorer", "", "", {"name": bad})):
        assert "<b " not in text and text.count("</script>") == text.count("<script")
    assert facts(touchable("explorer", "", "", {"name": bad})) == {"name": bad}


def test_a_picture_file_stays_as_it_is():
    file = io.BytesIO()
    Image.fromarray(plain(77)).save(file, "PNG")
    assert picture_uri(file.getvalue()) == f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    assert picture_uri(Image.fromarray(plain(77))) == picture_uri(plain(77)) != picture_uri(plain(78))


def test_what_cannot_be_shown_is_refused(desk):
    with pytest.raises(ValueError, match="bare has no memory"): touch_explorer(desk.view(State("bare")))
    odd = lambda **how: touch_explorer(desk.view(State("filled", **how)))
    for value in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match=f"threshold is {value:g}; expected a share"): odd(threshold=value)
    with pytest.raises(ValueError, match="unknown score 'cosin'; did you mean 'cosine'"): odd(score="cosin")
    with pytest.raises(ValueError, match="2 pictures and 1 captions"): stepper([plain(0)] * 2, ["one"])
    with pytest.raises(ValueError, match="0 pictures"): stepper([], [])


class Wide:
    "One image of 1100 x 300 pixels whose labels know one class."
    name = "wide"
    def __len__(self): return 1
    def __getitem__(self, i): return plain(70, (1100, 300)), np.full((300, 1100), 13, np.uint8)


def test_a_report_shows_a_large_picture_small(desk):
    picture = explorer_picture(desk.networks["filled"], Wide())
    data = facts(picture.image)
    assert data["size"] == [512, 140] and set(unpack_runs(data["truth"])) == {13} and len(picture.image) < 60_000
    assert "truth car" in picture.alt and "512 × 140" in picture.caption
    wiped = wipe_picture(*desk.networks.values(), Wide()[0][0])
    sides = [Image.open(io.BytesIO(base64.b64decode(one))) for one in re.findall('src="data:image/jpeg;base64,([^"]*)', wiped.image)]
    assert [side.size for side in sides] == [(512, 140)] * 2 and 'data-touch="wiper"' in wiped.image


class Touched(Page):
    "The page of a report with three figures."

    def rows(self):
        "The table of bars: (class with its marks, weight, cosine, length of the bar) of each row."
        code = """rows => rows.map(r => [...[0, 2, 3].map(i => r.children[i].textContent), r.querySelector("i").style.width])"""
        return self.page.eval_on_selector_all(".touch-bars tbody tr", code)

    def shows(self, view, cosines, tau):
        "Are bars and sentences those of Python at this pixel and temperature?"
        w = read_weights(torch.tensor(cosines)[None], tau)[0].numpy()
        p = probe(view.thought._replace(s=cosines, w=w, pred=view.trained), view.truth, view.pixel.x, view.pixel.y)
        marks = lambda n: " T" * (n == p.truth) + " P" * (n == p.pred)
        rows = self.rows()
        assert [row[:3] for row in rows] == [[c + marks(n), f"{p.weights[n]:.3f}", f"{p.cosines[n]:.2f}"] for n, c in enumerate(CLASSES)]
        for row, weight in zip(rows, p.weights): assert float(row[3][:-1]) == pytest.approx(100 * weight / longest(p.weights), abs=1e-3)
        *said, last = self.page.locator("[data-touch=explorer] [role=status] p").all_inner_texts()
        assert said == words(view._replace(pixel=p))[:2] and last.startswith("Unknown by ")

    def doubts(self, view, cosines, tau, score, threshold):
        "Are the map of the unknown, its share and its sentence those of Python?"
        state = replace(view.state, score=score, threshold=threshold, tau=tau)
        view = coarse_view(view._replace(state=state, thought=view.thought._replace(s=cosines), tau=tau))
        found, cut = unknown_part(view)
        sure, image = abs(found - cut) > 1e-4 * np.ptp(found), self.image(4).astype(int)
        assert image.shape[:2] == found.shape and sure.mean() > 0.98
        orange = (image == [230, 159, 0]).all(-1)
        assert np.array_equal(orange[sure], (found > cut)[sure])
        order = found[~orange].argsort()                                      # viridis: more green, more unknown
        assert (np.diff(image[..., 1][~orange][order]) >= -1).all()
        said = self.page.locator("[data-touch=explorer] [role=status] p").last.inner_text()
        wanted, numbers = unknown_words(view)[0], lambda text: [float(v) for v in re.findall(r"-?\d+\.?\d*", text)]
        assert re.sub(r"[-\d.]+", "", said) == re.sub(r"[-\d.]+", "", wanted)
        steps = np.array([0.0101, 0.0101, 0.0101, 1.01, 0.0101])               # the last digit of each
        assert (abs(np.subtract(numbers(said), numbers(wanted))) <= steps).all(), (said, wanted)
        share, above = numbers(said)[3:]
        assert abs(share - 100 * orange.mean()) <= 0.51
        label = self.page.locator("[data-touch=explorer] label").nth(1).inner_text().strip()
        assert label == f"threshold {above:.2f}; orange: {share:.0f}\u00a0% of the picture"

    def image(self, panel):
        "The picture of a panel, as pixels."
        text = self.page.locator("svg image").nth(panel).get_attribute("href")
        return np.array(Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))).convert("RGB"))

    def press(self, panel, x, y, size=(256, 128)):
        "Press a pixel in a panel."
        self.page.locator("svg").nth(panel).scroll_into_view_if_needed()
        box = self.page.locator("svg").nth(panel).bounding_box()
        self.page.mouse.click(box["x"] + (x + 0.5) / size[0] * box["width"], box["y"] + (y + 0.5) / size[1] * box["height"])


@pytest.fixture(scope="module")
def url(figure, tmp_path_factory):
    stops = [plain(c, (640, 100)) for c in (30, 120, 210)]
    figures = {"Ask": figure, "Step": stepper(stops, ["first", "second", "<third>"]),
               "Wipe": wiper(plain((255, 0, 0), (320, 160)), plain((0, 0, 255), (320, 160)))}
    path = write_report(tmp_path_factory.mktemp("page") / "report.html", title="To touch",
                        figures={title: Picture(text, "A figure to touch.", "A caption.") for title, text in figures.items()})
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium(request):
    if not CHROMIUM or not importlib.util.find_spec("playwright"): give_up("not installed: chromium or playwright")
    return request.getfixturevalue("browser")


@pytest.fixture(scope="module")
def page(chromium, url):
    page = Touched(chromium, url)
    yield page
    page.clean()
    page.page.close()


@pytest.mark.browser
def test_explorer(page, desk, cosines, view):
    at = lambda x, y: desk.view(State("filled", "town", 3, x=x, y=y))
    page.shows(view, cosines, 0.1)                                            # as stored
    assert np.array_equal(page.image(1), colourise(view.trained)) and np.array_equal(page.image(2), colourise(view.truth))
    for panel, x, y in ((0, 0, 0), (1, 255, 127), (2, 31, 90), (3, 160, 5)):   # press in each panel
        page.press(panel, x, y)
        page.shows(at(x, y), cosines, 0.1)
    page.page.locator("svg").first.focus()                                    # keys
    assert page.page.locator("svg").first.get_attribute("data-lm-suppress-shortcuts"), "JupyterLab would take the keys"
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "Shift+ArrowRight", "Shift+ArrowDown"): page.page.keyboard.press(key)
    rows, cols = view.thought.s.shape[1:]
    x, y = 158 + 256 // cols, 6 + 128 // rows
    page.shows(at(x, y), cosines, 0.1)
    assert page.page.locator("svg circle").first.get_attribute("cx") == str(x + 0.5)
    page.page.keyboard.press("Control+ArrowLeft")                             # the browser's own
    for _ in range(20): page.page.keyboard.press("Shift+ArrowUp")             # not out of the picture
    page.shows(at(x, 0), cosines, 0.1)
    slider, label = page.page.locator("[data-touch=explorer] input").nth(1), page.page.locator("[data-touch=explorer] label").nth(2)
    assert label.inner_text().strip() == "temperature τ = 0.1, as in training"
    slider.focus()
    for key, tau, says in (("Home", 0.01, "τ = 0.01"), ("ArrowRight", 10**-1.99, "τ = 0.0102"), ("End", 10.0, "τ = 10")):
        page.page.keyboard.press(key)
        page.shows(at(x, 0), cosines, tau)
        assert label.inner_text().strip() == f"temperature {says}" and slider.get_attribute("aria-valuetext") == says
    page.page.keyboard.press("Home")
    page.page.locator("[data-touch=explorer] select").nth(1).select_option("car")    # the map
    w = read_weights(torch.tensor(cosines)[None], 0.01)[0].numpy()
    green, car = page.image(3)[..., 1].ravel().astype(int), w[13].ravel()      # viridis: more green, more weight
    assert (np.diff(green[car.argsort()]) >= 0).all() and page.image(3).shape[:2] == w.shape[1:]
    assert abs(green.max() - np.interp(car.max() / w.max(), np.linspace(0, 1, 5), (1, 82, 145, 201, 231))) <= 1
    assert page.page.get_by_text(f"weight of car, 0 to {w.max():.2f}").is_visible()
    assert page.page.locator(".touch-chosen").inner_text().startswith("car")
    page.page.reload()                                                        # as it was, for the next test


@pytest.mark.browser
def test_the_unknown(page, desk, cosines, view):
    root = page.page.locator("[data-touch=explorer]")
    which, (cut, warm) = root.locator("select").first, root.locator("input").all()
    page.doubts(view, cosines, 0.1, "cosine", 0.5)                            # as stored
    assert which.locator("option").all_inner_texts() == ["logit", *ROW_SCORES]
    cut.focus()
    for key, threshold in (("ArrowRight", 0.51), ("Home", 0.0), ("End", 1.0), ("ArrowLeft", 0.99), ("PageDown", 0.89)):
        page.page.keyboard.press(key)
        page.doubts(view, cosines, 0.1, "cosine", threshold)
        text = root.locator("label").nth(1).inner_text()                      # what is seen is also spoken
        assert re.findall(r"[-\d.]+", text) == re.findall(r"[-\d.]+", cut.get_attribute("aria-valuetext"))
    for value, threshold in (("7", 1.0), ("-3", 0.0), ("0.3", 0.3), ("no number", 0.5)):   # out of range: the nearest end
        cut.evaluate("(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value)
        page.doubts(view, cosines, 0.1, "cosine", threshold)
    for score in ("read-entropy", "read-energy", "logit"):
        which.select_option(score)
        page.doubts(view, cosines, 0.1, score, 0.5)
        page.press(4, 200, 20)                                                # in the map itself
        page.shows(desk.view(State("filled", "town", 3, x=200, y=20)), cosines, 0.1)
        page.doubts(desk.view(State("filled", "town", 3, x=200, y=20)), cosines, 0.1, score, 0.5)
        page.press(0, 100, 70)
    assert page.page.get_by_text("unknown by logit, τ = 0.1", exact=True).is_visible()
    for value, tau in (("-2", 0.01), ("0", 1.0)):                             # two scores follow the temperature
        warm.evaluate("(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value)
        for score in ("logit", *ROW_SCORES):
            which.select_option(score)
            page.doubts(view, cosines, tau, score, 0.5)
    page.page.reload()


@pytest.mark.browser
def test_stepper(page):
    root = page.page.locator("[data-touch=stepper]")
    seen = lambda: [root.locator("li:visible p").all_inner_texts(), root.locator("[role=status]").inner_text(),
                    *(b.get_attribute("aria-disabled") for b in root.locator("button").all())]
    back, ahead = root.locator("button").all()
    first, second, third = (["first"], "1 of 3", "true", "false"), (["second"], "2 of 3", "false", "false"), (["<third>"], "3 of 3", "false", "true")
    assert seen() == [*first]
    for button, then in ((ahead, second), (ahead, third), (ahead, third), (back, second)):
        button.click(force=True)                                              # at the end as well: nothing happens
        assert seen() == [*then]
    for key, then in (("End", third), ("ArrowLeft", second), ("Home", first), ("ArrowLeft", first), ("ArrowRight", second)):
        page.page.keyboard.press(key)                                         # the focus stayed on a button
        assert seen() == [*then]


@pytest.mark.browser
def test_wiper(page):
    sides, slider = page.page.locator(".touch-sides"), page.page.locator("[data-touch=wiper] input")
    def meet():
        "Where red ends and blue begins on the screen, in percent."
        shot = np.array(Image.open(io.BytesIO(sides.screenshot())).convert("RGB")).astype(int)
        line = shot[shot.shape[0] * 3 // 4]
        return 100 * (line[:, 0] > line[:, 2] + 50).mean(), 100 * (line[:, 2] > line[:, 0] + 50).mean()
    assert meet() == pytest.approx((50, 50), abs=1.5)
    slider.focus()
    for key, value in (("ArrowRight", 51), ("Home", 0), ("End", 100)):
        page.page.keyboard.press(key)
        assert slider.input_value() == str(value) and meet() == pytest.approx((value, 100 - value), abs=1.5)
    box = sides.bounding_box()
    page.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 40, steps=3)
    page.page.mouse.up()
    page.page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 40)         # not pressed: nothing
    assert slider.input_value() == "25" and meet() == pytest.approx((25, 75), abs=1.5)


@pytest.mark.browser
def test_on_a_phone_in_the_dark_with_a_finger(chromium, url, desk, cosines):
    "Nothing is wider than the screen, letters are as light as the page's, and a tap counts."
    phone = chromium.new_page(viewport=dict(width=390, height=800), has_touch=True, color_scheme="dark")
    phone.set_default_timeout(PATIENCE)
    phone.goto(url)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    colours = phone.evaluate("['body', '.touch-bars td', '.touch button'].map(s => getComputedStyle(document.querySelector(s)).color)")
    assert len(set(colours)) == 1 and colours[0] == "rgb(230, 233, 235)"
    box = phone.locator("svg").nth(2).bounding_box()
    phone.touchscreen.tap(box["x"] + box["width"] * 10.5 / 256, box["y"] + box["height"] * 64.5 / 128)
    said = phone.locator("[data-touch=explorer] [role=status] p").first.inner_text()
    x, y = map(int, re.findall(r"\d+", said)[:2])
    assert abs(x - 10) <= 2 and abs(y - 64) <= 2 and said == words(desk.view(State("filled", "town", 3, x=x, y=y)))[0]
    cut = phone.locator("[data-touch=explorer] input").first
    box = cut.bounding_box()
    assert box["height"] >= 28 and box["width"] > 120
    phone.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    assert 0.7 < float(cut.input_value()) < 0.9 and "% of the picture" in phone.locator("[data-touch=explorer] label").nth(1).inner_text()
    phone.close()


@pytest.mark.browser
def test_without_scripts_the_pictures_remain(chromium, url):
    plainly = chromium.new_page(java_script_enabled=False)
    plainly.set_default_timeout(PATIENCE)
    plainly.goto(url)
    assert all(one.is_visible() for css in ("li", ".touch-sides img", "svg") for one in plainly.locator(css).all())
    assert plainly.locator("li").count() == 3 and plainly.get_by_text("Largest weights").is_visible()
    plainly.close()

"""Explorer and bench in a real browser: what is seen is what the functions return, and nothing leaves the machine."""
import base64
import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pinmem.app import free_port, wait_for
from pinmem.bench import DIALS, REST, trial, trial_bars, trial_panels, trial_rows
from pinmem.desk import Desk, State, load_networks, open_picture
from pinmem.explorer import bars, panel_size, panels, places, words
from pinmem.model import build_model
from pinmem.training import save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()
NEEDED = "playwright", "voila", "anywidget", "jupyterlab", "notebook"
MISSING = [name for name in NEEDED if not importlib.util.find_spec(name)]
MISSING += [] if CHROMIUM else ["a chromium browser"]
pytestmark = pytest.mark.browser
PATIENCE = 180_000  # ms, for a busy machine
SMALL = dict(weights=None, encoder="test_resnet", channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)


def give_up(reason):
    "Skip; fail where the machine is meant to have a browser."
    (pytest.fail if os.environ.get("PINMEM_NEEDS_BROWSER") else pytest.skip)(reason)


@pytest.fixture(scope="module", autouse=True)
def everything_is_there():
    if MISSING: give_up(f"not installed: {', '.join(MISSING)}")


def until(look, wanted, same=lambda a, b: a == b):
    "What the page shows, as soon as it is what is wanted; what it shows at the end of all patience otherwise."
    end = time.monotonic() + PATIENCE / 1000
    while not same(seen := look(), wanted) and time.monotonic() < end: time.sleep(0.1)
    return seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two small runs that were never trained, one with a memory: what a page shows is no better or worse for it."
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    for name, memory in (("filled", True), ("bare", False)):
        save_model(folder / name, build_model(memory=memory, tau=0.1, **SMALL))
    return [folder / "filled", folder / "bare"]


@pytest.fixture(scope="module")
def desk(runs):
    "The same networks in this process: what the page shows is compared with what they say here."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Desk(load_networks(runs))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def app(runs, environment):
    "The command itself: (process, address)."
    command = [str(Path(sys.executable).with_name("pinmem")), "explore", *map(str, runs), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert all(str(run) in line for run in runs) and "Ctrl-C" in line
        yield process, line.split()[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0 and "stopped" in process.stdout.read()


@pytest.fixture(scope="module")
def app_url(app): return app[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import Error, sync_playwright
    with sync_playwright() as playwright:
        try: browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Error as error: give_up(f"chromium does not start: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


class Page:
    "A page that remembers its errors and every request to somewhere else."

    def __init__(self, browser, url):
        self.page, self.errors, self.outside = browser.new_page(viewport=dict(width=1280, height=1100)), [], []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        own = (url.rsplit("/", 1)[0].replace("http://", "").split("/")[0])
        self.page.on("request", lambda r: own in r.url or r.url.startswith("data:") or self.outside.append(r.url))
        self.page.goto(url)

    def clean(self, *known):
        assert set(self.errors) <= set(known) and self.outside == []

    def locator(self, css, **more): return self.page.locator(css + ":visible", **more)

    def pixels(self, image):
        "The picture as an array."
        code = """i => fetch(i.src).then(r => r.blob()).then(b => new Promise(done => {
                    const f = new FileReader(); f.onload = () => done(f.result.split(',')[1]); f.readAsDataURL(b) }))"""
        return np.array(Image.open(io.BytesIO(base64.b64decode(image.evaluate(code)))))

    def shows(self, *pages):
        "Do the pictures of this page become exactly those?"
        for image, page in zip(self.locator("img").all(), pages, strict=True):
            shown = until(lambda: self.pixels(image), np.array(page), np.array_equal)
            assert np.array_equal(shown, np.array(page)), "the page shows another picture than the function returns"

    def says(self, lines):
        "Does the status of this page become exactly that?"
        assert until(self.locator("[role=status] p").all_inner_texts, lines) == lines

    def explores(self, view):
        self.says(words(view))
        self.shows(panels(view), bars(view))

    def press(self, view, x, y, panel):
        "Press pixel (x, y) in one of the four panels."
        shape = view.image.shape[:2]
        (spots, (W, H)), (w, h), box = places(shape), panel_size(shape), self.locator("img").first.bounding_box()
        u, v = spots[panel][0] + (x + 0.5) * w / shape[1], spots[panel][1] + (y + 0.5) * h / shape[0]
        self.page.mouse.click(box["x"] + u * box["width"] / W, box["y"] + v * box["height"] / H)

    def slider(self, name, part="handle"):
        return self.locator(f".widget-inline-hbox:has(label:text-is('{name}'))").locator(f".noUi-{part}")

    def drag(self, name, to):
        "Take the handle with the mouse and draw it far to the left (-1) or to the right (1)."
        handle, track = self.slider(name).bounding_box(), self.slider(name, "base").bounding_box()
        self.page.mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + (track["width"] + 20 if to > 0 else -20), track["y"], steps=10)
        self.page.mouse.up()

    def table(self):
        return [[c.inner_text() for c in row.locator("th,td").all()] for row in self.locator("[role=status] tr").all()]

    def tries(self, t):
        "Does the bench show this trial?"
        self.shows(trial_panels(t), trial_bars(t))
        assert until(self.table, trial_rows(t)) == trial_rows(t)


@pytest.fixture
def page(browser, app_url):
    "A page of its own for each test, so that none depends on where another has left it."
    page = Page(browser, app_url)
    page.locator("[role=status] p").first.wait_for()
    yield page
    page.page.close()


def test_explorer(page, desk):
    state = State("filled", "town", 0, 128, 64, tau=0.1)
    page.explores(first := desk.view(state))
    for x, y, panel in ((40, 100, 0), (200, 30, 3)):                          # point at two pixels
        page.press(first, x, y, panel)
        state = replace(state, x=x, y=y)
        page.explores(view := desk.view(state))
        assert not np.array_equal(np.array(bars(view)), np.array(bars(first)))
    page.slider("row y").focus()                                              # keys, quicker than the answers
    page.page.evaluate("""() => { window.drawn = 0;
        const drawn = new MutationObserver(all => window.drawn += all.length);
        drawn.observe(document.querySelector("img"), {attributeFilter: ["src"]}) }""")
    for _ in range(12): page.page.keyboard.press("ArrowRight")
    state = replace(state, y=42)
    page.explores(desk.view(state))                                           # the last one counts,
    assert 1 <= page.page.evaluate("window.drawn") < 12                       # and not all were computed
    page.drag("column x", -1)                                                 # mouse
    state = replace(state, x=0)
    page.explores(desk.view(state))
    box = page.locator("img").first.bounding_box()
    page.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)      # between the panels: nothing
    page.locator("label:has-text('class') + select").select_option("car")
    state = replace(state, cls=13)
    page.explores(desk.view(state))
    page.locator("input[type=checkbox]").uncheck()
    state = replace(state, memory=False)
    page.explores(view := desk.view(state))
    assert view.pixel.weights.max() == view.pixel.weights.min()
    page.locator("label:has-text('method') + select").select_option("bare")
    page.says(words(desk.view(replace(state, method="bare"))))
    page.clean()


def test_own_picture_in_a_second_tab(page, browser, app_url, desk, tmp_path):
    before = page.locator("[role=status] p").all_inner_texts()
    other = Page(browser, app_url)
    other.locator("[role=status] p").first.wait_for()
    photo = np.random.default_rng(0).integers(0, 255, (90, 60, 4), np.uint8)
    Image.fromarray(photo, "CMYK").save(tmp_path / "photo.jpg")
    with other.page.expect_file_chooser() as chooser: other.locator(".jupyter-button", has_text="upload").click()
    chooser.value.set_files(tmp_path / "photo.jpg")
    desk.add("own picture: photo.jpg", open_picture(tmp_path / "photo.jpg"))
    other.explores(desk.view(State("filled", "own picture: photo.jpg", 0, 59, 64, tau=0.1)))
    page.says(before)                                                         # the first tab has not moved
    other.locator("label:has-text('picture') + select").select_option("fog")
    page.locator("input[type=checkbox]").uncheck()
    for where, key in ((page, "End"), (other, "Home")):                       # both at once
        where.slider("column x").focus()
        where.page.keyboard.press(key)
    page.explores(desk.view(State("filled", "town", 0, 255, 64, tau=0.1, memory=False)))
    other.explores(desk.view(State("filled", "fog", 0, 0, 64, tau=0.1)))
    other.clean()
    other.page.close()
    page.clean()


def test_bench(page, desk):
    page.page.get_by_role("tab", name="bench").click()
    settings = dict(REST)
    for name, key, value in (("night", "End", 1.0), ("hue", "ArrowRight", 0.02)):
        page.slider(name).focus()
        page.page.keyboard.press(key)
        settings[name] = value
        page.tries(trial(desk, ["filled", "bare"], "town", 0, settings))
    page.drag("fog", 1)
    settings["fog"] = DIALS["fog"].high
    page.tries(trial(desk, ["filled", "bare"], "town", 0, settings))
    page.locator("button", has_text="All dials at rest").click()
    page.tries(trial(desk, ["filled", "bare"], "town", 0, settings := {}))
    page.locator("button", has_text="breaks it").click()
    page.page.get_by_text("On four other streets").wait_for()
    lines = page.page.get_by_text("settings tried").inner_text().splitlines()
    assert lines[0].startswith("40 of 40 settings tried on street 0. Worst for filled: mIoU ")
    for name, value in (dial.rsplit(" ", 1) for dial in lines[0].split("% with ")[1].rstrip(".").split(", ")):
        settings[name] = float(value)                                         # the dials have turned to what was found
    page.tries(found := trial(desk, ["filled", "bare"], "town", 0, {**REST, **settings}))
    assert settings and f"mIoU {100 * found.now[0].miou:.1f} %" in lines[0] and found.now[0].miou <= found.rest[0].miou
    page.clean()


def test_nobody_else_can_connect(app):
    "Every socket of the app listens on the loopback address, and another address of this machine is refused."
    import psutil
    family = [p := psutil.Process(app[0].pid), *p.children(recursive=True)]
    heard = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    port = int(app[1].rstrip("/").rsplit(":", 1)[1])
    assert port in [at.port for at in heard] and {at.ip for at in heard} == {"127.0.0.1"}
    others = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET}
    for address in others - {"127.0.0.1"}:
        with pytest.raises(OSError): socket.create_connection((address, port), 2)


@pytest.fixture
def jupyter(runs, tmp_path, environment):
    """A Jupyter server with one notebook, that of the explorer in short: its address. One server for both pages mixes up
    their fonts: it remembers where a file of that name lies, and JupyterLab and Notebook 7 each bring their own."""
    settings, work = tmp_path / "settings" / "@jupyterlab", tmp_path / "work"
    for place, value in (("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
                         ("notebook-extension/tracker", {"windowingMode": "none"})):
        (settings / place).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{place}.jupyterlab-settings").write_text(json.dumps(value))
    last = ("from pinmem.desk import load_networks\nfrom pinmem.explorer import Explorer\n"
            f"Explorer(load_networks({[str(run) for run in runs]})).box")
    live = ("from pinmem.plots import LivePlot\nwatch, rows = LivePlot(every=2), []\nfor step in range(6):\n"
            "    rows.append({'step': step, 'loss': 1 / (1 + step)})\n    watch(rows)")
    notebook = json.loads((Path(__file__).parent.parent / "nbs" / "43_explorer.ipynb").read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    notebook["cells"] += [dict(cell_type="code", id=name, execution_count=None, metadata={}, outputs=[], source=source)
                          for name, source in (("live", live), ("last", last))]
    shutil.copytree(Path(__file__).parent.parent / "nbs" / "images", work / "images")
    (work / "try.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}",
                                "--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", f"--ServerApp.root_dir={work}", "--allow-root"],
                               env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings.parent)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(process, port, PATIENCE // 1000)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


# Notebook 7 has an error of its own with every notebook: jupyter/notebook#7862
@pytest.mark.parametrize("path, known", [
    pytest.param("lab/tree", [], id="lab"),
    pytest.param("notebooks", ["Cannot read properties of undefined (reading 'schema')"], id="notebook")])
def test_jupyter(path, known, jupyter, browser, desk):
    "A notebook run from top to bottom: a live picture, and the explorer over a run."
    page = Page(browser, f"{jupyter}/{path}/try.ipynb")
    page.page.locator(":text('| Idle'), .jp-NotebookKernelStatus-fade").first.wait_for(state="attached")
    page.page.get_by_role("menuitem", name="Run", exact=True).click()
    page.page.get_by_text("Run All Cells", exact=True).click()
    cells = page.page.locator(".jp-CodeCell")
    cell = cells.last
    cell.locator("[role=status] p").first.wait_for()
    page.locator = lambda css, **more: cell.locator(css, **more)
    assert cells.nth(-2).locator(".jp-OutputArea-output img").count() == 1    # drawn three times, in one place
    cell.scroll_into_view_if_needed()
    state = State("filled", "town", 0, 128, 64, tau=0.1)
    page.explores(view := desk.view(state))
    for x, y, panel in ((200, 20, 1), (40, 100, 2)):
        page.press(view, x, y, panel)
        page.explores(desk.view(replace(state, x=x, y=y)))
    count = cells.count()
    page.slider("column x").focus()
    for key in ("b", "ArrowLeft"): page.page.keyboard.press(key)              # for the slider alone: no new cell below
    page.explores(desk.view(replace(state, x=39, y=100)))
    assert cells.count() == count
    page.drag("row y", -1)
    page.explores(desk.view(replace(state, x=39, y=0)))
    stderr = page.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']")
    assert stderr.get_by_text("Error").count() == 0
    page.clean(*known)
    page.page.close()

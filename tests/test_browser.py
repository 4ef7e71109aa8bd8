"""Explorer and bench in a real browser: what is seen there is what the functions return, and nothing leaves the machine."""
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
from pinmem.bench import DIALS, REST, Bench, run_search, trial, trial_bars, trial_panels, trial_rows
from pinmem.data import DrawnDomain, to_tensor
from pinmem.explorer import Desk, State, bars, load_networks, open_picture, panel_size, panels, places, words
from pinmem.memory_init import init_memory
from pinmem.model import build_model
from pinmem.training import save_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()
MISSING = [name for name in ("playwright", "voila", "anywidget", "jupyterlab", "notebook") if not importlib.util.find_spec(name)]
MISSING += [] if CHROMIUM else ["a chromium browser"]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]
PATIENCE = 120_000  # ms, for a busy machine


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Two runs that were never trained, one with a memory that was filled."
    folder, domain = tmp_path_factory.mktemp("runs"), DrawnDomain("town", 4, size=(128, 64))
    torch.manual_seed(0)
    model, bare = build_model(tau=0.1).eval(), build_model(memory=False).eval()
    x, y = (torch.stack(part) for part in zip(*(to_tensor(*domain[i]) for i in range(4))))
    with torch.no_grad(): f, _ = model.encoder(x)
    model.mem.copy_(init_memory([(f, model.labels(y, f))])[0])
    save_model(folder / "filled", model)
    save_model(folder / "bare", bare)
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
        assert process.wait(30) == 0 and "stopped" in process.stdout.read()


@pytest.fixture(scope="module")
def app_url(app): return app[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import Error, sync_playwright
    with sync_playwright() as playwright:
        try: browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        except Error as error: pytest.skip(f"chromium does not start: {str(error).splitlines()[0]}")
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
            for _ in range(100):
                if (same := np.array_equal(self.pixels(image), np.array(page))): break
                time.sleep(0.05)
            assert same, "the page shows another picture than the function returns"

    def says(self, lines):
        "Does the status of this page become exactly that?"
        said = []
        for _ in range(400):
            said = self.locator("[role=status] p").all_inner_texts()
            if said == lines: return
            time.sleep(0.05)
        assert said == lines

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
        for _ in range(100):
            if (said := self.table()) == trial_rows(t): return
            time.sleep(0.05)
        assert said == trial_rows(t)


@pytest.fixture(scope="module")
def page(browser, app_url):
    page = Page(browser, app_url)
    page.locator("[role=status] p").first.wait_for()
    return page


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
        new MutationObserver(all => window.drawn += all.length).observe(document.querySelector("img"), {attributeFilter: ["src"]}) }""")
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
    page.locator("label:has-text('method') + select").select_option("filled")
    page.locator("label:has-text('class') + select").select_option("nearest row at the pixel")
    for where, key in ((page, "End"), (other, "Home")):                       # both at once
        where.slider("column x").focus()
        where.page.keyboard.press(key)
    page.explores(desk.view(State("filled", "town", 0, 255, 42, tau=0.1, memory=False)))
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
    page.tries(trial(desk, ["filled", "bare"], "town", 0, REST))
    here = Bench(desk)                                                        # the search, here and there
    here.controls["picture"].value = "town"
    run_search(here)
    assert "On four other streets" in here.found.value and here.settings() != REST
    page.locator("button", has_text="breaks it").click()
    page.page.get_by_text("On four other streets").wait_for()
    lines = page.page.get_by_text("settings tried").inner_text().splitlines()
    assert lines == here.found.value.split("<br>")
    page.tries(here.trial)
    page.clean()


def test_nobody_else_can_connect(app):
    "Every socket of the app listens on the loopback address, and another address of this machine is refused."
    import psutil
    family = [p := psutil.Process(app[0].pid), *p.children(recursive=True)]
    heard = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    port = int(app[1].rstrip("/").rsplit(":", 1)[1])
    assert port in [at.port for at in heard] and {at.ip for at in heard} == {"127.0.0.1"}
    others = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET} - {"127.0.0.1"}
    for address in others:
        with pytest.raises(OSError): socket.create_connection((address, port), 2)


@pytest.fixture
def jupyter(runs, tmp_path, environment):
    "A Jupyter server with one notebook, that of the explorer and two cells more: its address."
    settings, work, nbs = tmp_path / "settings" / "@jupyterlab", tmp_path / "work", Path(__file__).parent.parent / "nbs"
    for place, value in (("apputils-extension/notification", {"fetchNews": "false", "checkForUpdates": False}),
                         ("notebook-extension/tracker", {"windowingMode": "none"})):
        (settings / place).parent.mkdir(parents=True, exist_ok=True)
        (settings / f"{place}.jupyterlab-settings").write_text(json.dumps(value))
    notebook = json.loads((nbs / "43_explorer.ipynb").read_text(encoding="utf-8"))
    last = f"from pinmem.explorer import load_networks\nExplorer(load_networks({[str(run) for run in runs]})).box"
    live = ("from pinmem.plots import LivePlot\nwatch, rows = LivePlot(every=2), []\nfor step in range(6):\n"
            "    rows.append({'step': step, 'loss': 1 / (1 + step)})\n    watch(rows)")
    notebook["cells"] += [dict(cell_type="code", id=name, execution_count=None, metadata={}, outputs=[], source=source)
                          for name, source in (("live", live), ("last", last))]
    shutil.copytree(nbs / "images", work / "images")
    (work / "try.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.ip=127.0.0.1",
                                "--IdentityProvider.token=", f"--ServerApp.root_dir={work}", "--allow-root"],
                               env={**os.environ, "JUPYTERLAB_SETTINGS_DIR": str(settings.parent)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


# Notebook 7 has an error of its own with every notebook: jupyter/notebook#7862
@pytest.mark.parametrize("path, known", [
    ("lab/tree", []), ("notebooks", ["Cannot read properties of undefined (reading 'schema')"])], ids=["lab", "notebook"])
def test_jupyter(path, known, jupyter, browser, desk):
    "The notebook itself, run from top to bottom, and its widget over a run."
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
    assert page.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] >> text=Error").count() == 0
    page.clean(*known)

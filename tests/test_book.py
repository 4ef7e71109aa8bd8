"""The book as it is built: its pages say what the notebooks say, nothing is broken, nothing comes from outside."""
import html
import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from helpers import ROOT
from in_step import notebooks
from pinmem.idea import TRACKS
from test_browser import MISSING, browser, give_up  # noqa: F401

BOOK = ROOT / "nbs" / "book"
ABSENT = [name for name in ("mkdocs", "material", "mkdocstrings", "mathjax") if not importlib.util.find_spec(name)]
VOID = set("area base br col embed hr img input link meta source track wbr path".split())
CODE = re.compile(r"^(pre|code|script)$")


class Page(HTMLParser):
    "What a page links to, loads and names; its tags, its text, and its text outside of code and equations."

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.tags = [], [], set(), Counter()
        self.words, self.inside = [], []
        self.feed(text)
        self.text = "".join(word for word, _ in self.words)
        self.plain = "".join(word for word, code in self.words if not code)

    def handle_starttag(self, tag, attributes):
        at = dict(attributes)
        self.tags[f"{tag} {at.get('start', '')}".strip()] += 1
        if tag == "a" and at.get("href"): self.links.append(at["href"])
        if tag == "link" and at.get("rel") not in ("prev", "next", "canonical"): self.loads.append(at["href"])
        if "src" in at and not at["src"].startswith("data:"): self.loads.append(at["src"])
        if "id" in at: self.ids.add(at["id"])
        if tag not in VOID: self.inside.append(bool(CODE.match(tag)) or "arithmatex" in (at.get("class") or ""))

    def handle_endtag(self, tag):
        if tag not in VOID: self.inside.pop()

    def handle_data(self, data):
        self.words.append((data, any(self.inside)))


def give_up_without_packages():
    if ABSENT: give_up(f"the book is not built, not installed: {', '.join(ABSENT)}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The book, built once; a warning fails it."
    give_up_without_packages()
    folder = tmp_path_factory.mktemp("book") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--config-file", BOOK / "mkdocs.yml"]
    done = subprocess.run([*command, "--site-dir", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site): return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


@pytest.fixture
def hooks(monkeypatch):
    "The module that makes pages of notebooks."
    give_up_without_packages()
    monkeypatch.syspath_prepend(BOOK)
    return importlib.import_module("pages")


def test_every_notebook_and_module_has_a_page(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    stems = {path.relative_to(ROOT / "nbs").with_suffix("").as_posix() for path in notebooks()}
    modules = {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
               for path in (ROOT / "pinmem").glob("**/[!_]*.py")} | {"pinmem.streets"}
    assert names == {"404.html", "tracks.html"} | {f"{s}.html" for s in stems} | {f"api/{m}.html" for m in modules}
    assert sum(path.stat().st_size for path in site.rglob("*")) < 60e6


def test_no_link_and_no_picture_leads_nowhere(site, pages):
    "All links are relative, so that the book opens from the file system; whatever a page loads lies beside it."
    broken = []
    for path, page in pages.items():
        if path.name == "404.html": continue                                  # its links are those of a server
        for address in [*page.links, *page.loads]:
            at = urlsplit(address)
            if at.scheme in ("http", "https") and address not in page.loads: continue
            target = (path.parent / unquote(at.path)).resolve() if at.path else path
            found = target.is_file() and site in target.parents and not at.scheme and not at.netloc
            if found and at.fragment and target in pages: found = unquote(at.fragment) in pages[target].ids
            if not found: broken.append(f"{path.relative_to(site)}: {address}")
    assert not broken, broken[:20]


def test_no_style_asks_another_host(site):
    for path in [*site.rglob("*.css"), *site.rglob("*.html")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import|fonts\.g|unpkg|jsdelivr|cdnjs", text), path


SAME = "p div span pre code picture source img".split()


def shape(text):
    "The letters of a text and its tags, except those that differ on purpose or without a loss."
    page = Page(text)
    return "".join(page.text.split()), {t: n for t, n in page.tags.items() if t not in SAME}


def test_prose_is_read_as_in_jupyter(hooks):
    "Python-Markdown makes of every cell what a notebook shows."
    from markdown import markdown
    from markdown_it import MarkdownIt
    jupyter = MarkdownIt("commonmark", {"html": True}).enable("table")
    here = partial(markdown, extensions=["attr_list", "md_in_html", "sane_lists", "tables", "pymdownx.superfences"])
    for path in notebooks():
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "markdown": continue
            text = re.sub(r"\$\$.*?\$\$|\$(?:[^$\n]|\n(?!\n))+\$", "equation", "".join(cell["source"]), flags=re.S)
            assert shape(here(hooks.prose(text))) == shape(jupyter.render(text)), f"{path.name}, cell {cell['id']}"


def test_pages_show_cells_and_hide_marks(site, pages):
    "All code but hidden cells, all outputs, no directive, no bare dollar sign of an equation."
    for path in notebooks():
        page = pages[site / path.relative_to(ROOT / "nbs").with_suffix(".html")]
        assert not re.search(r"^#\|", page.text, re.M) and 'find_spec("pinmem")' not in page.text, path.name
        assert "$" not in page.plain, path.name
        cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
        for cell in cells:
            source = "".join(cell["source"])
            if re.search(r"^#\| ?(hide|default_exp)", source, re.M): continue
            code = re.sub(r"^#\|.*\n", "", source, flags=re.M).strip()
            assert (code in page.text) == ("#| echo: false" not in source), f"{path.name}, cell {cell['id']}"
            for output in cell["outputs"]:
                assert "".join(output.get("text", "")).rstrip() in page.text, f"{path.name}, output of {cell['id']}"
        drawn = sum(any(kind.startswith("image/") for kind in o.get("data", {})) for c in cells for o in c["outputs"])
        assert page.tags["img"] >= drawn, path.name


def test_api_tells_what_comments_tell(site, pages):
    "Arguments, results and switches with their comments, and a link to the cell where each was made."
    read, losses = (pages[site / "api" / f"pinmem.{name}.html"] for name in ("memory_read", "losses"))
    for words in ("read_weights(s, tau=1.0, noise=None)", "(B, N, h, w) cosines",
                  "Returns: torch.Tensor: (B, N, h, w), sums to 1 over N"):
        assert words in " ".join(read.text.split())
    assert "m of Eq 2: the share of an old row that stays" in losses.text and "momentum = 0.8" in losses.text
    cells = json.loads((ROOT / "nbs" / "13_memory_read.ipynb").read_text(encoding="utf-8"))["cells"]
    made = next(cell["id"] for cell in cells if "def read_weights(" in "".join(cell["source"]))
    assert f"../13_memory_read.html#{made}" in read.links


def test_floors_and_tracks(site, pages):
    "Navigation by floors and tracks, with minutes; a track names those of its notebooks that are there."
    tracks, walk = pages[site / "tracks.html"], pages[site / "17_walk.html"]
    for words in "Ground", "Pin the Memory", "The command", "Rooms of the streets", "The idea", "Build it", "20 min":
        assert words in " ".join(tracks.text.split())
    assert {f"{name}.html" for track in TRACKS.values() for name in track} <= set(tracks.links)
    assert {"17_walk.ipynb", "api/pinmem.walk.html", "16_meta_step.html", "18_cost.html"} <= set(walk.links)
    assert (site / "17_walk.ipynb").read_bytes() == (ROOT / "nbs" / "17_walk.ipynb").read_bytes()
    first = (site / "00_labels.html").read_text(encoding="utf-8")
    assert '<a href="tracks.html" class="md-footer__link md-footer__link--prev"' in first


def test_source_is_on_github_where_the_project_is(hooks, monkeypatch):
    notebook = hooks.Notebook(ROOT / "nbs" / "streets" / "00_styles.ipynb")
    assert "[nbs/streets/00_styles.ipynb](00_styles.ipynb)" in hooks.head(notebook, {})
    monkeypatch.setattr(hooks, "address", lambda: "https://github.com/someone/project")
    assert "(https://github.com/someone/project/blob/main/nbs/streets/00_styles.ipynb)" in hooks.head(notebook, {})


def test_missing_packages_are_one_line(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho No module >&2; exit 1\n")
    (tmp_path / "python").chmod(0o755)
    command = ["make", "--silent", "--old-file=.venv/.ready", "book", f"BIN={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and done.stdout.count("\n") == 1
    assert "pip install -c constraints.txt -e '.[book]'" in done.stdout


SOME = ("index.html", "tracks.html", "16_meta_step.html", "26_self_training.html", "streets/05_plants.html",
        "api/pinmem.losses.html")
SEEN = """() => ({
    wide: Math.max(0, document.documentElement.scrollWidth - innerWidth),
    blank: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
    bare: [...document.querySelectorAll(".arithmatex")].filter(e => !e.querySelector("mjx-container > svg")).length,
    scheme: document.body.dataset.mdColorScheme })"""
SET = "document.querySelectorAll('.arithmatex').length == document.querySelectorAll('mjx-container').length"


@pytest.fixture
def served(site):
    "The address of a web server over the book."
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(request):
    "Open a page; a message on the console, a file that is not there and a request to another host fail the test."
    if MISSING: give_up(f"not installed: {', '.join(MISSING)}")
    page, trouble = request.getfixturevalue("browser").new_page(), []
    page.on("console", lambda m: m.type in ("error", "warning") and trouble.append(m.text))
    page.on("pageerror", lambda e: trouble.append(str(e)))
    page.on("response", lambda r: r.status >= 400 and trouble.append(f"{r.status} {r.url}"))

    def open_page(root, name):
        page.on("request", lambda r: r.url.startswith((root, "data:", "about:")) or trouble.append(f"asks {r.url}"))
        page.goto(f"{root}/{name}")
        page.wait_for_function(SET)
        return page

    yield open_page
    page.close()
    assert trouble == []


@pytest.mark.browser
@pytest.mark.parametrize("name", SOME)
def test_page(name, site, visit):
    "Pictures are there, equations are set, nothing hangs over the side: light and dark, on a desk and on a phone."
    page = visit(site.as_uri(), name)
    for width, scheme in ((1280, "default"), (1280, "slate"), (390, "slate"), (390, "default")):
        page.set_viewport_size(dict(width=width, height=900))
        if page.evaluate(SEEN)["scheme"] != scheme:
            page.locator("form[data-md-component=palette] label:visible").click()
        assert page.evaluate(SEEN) == dict(wide=0, blank=[], bare=0, scheme=scheme), width
    assert page.locator("mjx-container").count() > 50 or not name.startswith("16")


@pytest.mark.browser
def test_every_equation_is_understood(site, pages, visit):
    page = visit(site.as_uri(), "13_memory_read.html")
    mark = re.compile(r'<(?:span|div) class="arithmatex">(.*?)</(?:span|div)>', re.S)
    marked = {html.unescape(text) for path in pages for text in mark.findall(path.read_text(encoding="utf-8"))}
    wrong = page.evaluate("""all => all.filter(text =>
        MathJax.tex2svg(text.slice(2, -2)).querySelector("[data-mml-node=merror], [fill=red]"))""", sorted(marked))
    assert len(marked) > 300 and wrong == []


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["file", "server"])
def test_search(site, served, visit, kind):
    "Typed words lead to the notebook that speaks of them; from the file system too, where no worker may be started."
    page = visit(site.as_uri() if kind == "file" else served, "index.html")
    page.locator("input.md-search__input").click()
    page.keyboard.type("Gumbel noise")
    page.locator("a.md-search-result__link[href*='13_memory_read.html']").first.click()
    page.wait_for_url("**/13_memory_read.html*")
    assert page.locator("h1").inner_text().startswith("Memory 3")

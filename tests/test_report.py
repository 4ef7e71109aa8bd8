"""The report of a run is one file, needs nothing else, speaks to every reader, and appears whole or not at all."""
import base64
import io
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pinmem.data import DrawnDomain
from pinmem.model import build_model
from pinmem.report import Picture, png_bytes, run_figures, write_report
from pinmem.scenes import SOURCES, UNSEEN

TABLE = {
    "night": dict(miou=0.4137, images=60, pixels=9, iou={"road": 0.9123, "train": None}),
    "a <b>": dict(miou=0.3059, images=8, pixels=9, iou={"road": 0.6204, "train": 0.0}),
}


class Page(HTMLParser):
    """Collects tags, the text of cells and tags that were never closed."""

    VOID = {"meta", "img", "link", "br", "hr", "input"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID: self.open.append(tag)
        if tag in ("td", "th"): self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"): self.cells[-1] += data


@pytest.fixture
def dot():
    fig = plt.figure(figsize=(1, 1))
    return png_bytes(fig, dpi=30)


@pytest.fixture
def page(tmp_path, dot):
    figures = {"One": Picture(dot, 'Says "one".', "A caption."), "Two": Picture(plt.figure(figsize=(1, 1)), "Says two.")}
    path = write_report(tmp_path / "report.html", title="A & B", config={"lr": 0.01, "x": "</pre><script>"}, table=TABLE,
                        log={"step": [0, 1], "loss_seg": [2.5, 1.25]}, figures=figures, notes="Some words.")
    assert list(tmp_path.iterdir()) == [path]
    return path.read_text(encoding="utf-8")


def test_fetches_nothing(page):
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        for name in ("src", "href", "srcset", "data", "background"):
            assert attributes.get(name, "data:image/png;base64,").startswith("data:image/png;base64,")
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert parsed.open == []


def test_every_picture_has_words_and_can_be_decoded(page):
    pictures = [attributes for tag, attributes in Page(page).tags if tag == "img"]
    assert [p["alt"] for p in pictures] == ['Says "one".', "Says two."]
    for p in pictures: Image.open(io.BytesIO(base64.b64decode(p["src"].split(",")[1]))).verify()


def test_holds_the_numbers(page):
    cells = Page(page).cells
    for text in ("41.4", "30.6", "36.0", "91.2", "62.0", "0.0", "–", "60", "8", "a <b>", "2.500", "1.250"):
        assert text in [c.strip() for c in cells], text


def test_reads_on_a_phone_and_in_the_dark(page):
    assert '<meta name="viewport" content="width=device-width' in page and 'lang="en"' in page
    assert "prefers-color-scheme: dark" in page and "overflow-x: auto" in page


def test_an_error_leaves_the_old_report(tmp_path, dot):
    path = write_report(tmp_path / "report.html", title="Old")
    old = path.read_bytes()
    with pytest.raises(ValueError, match="'Blind'.*alt text"):
        write_report(path, title="New", figures={"Good": Picture(dot, "Fine."), "Blind": Picture(dot, "")})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(tmp_path / "report.html", title="Old")
    old, write = path.read_bytes(), type(path).write_text
    def half(self, text, **kwargs):
        write(self, text[: len(text) // 2], **kwargs)
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(type(path), "write_text", half)
    with pytest.raises(OSError, match="No space left"): write_report(path, title="New")
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("memory", [True, False])
def test_figures_of_a_run(memory):
    torch.manual_seed(0)
    model = build_model(weights=None, memory=memory).eval()
    if memory: model.mem.copy_(torch.nn.functional.normalize(torch.rand_like(model.mem), dim=1))
    domains = [DrawnDomain(name, 2, size=(128, 64)) for name in (SOURCES[0], UNSEEN[0])]
    figures = run_figures(model, domains[:1], domains[1:])
    asks = {"Memory weights", "Memory weights stretched", "Likeness of the memory rows"}
    assert set(figures) == {"Predictions", "Features by class and by domain"} | (asks if memory else set())
    for title, picture in figures.items():
        assert len(picture.alt) > 40 and re.fullmatch(r"[A-Za-z ]+", title), "the title becomes a file name"
        assert np.asarray(Image.open(io.BytesIO(png_bytes(picture.image, dpi=40)))).std() > 0
    assert not plt.get_fignums()

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

from pinmem.data import DrawnDomain, to_tensor
from pinmem.embeddings import collect_means, collect_pixels, embed, memory_path, plot_embedding
from pinmem.losses import Objective
from pinmem.meta_step import meta_gradients, write_memory
from pinmem.model import build_model
from pinmem.plan import plan
from pinmem.plots import memory_weight_maps, png_bytes
from pinmem.report import Picture, ask, memory_pictures, report_run, run_figures, what_is_unseen, write_report
from pinmem.streets import SOURCES, UNSEEN
from pinmem.training import RecordMemory, read_path
from pinmem.stops import STOPS, alt_text, player, show_stop, stop_png
from pinmem.walk import walk

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


def test_what_is_unseen_is_said_truly():
    def say(**how): return what_is_unseen(plan(**{"method": "aggregation", **how}))
    assert say(sources=["town"], targets=["night"]) == "This run never trained on its targets."
    both = say(sources=["town", "night"], targets=["night", "fog"])
    assert "trained on night" in both and "never" not in both
    adapted = say(method="norm-only", sources=["town"], targets=["fog", "rain"], photos=["fog"])
    assert adapted == say(sources=["town"], targets=["fog"]) + " It adapted to unlabelled pictures of fog, which is scored, too."


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


def test_means_do_not_mix_label_sets(tmp_path):
    "An mIoU over fewer classes is another quantity: it gets no part in the mean of the others."
    photos = dict(miou=0.9, images=5, pixels=9, iou={"road": 0.9})
    text = write_report(tmp_path / "r.html", title="Two sets", table={**TABLE, "photos": photos}).read_text(encoding="utf-8")
    cells = [c.strip() for c in Page(text).cells]
    assert "mean of 2" in cells and "36.0" in cells and "mean" not in cells and "54.0" not in cells


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


def test_other_models_and_the_path_of_the_memory_come_in(tmp_path):
    torch.manual_seed(0)
    model, other = build_model(weights=None).eval(), build_model(weights=None, memory=False).eval()
    domains = [DrawnDomain(name, 2, size=(128, 64)) for name in (SOURCES[0], UNSEEN[0])]
    record = RecordMemory(model, every=1, file=tmp_path / "memory_path.safetensors")
    for step in range(3):
        model.mem = torch.nn.functional.normalize(model.mem + 0.2 * torch.rand_like(model.mem), dim=1)
        record([{"step": step}])
    figures = run_figures(model, domains[:1], domains[1:], others={"bare": other}, path=read_path(record.file))
    assert "over 3 steps" in figures["Path of the memory"].alt
    assert f"this run: {UNSEEN[0]}" in figures["Predictions"].alt and f"bare: {UNSEEN[0]}" in figures["Predictions"].alt
    assert len(figures["Predictions"].image.axes) == 6
    for picture in figures.values(): png_bytes(picture.image, dpi=30)
    assert not plt.get_fignums()


def test_pictures_use_the_statistics_of_the_method():
    "A method whose networks answer with the images' own statistics is drawn so; nobody opens a context first."
    torch.manual_seed(0)
    model, domain = build_model(weights=None), DrawnDomain(UNSEEN[0], 2, size=(128, 64))
    model.mem.copy_(torch.nn.functional.normalize(torch.rand_like(model.mem), dim=1))
    answers, points = {}, {}
    for share in (0.0, 1.0):
        model.train().statistics = share
        (_, answers[share]), points[share] = ask(model, domain[0][0]), collect_pixels(model, [domain])
        whole = model.predict(to_tensor(domain[0][0])[None], share, full=True)
        assert torch.allclose(answers[share], whole["w"][0]) and not model.training
        seen = torch.nn.functional.normalize(whole["f"][0].flatten(1), dim=0).T.numpy()
        assert np.isclose(points[share].x @ seen.T, 1, atol=1e-5).any(1).mean() > 0.3, "many are of the first image"
        alt = memory_pictures(model, Same(domain))["Memory weights"].alt
        assert f"{whole['w'].min():.3f} to {whole['w'].max():.3f}" in alt
    assert not torch.allclose(answers[0.0], answers[1.0], atol=1e-3)
    assert not np.allclose(points[0.0].x, points[1.0].x, atol=1e-2)
    plt.close("all")


class Same:
    "The first image of a domain alone."
    def __init__(self, domain): self.name, self.labels, self.domain = domain.name, domain.labels, domain
    def __len__(self): return 1
    def __getitem__(self, i): return self.domain[0]


def test_a_run_is_written_down_whole(tmp_path):
    torch.manual_seed(0)
    model = build_model(weights=None)
    domains = [DrawnDomain(name, 2, size=(128, 64)) for name in (SOURCES[0], UNSEEN[0])]
    (tmp_path / "log.csv").write_text("step,loss_seg\n0,2.5\n1,1.5\n")
    record = RecordMemory(model, every=1, file=tmp_path / "memory_path.safetensors")
    model.mem = torch.nn.functional.normalize(model.mem + 0.2 * torch.rand_like(model.mem), dim=1)
    record([{"step": 0}])
    backend = matplotlib.get_backend()
    page = report_run(tmp_path, model, plan("aggregation", sources=SOURCES[:1], seed=7), TABLE, domains[:1], domains[1:])
    assert "for 2 steps, seed 7" in (text := page.read_text(encoding="utf-8")) and matplotlib.get_backend() == backend
    files = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert {"losses", "predictions", "memory-weights", "path-of-the-memory"} <= files
    assert len(files) == text.count("<img ")
    assert not plt.get_fignums() and not [p for p in tmp_path.rglob("*.part")]


def test_a_model_without_memory_cannot_be_recorded():
    with pytest.raises(ValueError, match="no memory"): RecordMemory(build_model(weights=None, memory=False))


def test_class_means_of_any_model_and_any_domain_make_a_map():
    torch.manual_seed(0)
    model = build_model(weights=None, memory=False).eval()
    points = collect_means(model, [DrawnDomain(name, 4, size=(128, 64)) for name in (SOURCES[0], UNSEEN[0])], 3)
    assert set(points.dom) == {SOURCES[0], UNSEEN[0]} and np.allclose(np.linalg.norm(points.x, axis=1), 1, atol=1e-5)
    for n in np.unique(points.cls):
        for d in np.unique(points.dom): assert ((points.cls == n) & (points.dom == d)).sum() <= 3
    for method in ("pca", "tsne"):
        fig = plot_embedding(embed(points.x, None, method, perplexity=5), points)
        drawn = [np.concatenate([c.get_offsets() for c in ax.collections]) for ax in fig.axes[:2]]
        assert len(drawn[0]) == len(drawn[1]) == len(points.x)
        plt.close(fig)


@pytest.mark.parametrize("scale", ["shared", "each", "pixel"])
def test_weight_maps_say_their_range_whatever_the_scale(scale):
    w = torch.softmax(torch.randn(19, 4, 8, generator=torch.Generator().manual_seed(0)), 0)
    fig = memory_weight_maps(np.zeros((64, 128, 3), np.uint8), w, scale=scale)
    for n, ax in enumerate(fig.axes[1:20]):
        assert ax.get_title().endswith(f"{w[n].min():.3f} to {w[n].max():.3f}")
        if scale == "pixel": assert ax.images[0].get_clim() == (0, 1)
    plt.close(fig)


def test_a_path_ends_where_the_memory_is():
    mems = [np.eye(19, 32) + t * np.roll(np.eye(19, 32), 1, 1) for t in (0, 0.5, 1)]
    ax = memory_path(mems, ids=[0, 13])
    assert len(ax.lines) == 2 and all(len(line.get_xdata()) == 3 for line in ax.lines)
    ends = np.array([[line.get_xdata()[-1], line.get_ydata()[-1]] for line in ax.lines])
    triangles = ax.collections[-1].get_offsets()
    assert np.allclose(ends, triangles)
    plt.close(ax.figure)


def two_sides():
    x, y = (torch.stack(v) for v in zip(*(to_tensor(*DrawnDomain(s, 1, size=(64, 32))[0]) for s in SOURCES + UNSEEN[:1])))
    return (x[:2], y[:2]), (x[2:4], y[2:4])


@pytest.mark.parametrize("choice", [dict(order=2, objective="outer", prime="prime_frozen_e"),
                                    dict(order=2, objective="sum", prime="prime", aim=Objective(momentum=0.5, reduction="sum")),
                                    dict(order=1, objective="sum", prime="hat", aim=Objective(lam1=0.1)), dict(objective="mean")])
def test_the_walk_is_the_step(choice):
    torch.manual_seed(0)
    model = build_model(encoder="test_resnet", weights=None, rates=(1, 2, 3), aux=True, aux_dropout=0.0, channels=32, context_width=16,
                        width=16).train()
    mtr, mte = two_sides()
    if choice.get("objective") == "mean": mte = tuple(torch.cat([t, t[:1]]) for t in mte)  # more images on one side
    before = {name: t.clone() for name, t in model.state_dict().items()}
    stops = walk(model, model.mem, mtr, mte, alpha=0.05, beta=0.02, **choice)
    assert tuple(s.name for s in stops) == STOPS and all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    step = meta_gradients(model, params, buffers, model.mem, mtr, mte, alpha=0.05, **choice)
    found = {name: value for s in stops for name, value in s.values.items()}
    for which in ("inner", "outer", "grads"):
        for name, g in getattr(step, which).items(): assert torch.equal(found[which][name], g), (which, name)
    assert torch.equal(found["mem_hat"], step.mem_hat) and torch.equal(found["mem_prime"], step.mem_prime)
    star = {name: (p - 0.02 * step.grads[name]).detach() for name, p in params.items()}
    model.load_state_dict({**star, **step.buffers}, strict=False)
    assert torch.equal(found["mem_star"], write_memory(model, before["mem"], *mtr, aim=choice.get("aim", Objective())))
    assert all(set(row) == set("EUDGA") for s in stops for row in s.grads.values()), "the auxiliary head has its column"
    assert all(len(s.captions) <= 2 for s in stops)


def test_a_stop_is_a_picture_with_words_and_the_player_shows_it():
    torch.manual_seed(0)
    model = build_model(encoder="test_resnet", weights=None, aux=False, channels=32).train()
    stops = walk(model, model.mem, *two_sides())
    for stop in stops[3:7:3]:
        fig = show_stop(stop)
        fig.canvas.draw()
        size, texts = fig.get_window_extent(), [t for ax in fig.findobj(plt.Axes) for t in ax.texts if t.get_text()]
        for t in texts:
            box = t.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= size.x1 + 1 and box.y0 >= -1 and box.y1 <= size.y1 + 1, t.get_text()
        plt.close(fig)
    box = player(stops)
    (back, ahead, play, slider), picture, words = box.children[0].children, box.children[1], box.children[2]
    first = picture.value
    assert Image.open(io.BytesIO(first)).size[0] > 600 and first == stop_png(stops[0]) and len(first) < 150_000
    slider.value = 6
    assert picture.value != first and "Stop 7 of 8, second order" in words.value and "\\alpha" not in words.value
    ahead.click()
    assert slider.value == 7 and ahead.disabled and not back.disabled
    assert "nobody" in alt_text(stops[7]), "nothing flows back through the kept memory"

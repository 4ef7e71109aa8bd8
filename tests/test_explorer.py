"""The explorer over pictures of every kind, without a memory, under quick moves, and twice at once; no browser."""
import asyncio
import html
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from pinmem.app import explore, free_port
from pinmem.bench import REST, Bench
from pinmem.cli import main
from pinmem.data import to_tensor
from pinmem.desk import Desk, State, fitting_size, load_networks, open_picture, quick_network
from pinmem.explorer import Explorer, Latest, bars, panels, places, words
from pinmem.model import build_model
from pinmem.plots import png_bytes
from pinmem.runs import adapt, train
from pinmem.training import save_model

SMALL = dict(weights=None, encoder="test_resnet", channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)


@pytest.fixture(scope="module")
def networks():
    "Never trained: nothing here depends on what a network knows."
    torch.manual_seed(0)
    made = {"filled": build_model(tau=0.1, **SMALL).eval(), "bare": build_model(memory=False, **SMALL).eval()}
    made["filled"].mem = torch.nn.functional.normalize(torch.rand_like(made["filled"].mem), dim=1)
    return made


@pytest.fixture
def explorer(networks): return Explorer(Desk(networks, size=(64, 32)))


def agrees(e):
    "Page and functions say the same."
    want = e.desk.view(e.state())
    assert e.sheet.value == png_bytes(panels(want)) and e.bars.value == png_bytes(bars(want))
    assert [html.escape(line) in e.text.value for line in words(want)] == [True] * len(words(want))
    assert e.sheet.alt.endswith(words(want)[0]) and e.bars.alt.endswith(words(want)[1])
    return want


def sixteen(channels, w=40, h=24):
    "A 16-bit PNG by hand, white on the left and black on the right; Pillow writes only the grey one."
    def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    row = b"\0" + b"\xff\xff" * (channels * w // 2) + b"\0\0" * (channels * w // 2)
    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * h)) + chunk(b"IEND", b"")


def halves(mode, kind="PNG", **more):
    "White on the left, black on the right."
    im = Image.new("RGB", (40, 24), "black")
    im.paste("white", (0, 0, 20, 24))
    file = io.BytesIO()
    im.convert(mode).save(file, kind, **more)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6                             # to be shown turned by 90 degrees clockwise: left becomes top
    return halves("RGB", exif=exif)


@pytest.mark.parametrize("data", [
    *(pytest.param(halves(mode), id=mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *(pytest.param(halves(mode, "TIFF"), id=f"TIFF {mode}") for mode in ("CMYK", "LAB", "F", "I")),
    pytest.param(halves("CMYK", "JPEG", quality=95), id="CMYK"), pytest.param(halves("RGB", "WEBP", lossless=True), id="WEBP"),
    *(pytest.param(sixteen(c), id=f"16 bits, {c} channels") for c in (1, 3, 4)), pytest.param(turned(), id="EXIF")])
def test_every_kind_of_picture(explorer, data, request):
    explorer.load("own", data)
    view = agrees(explorer)
    image = view.image if "EXIF" not in request.node.name else view.image.transpose(1, 0, 2)
    assert image.dtype == np.uint8 and view.truth is None and "truth unknown" in explorer.text.value
    if "4 channels" in request.node.name: image = image[:, :18]     # its black half is transparent: the page shows
    assert image[:, :18].min() > 240 and (image.shape[1] == 18 or image[:, 23:].max() < 15)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (31, 33), (1999, 1500), (512, 512)])
def test_every_size(explorer, size):
    file = io.BytesIO()
    Image.effect_noise(size, 80).save(file, "PNG")
    explorer.load("own", file.getvalue())
    view = agrees(explorer)
    assert view.image.shape[1::-1] == fitting_size(*size)
    assert (explorer.controls["x"].max + 1, explorer.controls["y"].max + 1) == fitting_size(*size)


@pytest.mark.parametrize("data", [b"", b"no picture", halves("RGB")[:80], halves("RGB", "JPEG")[:300]])
def test_a_broken_picture_is_named_and_changes_nothing(explorer, data):
    before, shown = explorer.state(), explorer.shown
    explorer.load("broken.png", data)
    assert "cannot be read as a picture" in explorer.text.value and (explorer.state(), explorer.shown) == (before, shown)
    explorer.controls["x"].value += 1
    agrees(explorer)


def test_two_pictures_of_one_name(explorer):
    for mode, level in (("white", 255), ("black", 0)):
        file = io.BytesIO()
        Image.new("RGB", (40, 24), mode).save(file, "PNG")
        explorer.load("same.png", file.getvalue())
        assert (agrees(explorer).image == level).all(), "the later one counts"


def test_without_memory(explorer):
    explorer.controls["method"].value = "bare"
    view = agrees(explorer)
    assert view.thought.w is None and "bare has no memory" in explorer.text.value
    assert np.isclose(view.pixel.weights.sum(), 1) and view.pixel.weights.argmax() == view.pixel.pred
    assert explorer.controls["tau"].disabled and explorer.controls["memory"].disabled
    x, y = view.pixel.x, view.pixel.y
    assert view.pixel.weights[view.pixel.pred] == view.thought.p[:, y, x].max(), "bars are those of the pixel itself"


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "no memory"])
def test_two_heads_before_and_after_adaptation(tmp_path, memory):
    "Both networks of an adaptation on one desk say what they say elsewhere; the pixel stays where it was."
    quiet = dict(quiet=True, threads=1, workers=0, device="cpu")
    make = dict(head="twoheads", encoder="test_resnet", weights=None, rates=(1, 2), method="pinmem" if memory else "aggregation")
    train(["town", "winter"], 1, tmp_path / "start", targets=["fog"], size=(64, 32), scenes=2, exam=1, memory_images=2, crop=(64, 32),
          **make, **quiet)
    adapt(tmp_path / "start", "night", out=tmp_path / "adapted", method="clan+norm", targets=(), steps=2, **quiet)
    networks = load_networks([tmp_path / "start", tmp_path / "adapted"])
    explorer, said = Explorer(Desk(networks, size=(64, 32))), {}
    explorer.controls["x"].value = 5
    for name, net in networks.items():
        explorer.controls["method"].value = name
        view = said[name] = agrees(explorer)
        logits = net.predict(to_tensor(view.image)[None])[0]          # (N, H, W)
        assert np.allclose(view.thought.p, logits.softmax(0), atol=1e-5) and (view.trained == logits.argmax(0).numpy()).all()
        assert view.pixel.x == 5 and (view.thought.w is not None) == memory == (not explorer.controls["tau"].disabled)
        if memory: assert np.allclose(view.thought.w.sum(0), 1, atol=1e-5) and abs(view.thought.s).max() <= 1 + 1e-5
    assert (said["start"].image == said["adapted"].image).all()
    assert not np.allclose(said["start"].thought.p, said["adapted"].thought.p, atol=1e-5)


@pytest.mark.parametrize("at", [(-1.0, -1.0), (0.5, 0.999), (1.0, 0.5), (7.0, 0.1), (0.1, 0.001), (float("nan"), 0.5)])
def test_pointer_outside(explorer, at):
    before = explorer.state()
    explorer.press(at)
    assert explorer.state() == before
    agrees(explorer)


def test_pointer_inside_by_the_trait(explorer):
    (_, (W, H)), (left, top) = places((32, 64)), places((32, 64))[0][2]
    explorer.sheet.at = [(left + 1) / W, (top + 1) / H]
    assert (explorer.state().x, explorer.state().y) == (0, 0)
    agrees(explorer)


def test_of_quick_moves_only_the_last_is_computed(explorer):
    async def drag():
        for x in range(60): explorer.controls["x"].value = x
        explorer.controls["tau"].value = 1.0
        assert explorer.shown == shown, "nothing is computed while the hand moves"
        await asyncio.sleep(0.3)
    shown = explorer.shown
    asyncio.run(drag())
    assert explorer.shown == shown + 1
    view = agrees(explorer)
    assert view.pixel.x == 59 and view.state.tau == 1.0


def test_an_error_does_not_block_what_follows():
    calls = []
    def work():
        calls.append(1)
        if len(calls) == 1: raise RuntimeError("once")
    latest = Latest(work, later=lambda wait, call: call())
    with pytest.raises(RuntimeError): latest()
    latest()
    assert len(calls) == 2


def test_two_explorers_and_a_bench_on_one_desk(networks):
    desk = Desk(networks, size=(64, 32))
    one, two, bench = Explorer(desk), Explorer(desk), Bench(desk, budget=2)
    for x in (5, 25, 45):
        one.controls["x"].value, two.controls["x"].value = x, 63 - x
        assert agrees(one).pixel.x == x and agrees(two).pixel.x == 63 - x
    two.controls["picture"].value, two.controls["method"].value = "fog", "bare"
    assert agrees(one).state.picture == "town" and agrees(two).state.picture == "fog"
    one.load("mine.png", halves("RGB"))
    assert "own picture: mine.png" in bench.controls["picture"].options and bench.settings() == REST


def test_the_state_alone_decides(networks):
    "The same state on a fresh desk and on one that has seen much gives the same picture."
    used = Desk(networks, size=(64, 32), keep=3)
    states = [State(m, p, i, 20 + i, 9, tau=t, memory=on) for m in networks for p, i, t, on in
              (("town", 0, 0.1, True), ("night", 1, 1.0, False))]
    for state in states * 2:
        assert png_bytes(panels(used.view(state))) == png_bytes(panels(Desk(networks, size=(64, 32)).view(state)))
    assert len(used.known) <= 3


def test_a_quick_network_learns():
    from pinmem.data import DrawnDomain
    from pinmem.plots import accuracy
    model = quick_network(streets=1, steps=6)
    pairs = [DrawnDomain("town", 1)[0]]
    desk = Desk({"quick": model}, {"p": pairs[0]})
    untrained = Desk({"quick": build_model(tau=0.1, weights=None).eval()}, {"p": pairs[0]})
    right = [accuracy(pairs[0][1], d.view(State("quick", "p")).thought.pred) for d in (desk, untrained)]
    assert right[0] > 0.4 and right[0] > right[1] + 0.2
    assert torch.allclose(model.mem.norm(dim=1), torch.ones(19), atol=1e-5)


# ------------------------------------------------------------------------------------------------- the command

def test_mistakes_are_one_line(tmp_path, capsys, monkeypatch, networks):
    save_model(tmp_path / "run", networks["filled"])
    def refused(*words):
        assert main(["explore", *map(str, words)]) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("pinmem: ") and "\n" not in line
        return line
    assert "nowhere" in refused(tmp_path / "nowhere")
    assert "port 99999" in refused(tmp_path / "run", "--port", "99999")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'pinmem[app]'" in refused(tmp_path / "run")


def test_no_run_is_a_mistake():
    with pytest.raises(ValueError, match="no run is given"): explore([])


def test_bytes_and_files_are_read_alike(tmp_path):
    (tmp_path / "a.png").write_bytes(halves("RGBA"))
    assert (open_picture(tmp_path / "a.png") == open_picture(halves("RGBA"))).all()


def test_a_port_is_free(): assert free_port(port := free_port()) == port

"""Files that answer like their network, folders that others load, and predictions on thousands of pictures."""
import configparser
import copy
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pinmem.export as exporting
from helpers import ROOT, complaint
from pinmem.cli import main
from pinmem.export import (MemoryNet, export, for_file, read_export, read_program, smallest, to_program,
                           write_program)
from pinmem.labels import CLASSES, COLOURS
from pinmem.normalisation import build_network
from pinmem.runs import Run, predict_many, train

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'pinmem[export]'")
SMALL = dict(targets=["night"], settle=0, average=0, size=(128, 64), crop=(64, 32), scenes=3, exam=2, memory_images=2, steps=2, quiet=True, threads=1,
             workers=0, device="cpu")
TINY = dict(encoder="test_efficientnet", weights=None, channels=16, rates=(1, 2), context_width=8, fine=8, width=16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Two steps of the default network, whose encoder pads by the size of the picture."
    return Run.open(train(out=tmp_path_factory.mktemp("export") / "run", **SMALL).folder, "cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return Run.open(train(out=tmp_path_factory.mktemp("tiny") / "run", **SMALL, **TINY).folder, "cpu")


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    "Function: form -> its file, written by the command, once, and from one graph: to draw it takes ten seconds."
    program = cache(lambda: to_program(run.model))
    @cache
    def written(form):
        out = tmp_path_factory.mktemp(form) / {"onnx": "net.onnx", "torch": "net.pt2"}[form]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "to_program", lambda model: program())
            assert main(["export", str(run.folder), "--to", form, "--out", str(out)]) == 0
        assert [path.name for path in out.parent.iterdir()] == [out.name]
        return out
    return written


@pytest.fixture(scope="module", params=["onnx", "torch"])
def file(request, written): return written(request.param)


@pytest.fixture(scope="module")
def opened(file):
    "Its answer and its facts; to read a program of PyTorch takes seconds."
    return read_export(file)


def refused(capsys, *words):
    "The command must end with code 2 and exactly one line; returns that line."
    capsys.readouterr()
    assert main(list(words)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("pinmem: ") and "\n" not in error and "Traceback" not in error
    return error


# ------------------------------------------------------------------------------------------ the same answers

def test_twenty_pictures_of_different_sizes(opened, run):
    "Logits within 1e-4, the same class in every pixel where the best two are further apart than that."
    answer, rng, low = opened[0], np.random.default_rng(7), smallest(run.model)
    sizes = {(low, low), (low, 300), *map(tuple, rng.integers(low, 260, (18, 2)).tolist())}
    assert len(sizes) == 20 and {h % 2 for h, _ in sizes} == {w % 2 for _, w in sizes} == {0, 1}
    for size in sizes:
        x = torch.from_numpy(rng.random((1, 3, *size), np.float32))
        ours, theirs = run.model.predict(x), answer(x).detach()
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-4
        best = ours.topk(2, 1).values
        assert (ours.argmax(1) == theirs.argmax(1))[best[:, 0] - best[:, 1] > 2e-4].all()
    assert ours.std() > 0.1, "logits that are all alike would prove nothing"


def test_a_file_has_one_input_and_no_chance_in_it(opened, file, run):
    answer, x = opened[0], torch.rand(3, 3, 47, 82)
    assert torch.equal(answer(x), answer(x))
    assert (answer(x)[1] - run.model.predict(x[1:2])[0]).abs().max() < 1e-4, "several at once are answered like one"
    if file.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(file))
        assert [(i.name, i.type) for i in session.get_inputs()] == [("x", "tensor(float)")]
    mem = run.model.mem.clone()
    with torch.no_grad(): run.model.mem.copy_(mem.flip(1))
    try: assert (answer(x) - run.model.predict(x)).abs().max() > 1e-3, "the file keeps the memory it was written with"
    finally: run.model.mem.data.copy_(mem)


def test_a_file_says_what_it_is(opened, run):
    facts = opened[1]
    assert json.loads(facts["classes"]) == CLASSES and json.loads(facts["colours"]) == COLOURS.tolist()
    assert json.loads(facts["scores"]) == {name: result["miou"] for name, result in run.results.items()}
    assert (facts["method"], facts["encoder"], facts["height"]) == ("pinmem", "tf_efficientnet_lite0", "256")


def test_a_picture_of_one_pixel(opened, file, run, tmp_path, capsys):
    "A file says which sizes it takes; the network itself takes any."
    complaint(ValueError, lambda: opened[0](torch.zeros(1, 3, 1, 1)), "1x1", file.name, "17")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert main(["predict", str(run.folder), str(tmp_path / "dot.png"), "--out", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "dot_mask.png").size == (1, 1)


def test_onnx_without_torch(run, written, tmp_path):
    "What the notebook shows: numpy, Pillow and onnxruntime are enough."
    code = next("".join(c["source"]) for c in json.loads((ROOT / "nbs/39_export.ipynb").read_text(encoding="utf-8"))["cells"]
                if "torch" in "".join(c["source"]) and "program = '''" in "".join(c["source"]))
    program = re.search("program = '''(.*?)'''", code, re.S)[1]
    (tmp_path / "run").mkdir()
    shutil.copy(written("onnx"), tmp_path / "run" / "model.onnx")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 130, 3), np.uint8)).save(tmp_path / "photo.png")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    ours = COLOURS[run.predict(tmp_path / "photo.png").mask]
    assert (np.array(Image.open(tmp_path / "mask.png")) == ours).all(-1).mean() > 0.999


@pytest.mark.parametrize("how", [
    dict(encoder="resnet18", head="twoheads", memory=False, ceil_pool=True),
    dict(encoder="test_efficientnet", head="deeplabv2", read="centred", fusion="residual"),
    dict(encoder="resnet18", head="fcn8s", fusion="bias"),
    dict(encoder="tf_efficientnet_lite0", norm="ibn-a", memory=False, output_stride=8),
    dict(encoder="regnetx_002", output_stride=32, read="gumbel")], ids=lambda how: f"{how['encoder']} {how.get('head', '')}")
def test_every_kind_of_network(how):
    torch.manual_seed(0)
    net = build_network(weights=None, **how).eval()
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d): torch.nn.init.uniform_(m.running_var, 0.5, 2); torch.nn.init.normal_(m.running_mean)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    answer, low = to_program(net).module(), smallest(net)
    for size in (low, low + 1), (64, 97), (101, 66), (low + 14, 50 + low):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(answer(x), net.predict(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items()), "the network stays as it is"


def test_only_what_answers_goes_into_a_file(run):
    kept = {name.split(".")[0] for name in for_file(run.model).state_dict()}
    assert kept == {"encoder", "decoder", "mem"} and run.model.updater is not None


def test_a_program_is_written_without_a_warning(tiny, tmp_path, recwarn):
    "A run trains with channels last; of such weights PyTorch says that none of them is complete."
    model = copy.deepcopy(tiny.model).to(memory_format=torch.channels_last)
    assert not all(v.is_contiguous() for v in model.state_dict().values())
    write_program(to_program(model), {"a": 1}, tmp_path / "net.pt2")
    x = torch.rand(1, 3, 70, 90)
    assert (read_program(tmp_path / "net.pt2")[0](x) - model.predict(x, 0.0)).abs().max() < 1e-4
    assert not [str(w.message) for w in recwarn if "complete tensor" in str(w.message)]


# ------------------------------------------------------------------------------------------ what is refused

def changed(run, tmp_path, change):
    "A copy of a run whose config is another."
    shutil.copytree(run.folder, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    change(config)
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "other")


@pytest.mark.parametrize("change, said", [
    (lambda c: c["model"].update(n=11), "11 classes"),
    (lambda c: c["model"].update(encoder="resnet9000"), "resnet9000"),
    (lambda c: c["model"].update(spin=1), "another version"),
    (lambda c: c.update(method="telepathy"), "telepathy"),
    (lambda c: c["score"].update(statistics=0.5), "statistics=0.5"),
    (lambda c: c.update(method="tsmldg", algorithm={}), "tsmldg"),
    (lambda c: c.pop("model"), "config.json"),
])
def test_runs_that_cannot_be_exported(change, said, tiny, tmp_path, capsys):
    other = changed(tiny, tmp_path, change)
    before = sorted(Path(other).iterdir())
    assert said in refused(capsys, "export", other)
    assert sorted(Path(other).iterdir()) == before


def test_targets_that_cannot_be_written(tiny, tmp_path, capsys, monkeypatch):
    run, there = str(tiny.folder), tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    assert "already there" in refused(capsys, "export", run, "--out", str(there))
    assert "no folder" in refused(capsys, "export", run, "--out", str(there / "net.onnx"))
    assert "no folder" in refused(capsys, "export", run, "--out", str(tmp_path / "nowhere" / "net.onnx"))
    assert ".onnx" in refused(capsys, "export", run, "--out", str(tmp_path / "net.pt2"))
    assert "no such folder" in refused(capsys, "export", str(tmp_path / "norun"))
    assert "tensorflow" in refused(capsys, "export", run, "--to", "tensorflow")
    def denied(*args, **how): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "touch", denied)
    monkeypatch.setattr(exporting, "to_program", lambda model: pytest.fail("the work was begun"))
    assert "Permission denied" in refused(capsys, "export", run, "--out", str(tmp_path / "net.onnx"))
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"] and there.read_bytes() == b"mine"


def test_onnxruntime_is_missing_or_too_old(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "to_program", lambda model: pytest.fail("the work was begun"))
    words = "export", str(tiny.folder), "--out", str(tmp_path / "net.onnx")
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.0")
    assert "1.9.0" in (said := refused(capsys, *words)) and "pinmem[export]" in said
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "onnxruntime is not installed" in (said := refused(capsys, *words)) and "pinmem[export]" in said
    assert not list(tmp_path.iterdir())


def test_needed_versions_are_those_of_settings():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    assert ini["DEFAULT"]["export_requirements"].split() == [f"{name}>={least}" for name, least in exporting.NEEDED.items()]


def test_a_file_that_answers_otherwise_is_not_kept(tiny, tmp_path, monkeypatch):
    "A graph whose last bias is off by a thousandth."
    def spoiled(model):
        net = for_file(model)
        net.decoder.classify.bias.data += 1e-3
        return net
    monkeypatch.setattr(exporting, "for_file", spoiled)
    complaint(ValueError, lambda: export(tiny, "torch", tmp_path / "net.pt2"), "not kept")
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_decides_by_the_size_is_named():
    net = build_network(weights=None, encoder="test_vit", output_stride=16)
    complaint(ValueError, lambda: to_program(net.eval()), "test_vit", "ResNet")


def test_files_that_are_none(tmp_path):
    complaint(FileNotFoundError, lambda: read_export(tmp_path / "net.onnx"), "no such file")
    (tmp_path / "net.pth").write_bytes(b"")
    complaint(ValueError, lambda: read_export(tmp_path / "net.pth"), ".onnx or .pt2")


# ------------------------------------------------------------------------------------------ a folder that others load

def test_saved_and_loaded(tiny, tmp_path, capsys):
    tiny.model.save_pretrained(tmp_path / "shared", run=tiny)
    names = {path.name for path in (tmp_path / "shared").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "results.json"}
    net, x = MemoryNet.from_pretrained(tmp_path / "shared"), torch.rand(1, 3, 64, 96)
    assert type(net) is MemoryNet and not net.training and torch.equal(net.predict(x), tiny.model.predict(x))
    again = Run.open(tmp_path / "shared", "cpu")
    assert again.plan == tiny.plan and again.results == tiny.results, "the folder is a run, too"
    complaint(ValueError, lambda: tiny.model.save_pretrained(tmp_path / "shared", run=tiny), "already there")


def test_the_card_holds_the_figures_of_the_run(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path / "shared", run=tiny)
    card = (tmp_path / "shared" / "README.md").read_text(encoding="utf-8")
    head, text = card.split("---\n", 2)[1:]
    assert "library_name: pinmem" in head and "pipeline_tag: image-segmentation" in head
    for name, result in tiny.results.items(): assert re.search(rf"{name}\s+{100 * result['miou']:.1f}\b", text), name
    assert "`pinmem`" in text and "test_efficientnet" in text and "256 high" in text


def test_a_network_alone_is_shared_without_figures(tiny, tmp_path, monkeypatch):
    tiny.model.save_pretrained(tmp_path / "alone")
    assert "not recorded" in (tmp_path / "alone" / "README.md").read_text(encoding="utf-8")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(MemoryNet.from_pretrained(str(tmp_path / "alone")).predict(x), tiny.model.predict(x))
    monkeypatch.setattr(tiny.model, "statistics", 1.0)
    complaint(ValueError, lambda: tiny.model.save_pretrained(tmp_path / "other"), "run=")
    assert not (tmp_path / "other").exists()


def test_from_and_to_the_hub(tiny, tmp_path, monkeypatch):
    "The hub itself is played: what is asked of it, and with which words."
    import huggingface_hub.hub_mixin as mixin
    asked, sent = {}, {}
    tiny.model.save_pretrained(tmp_path / "shared", run=tiny)
    monkeypatch.setattr(mixin, "hf_hub_download", lambda repo_id, filename, **how: str(tmp_path / "shared" / filename))
    monkeypatch.setattr(exporting, "snapshot_download", lambda repo, **how: asked.update(how, repo=repo) or str(tmp_path / "shared"))
    net, x = MemoryNet.from_pretrained("someone/streets", revision="v2"), torch.rand(1, 3, 64, 64)
    assert torch.equal(net.predict(x), tiny.model.predict(x)) and (asked["repo"], asked["revision"]) == ("someone/streets", "v2")
    class Hub:
        def __init__(self, token): sent["token"] = token
        def create_repo(self, repo_id, private, exist_ok): sent["private"] = private; return type("Repo", (), dict(repo_id=repo_id))
        def upload_folder(self, repo_id, folder_path, **how): sent["files"] = {p.name for p in folder_path.iterdir()}; return "https://address"
    monkeypatch.setattr(mixin, "HfApi", Hub)
    assert tiny.model.push_to_hub("someone/streets", run=tiny, private=True, token="hf_x") == "https://address"
    assert sent == dict(token="hf_x", private=True, files={"README.md", "config.json", "model.safetensors", "results.json"})


def test_no_hub_and_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    complaint(OSError, lambda: MemoryNet.from_pretrained("someone/streets"), "someone/streets", "folder")
    complaint(OSError, lambda: MemoryNet.from_pretrained(tmp_path / "no" / "folder" / "at all"), "folder")
    complaint(FileNotFoundError, lambda: MemoryNet.from_pretrained(tmp_path), "config.json")


# ------------------------------------------------------------------------------------------ thousands of pictures

def photos(folder, n, size=(64, 32)):
    "A folder of n pictures, all different."
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n): Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8)).save(folder / f"{i:05}.png", compress_level=1)
    return folder


def masks(folder): return {path.name: path.read_bytes() for path in folder.glob("*_mask.png")}


def test_memory_stays_while_pictures_come(tiny, tmp_path):
    "Peak of the last hundred of 300 within 2 % of the peak of the first; each picture and its answer are 150 kB."
    psutil = pytest.importorskip("psutil")
    held = []
    def write(name, found):
        Image.fromarray(found.mask).save(tmp_path / f"{name}_mask.png")
        held.append(psutil.Process().memory_info().rss)
    files = sorted(photos(tmp_path / "photos", 300, (256, 128)).iterdir())
    assert predict_many(tiny, files, tmp_path / "out", write, "_mask.png", quiet=True) == (300, 0, None)
    assert max(held[200:]) <= 1.02 * max(held[:100])


def test_two_pictures_of_one_name_do_not_collide(tiny, tmp_path):
    files = [folder / "00000.png" for folder in (photos(tmp_path / "a", 1), photos(tmp_path / "b", 1))]
    complaint(ValueError, lambda: predict_many(tiny, files, tmp_path / "out", None, "_mask.png"), "00000.png", "rename one")
    assert not (tmp_path / "out").exists()


def test_an_open_run_stays_where_it_is(tiny, tmp_path):
    complaint(ValueError, lambda: tiny.evaluate("fog", device="cuda"), "cpu", "cuda", "Run.open")
    complaint(ValueError, lambda: list(tiny.predict(tmp_path, device="mps")), "mps", "Run.open")
    assert tiny.predict(np.zeros((32, 64, 3), np.uint8), device="cpu").mask.shape == (32, 64)


@pytest.mark.parametrize("more", [[], ["--memory"]])
def test_a_stopped_prediction_goes_on(more, tiny, tmp_path, capsys, monkeypatch):
    "Stopped in the middle of a picture; what is there afterwards is what one go would have given, and no picture is seen twice."
    import pinmem.cli as cli
    folder, seen, write_image = photos(tmp_path / "photos", 3), [], cli.write_image
    words = ["predict", str(tiny.folder), str(folder), "--device", "cpu", "--quiet", *more, "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    def stops(path, array):
        if path.name == "00001_overlay.png": raise KeyboardInterrupt
        write_image(path, array)
    with monkeypatch.context() as patch:
        patch.setattr(cli, "write_image", stops)
        assert main([*words, str(tmp_path / "halves")]) == 130
    assert "--resume" in refused(capsys, *words, str(tmp_path / "halves"))
    predict = Run.predict
    monkeypatch.setattr(Run, "predict", lambda self, *a, **how: seen.append(1) or predict(self, *a, **how))
    assert main([*words, str(tmp_path / "halves"), "--resume"]) == 0 and len(seen) == 2
    assert masks(tmp_path / "halves") == masks(tmp_path / "whole") and len(masks(tmp_path / "whole")) == 3
    assert {p.name for p in (tmp_path / "halves").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    assert main([*words, str(tmp_path / "halves"), "--resume"]) == 0 and len(seen) == 2
    assert "protocol" in refused(capsys, *words, str(tmp_path / "halves"), "--resume", "--flip")
    (tmp_path / "halves" / "predict.json").unlink()
    assert "predict.json" in refused(capsys, *words, str(tmp_path / "halves"), "--resume")


def test_results_of_two_networks_do_not_mix(tiny, run, tmp_path, capsys):
    words = [str(photos(tmp_path / "photos", 2)), "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["predict", str(tiny.folder), *words]) == 0
    assert "network" in refused(capsys, "predict", str(run.folder), *words, "--resume")


def test_the_bar_counts_pictures_a_second(tiny, tmp_path, capsys):
    assert main(["predict", str(tiny.folder), str(photos(tmp_path / "photos", 3)), "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    assert re.search(r"3/3 .*(pictures/s|s/ pictures)", capsys.readouterr().err)


def test_a_video_is_a_row_of_pictures(tiny, tmp_path, capsys):
    av = pytest.importorskip("av", reason="pip install 'pinmem[video]'")
    frames = np.repeat(np.arange(6, dtype=np.uint8)[:, None, None, None] * 40, 3, 3) + np.zeros((6, 48, 64, 3), np.uint8)
    with av.open(str(tmp_path / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for array in frames: film.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        film.mux(stream.encode())
    words = ["predict", str(tiny.folder), str(tmp_path / "film.mp4"), "--device", "cpu", "--quiet", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert set(masks(tmp_path / "out")) == {f"film_{i:06}_mask.png" for i in range(6)}
    (tmp_path / "out" / "film_000002_overlay.png").unlink()
    assert main([*words, "--resume"]) == 0 and "1 picture(s)" in capsys.readouterr().out
    grey = [np.array(Image.open(tmp_path / "out" / f"film_{i:06}_overlay.png")).mean() for i in range(6)]
    assert grey[5] > grey[0] + 30, "the frames come in their order"
    (tmp_path / "film.mp4").write_bytes(b"no video")
    assert "film.mp4" in refused(capsys, *words[:-1], str(tmp_path / "again")) and not (tmp_path / "again").exists()


def test_a_video_without_pyav(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "film.mp4").write_bytes(b"")
    words = "predict", str(tiny.folder), str(tmp_path / "film.mp4"), "--quiet", "--out", str(tmp_path / "out")
    assert "pinmem[video]" in refused(capsys, *words) and not (tmp_path / "out").exists()

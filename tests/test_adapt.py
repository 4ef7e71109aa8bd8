"""A trained run and photographs nobody labelled: the whole path, resuming, and every mistake in one line."""
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import complaint
from pinmem.algorithms import pool
from pinmem.cli import main
from pinmem.compare import make_cells, train_words
from pinmem.datasets import open_photos
from pinmem.labels import IGNORE
from pinmem.model import collect_statistics
from pinmem.runs import Run, adapt, make_batches, make_photos, open_sources, resume, settle, train
from pinmem.streets import draw

SMALL = dict(size=(128, 64), scenes=4, exam=2, quiet=True, threads=1, workers=0, device="cpu", memory_images=4, crop=(64, 32))
TINY = dict(encoder="test_resnet", weights=None, channels=16, rates=(1, 2), context_width=8, fine=8, width=16)
AGAIN = dict(quiet=True, threads=1, workers=0, device="cpu", targets=(), steps=4)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    "A run of two steps, to go on from."
    return train(["town", "winter"], 2, tmp_path_factory.mktemp("adapt") / "start", targets=["fog"], **SMALL, **TINY)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Five pictures with their labels, as a set lies on a disk."
    folder = tmp_path_factory.mktemp("photos")
    for part in "images", "labels": (folder / part).mkdir()
    for i in range(5):
        for part, array in zip(("images", "labels"), draw("night", 1, i, (128, 64))):
            Image.fromarray(array).save(folder / part / f"{i}.png")
    return folder


def digest(folder): return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_command_makes_a_run_with_a_report(photos, tmp_path, capsys):
    "Of the default network; the others here go on with a small one."
    start, out = train(["town", "winter"], 1, tmp_path / "start", targets=["fog"], **SMALL), tmp_path / "out"
    words = ["adapt", str(start.folder), str(photos), "--method", "norm-only", "--steps", "2", "--out", str(out), "--targets", "fog",
             "--quiet", "--threads", "1", "--workers", "0"]
    assert main(words) == 0
    assert "label file(s) beside the photographs are not looked at" in capsys.readouterr().out
    config, page = json.loads((out / "config.json").read_text()), (out / "report.html").read_text()
    assert config["begin"] == str(start.folder) and config["photos"] == [str(photos)] and config["method"] == "norm-only"
    assert "Photographs before and after" in page and "Before and after" in page
    assert (out / "figures/photographs-before-and-after.png").exists()
    assert {"fog", "town", "winter"} == set(json.loads((out / "results.json").read_text()))
    assert Run.open(out).predict(photos / "images/0.png").mask.shape == (64, 128)


def test_stopped_and_resumed_equals_uninterrupted(start, photos, tmp_path):
    whole = adapt(start, photos, out=tmp_path / "whole", method="norm-only", **AGAIN)
    adapt(start.folder, photos, out=tmp_path / "halves", method="norm-only", stop=2, **AGAIN)
    halves = resume(tmp_path / "halves", quiet=True, threads=1, workers=0, device="cpu")
    assert digest(whole.folder) == digest(halves.folder) != digest(start.folder)
    assert len(halves.log["step"]) == 4


def test_labels_of_the_target_are_never_read(start, photos, tmp_path):
    "Poisoned label files, and none at all: the same bytes."
    poisoned, bare = tmp_path / "poisoned", tmp_path / "bare"
    shutil.copytree(photos, poisoned)
    shutil.copytree(photos / "images", bare)
    for file in (poisoned / "labels").iterdir(): file.write_bytes(b"no picture")
    found = {digest(adapt(start, folder, out=tmp_path / name, method="norm-only", **{**AGAIN, "steps": 2}).folder)
             for name, folder in (("a", photos), ("b", poisoned), ("c", bare))}
    assert len(found) == 1


def test_source_only_looks_at_no_photograph(start, photos, tmp_path):
    night, rain = (digest(adapt(start, name, out=tmp_path / str(i), method="source-only", **AGAIN).folder)
                   for i, name in enumerate((photos, "rain")))
    assert night == rain != digest(adapt(start, "rain", out=tmp_path / "2", method="bn-only", **AGAIN).folder)


def test_it_begins_with_the_weights_of_the_run(start, photos, tmp_path):
    "With a rate of zero nothing but BatchNorm's statistics and the memory move."
    run = adapt(start, photos, out=tmp_path / "still", method="bn-only", lr=0.0, **AGAIN)
    old, new = Run.open(start.folder).model.state_dict(), run.model.state_dict()
    moved = {name for name in old if not torch.allclose(old[name].float(), new[name].float(), atol=1e-6)}
    assert moved and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) or name == "mem" for name in moved)


def test_photographs_as_people_have_them(tmp_path):
    rng = np.random.default_rng(0)
    def save(name, h, w, mode="RGB"):
        image = Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).convert(mode)
        image.save(tmp_path / name)
    save("large.jpg", 900, 1600); save("grey.png", 64, 96, "L"); save("clear.png", 64, 96, "RGBA"); save("a.jpg", 64, 96)
    save("a.png", 64, 96, "L"); save("a_label.png", 64, 96, "L")
    found = open_photos([tmp_path], height=256)
    assert sorted(key.rsplit("/", 1)[-1] for key, _ in found.readers) == ["a.jpg", "clear.png", "grey.png", "large.jpg"]
    assert [path.name for path in found.passed] == ["a.png", "a_label.png"]
    shapes = {image.shape for image, label in (found[i] for i in range(4)) if (label == IGNORE).all()}
    assert shapes == {(256, 455, 3), (64, 96, 3)}
    assert len(open_photos([tmp_path / "a.jpg"])) == 1


def test_mistakes_are_one_line(start, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    run, out = str(start.folder), ["--out", str(tmp_path / "never"), "--quiet", "--steps", "2", "--workers", "0"]
    for words, expected in (
        ([run], "adapts to photographs, and none are named"),
        ([run, str(tmp_path / "empty")], "holds no"),
        ([run, str(tmp_path / "nowhere")], "no such file or folder"),
        ([run, str(tmp_path / "tiny.png")], "8x8 pixels; expected 16 or more"),
        ([run, str(tmp_path / "broken.jpg")], "cannot be read"),
        ([run, str(photos), "--method", "mldg"], "cannot adapt"),
        ([run, str(photos), "--method", "norm_only"], "did you mean 'norm-only'?"),
        ([run, str(photos), "--lam-norm", "-1"], "lam_norm is '-1'"),
        ([run, str(photos), "--method", "norm-only", "--settle", "5"], "its statistics come from the photographs, too"),
        ([str(photos), str(photos)], "is not a run directory"),
        ([run, str(photos), "--resume"], "no such file"),
    ):
        assert main(["adapt", *words, *out]) == 2, words
        error = capsys.readouterr().err.strip()
        assert error.startswith("pinmem: ") and "\n" not in error and expected in error, (words, error)
    assert not (tmp_path / "never/model.safetensors").exists()


def test_a_method_that_adapts_wants_photographs(tmp_path):
    for wrong, expected in ((dict(method="norm-only"), "none are named"), (dict(method="pinmem", photos=["fog"]), "labels alone"),
                            (dict(method="mldg", photos_per_step=3), "labels alone")):
        with pytest.raises(ValueError, match=expected): train(["town", "winter"], 2, tmp_path / "no", **wrong, **SMALL)


def test_resume_keeps_what_was_planned(start, photos, tmp_path, capsys):
    adapt(start, photos, out=tmp_path / "a", method="norm-only", stop=2, **AGAIN)
    for words in (["rain"], [str(photos), "--method", "bn-only"]):
        assert main(["adapt", str(start.folder), *words, "--resume", "--out", str(tmp_path / "a"), "--quiet"]) == 2
        assert "was planned with other values of" in capsys.readouterr().err


def test_not_a_number_is_one_line_and_what_was_learned_is_kept(start, photos, tmp_path, capsys, monkeypatch):
    out, calls = tmp_path / "nan", []
    def norm(*args): # two calls a step: the third step goes wrong
        calls.append(1)
        return torch.tensor(float("nan") if len(calls) > 4 else 0.0)
    monkeypatch.setattr("pinmem.feature_norm.norm_step", norm)
    words = ["adapt", str(start.folder), str(photos), "--method", "norm-only", "--lam-norm", "1", "--out", str(out), "--steps", "8", "--quiet",
             "--workers", "0", "--threads", "1"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert "step 2: loss_norm is not finite" in error and "\n" not in error and (out / "model.safetensors").exists()


def test_photographs_without_streets_are_doubted(start, photos, tmp_path, capsys):
    "A network of two steps recognises nothing as a street; the run goes on all the same."
    run = adapt(start, photos, out=tmp_path / "a", method="bn-only", **{**AGAIN, "steps": 1})
    said = capsys.readouterr().out
    assert "do these photographs show streets?" in said and (run.folder / "model.safetensors").exists()


def test_a_single_photograph_is_enough_and_said(start, photos, tmp_path, capsys):
    run = adapt(start, photos / "images/0.png", out=tmp_path / "one", method="norm-only", **{**AGAIN, "steps": 1})
    assert "a single photograph" in capsys.readouterr().out and len(run.log["step"]) == 1


def test_train_goes_on_from_a_run_as_adapt_does(start, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("pinmem.report.report_run", lambda *args: None)  # another test has one
    how = {**AGAIN, "steps": 2, "method": "norm-only"}
    one, other = adapt(start, photos, out=tmp_path / "a", **how), train(begin=start.folder, photos=[photos], out=tmp_path / "b", **how)
    assert digest(one.folder) == digest(other.folder) and one.plan == other.plan
    words = ["train", "--begin", str(start.folder), "--photos", f"{photos},fog", "--method", "bn-only", "--out", str(tmp_path / "c"),
             "--steps", "1", "--targets", "", "--quiet", "--threads", "1", "--workers", "0"]
    assert main(words) == 0 and Run.open(tmp_path / "c").plan.photos == (str(photos), "fog")


def test_statistics_from_both_kinds_of_images(start, photos):
    "`settle` with photographs is the collection over joint batches; without, over the sources alone."
    made = start.plan.but(method="self-training", photos=(str(photos),), algorithm={})
    batches, pictures = make_batches(made, open_sources(made)), make_photos(made)
    def collected(more):
        model = Run.open(start.folder).model
        settle(model, batches, more, 3, 2)
        return model.state_dict()["encoder.backbone.bn1.running_mean"]
    by_hand = Run.open(start.folder).model
    torch.manual_seed(batches.seed)
    collect_statistics(by_hand, [pool([*batches.batch(t), *pictures.batch(t)])[0] for t in (3, 4)])
    assert torch.equal(collected(pictures), by_hand.state_dict()["encoder.backbone.bn1.running_mean"])
    assert not torch.allclose(collected(pictures), collected(None))


def test_a_comparison_goes_on_from_one_run_a_seed(start, photos, tmp_path):
    for seed in (0, 1): shutil.copytree(start.folder, tmp_path / f"start-{seed}-x")
    common = dict(begin=str(tmp_path / "start-{seed}-*"), photos=str(photos), steps=2)
    cells = make_cells(["source-only", "norm-only"], [0, 1], {"default": {}}, common)
    assert len(cells) == 4 and cells[1].plan["photos"] == [str(photos)] and cells[0].plan["model"]["tau"] == start.plan.model.tau
    assert [json.loads(train_words(cell, tmp_path)[-1])["begin"][-3] for cell in cells] == ["0", "0", "1", "1"]
    complaint(ValueError, lambda: make_cells(["norm-only"], [0, 5], {"default": {}}, common), "start-5-*", "names no folder(s)")
    complaint(ValueError, lambda: make_cells(["clan"], [0], {"default": {}}, common), "'clan' cannot adapt")

"""The command as a user meets it: the whole path once, resuming, and every mistake in one line."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pinmem.algorithms import weigh_classes
from pinmem.cli import main, open_sources
from pinmem.data import DEFAULT_SOURCES
from pinmem.model import build_model

SMALL = ["--size", "128x64", "--scenes", "6", "--quiet", "--threads", "1", "--workers", "0", "--device", "cpu", "--exam", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of four steps, made once."
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--steps", "4", "--out", str(out), "--targets", "night", *SMALL]) == 0
    return out


def refused(capsys, *words):
    "The command must end with code 2 and exactly one line; returns that line."
    assert main(list(words)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("pinmem: ") and "\n" not in error and "Traceback" not in error
    return error


def test_run_directory_is_complete(run):
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "model.safetensors", "log.csv", "state.pt", "results.json", "report.html", "figures"} <= names
    assert not [name for name in names if name.endswith(".part")]
    assert "mem" in load_file(run / "model.safetensors")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "night" in page
    assert len(list((run / "figures").glob("*.png"))) >= 5


def test_stopped_and_resumed_equals_uninterrupted(run, tmp_path):
    out = tmp_path / "halves"
    shared = ["--steps", "4", "--out", str(out), "--targets", "night", *SMALL]
    assert main(["train", "--stop", "2", *shared]) == 0
    assert main(["train", "--resume", *shared]) == 0
    whole, halves = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert (run / "log.csv").read_text() == (out / "log.csv").read_text()


def test_same_seed_same_weights_other_seed_others(run, tmp_path):
    for seed in ("0", "1"):
        assert main(["train", "--steps", "1", "--out", str(tmp_path / seed), "--seed", seed, "--targets", "night", *SMALL]) == 0
    assert main(["train", "--steps", "1", "--out", str(tmp_path / "again"), "--targets", "night", *SMALL]) == 0
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "again", "1"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mem"], other["mem"])


def test_evaluate_prints_json(run, capsys):
    assert main(["evaluate", str(run), "fog", "--json", "--scenes", "3"]) == 0
    result = json.loads(capsys.readouterr().out)["fog"]
    assert set(result) == {"miou", "iou", "pixels", "images"} and result["images"] == 3
    assert len(result["iou"]) == 19 and 0 <= result["miou"] <= 1


def test_a_share_of_the_statistics(run, capsys):
    def iou(*more):
        assert main(["evaluate", str(run), "fog", "--json", "--scenes", "2", *more]) == 0
        return json.loads(capsys.readouterr().out)["fog"]["iou"]
    plain = iou()
    assert iou("--statistics", "0") == plain != iou("--statistics", "0.25") != iou("--statistics", "1")
    assert "'2': expected a number from 0 to 1" in refused(capsys, "evaluate", str(run), "fog", "--statistics", "2")


def test_predict_writes_mask_overlay_and_memory(run, tmp_path):
    photo = np.random.default_rng(0).integers(0, 255, (97, 201, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert main(["predict", str(run), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), "--memory", "--quiet"]) == 0
    mask = np.array(Image.open(tmp_path / "out" / "photo_mask.png"))
    assert mask.shape == (97, 201) and mask.max() < 19
    assert Image.open(tmp_path / "out" / "photo_overlay.png").size == (201, 97)
    assert (tmp_path / "out" / "photo_memory.png").stat().st_size > 10_000


def test_scenes_can_be_read_back(run, tmp_path, capsys):
    assert main(["scenes", "rain", "--n", "3", "--out", str(tmp_path / "rain"), "--size", "128x64", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), f"folder:{tmp_path / 'rain'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rain"]["images"] == 3


def test_aggregation_needs_no_second_source(tmp_path):
    out = tmp_path / "one"
    assert main(["train", "--method", "aggregation", "--sources", "town", "--steps", "1", "--out", str(out),
                 "--targets", "night", *SMALL]) == 0
    assert "mem" not in load_file(out / "model.safetensors")


def test_interrupt_keeps_what_was_learned(tmp_path, monkeypatch):
    import signal

    from pinmem.algorithms import PinTheMemory
    update = PinTheMemory.update
    def interrupted(self, batches):
        if self.steps == 1: signal.raise_signal(signal.SIGINT)
        return update(self, batches)
    monkeypatch.setattr(PinTheMemory, "update", interrupted)
    out = tmp_path / "stopped"
    assert main(["train", "--steps", "9", "--out", str(out), "--targets", "night", *SMALL]) == 0
    assert len((out / "log.csv").read_text().splitlines()) == 3 and (out / "report.html").exists()


@pytest.mark.parametrize("words, needed", [
    (["train", "--sources", "town"], "town,town"),
    (["train", "--sources", ""], "--sources"),
    (["train", "--sources", "twon,city"], "town"),
    (["train", "--method", "magic"], "aggregation"),
    (["train", "--steps", "0"], "--steps"), (["train", "--scenes", "0"], "--scenes"), (["train", "--exam", "0"], "--exam"),
    (["train", "--workers", "-1"], "--workers"), (["train", "--stop", "-3"], "--stop"), (["train", "--seed", "-1"], "--seed"),
    (["scenes", "rain", "--out", "x", "--seed", "-1"], "--seed"), (["scenes", "rain", "--out", "x", "--n", "0"], "--n"),
    (["evaluate", "nowhere", "night", "--scenes", "0"], "--scenes"), (["compare", "--seeds", "0,b"], "'b'"),
    (["compare", "--seeds", "0,-1"], "'-1'"), (["compare", "--processes", "0"], "--processes"),
    (["train", "--device", "gpu"], "--device"),
    (["train", "--targets", "moon"], "moon"),
    (["train", "--resume"], "config.json"),
    (["scenes", "moon", "--out", "x"], "town"),
    (["evaluate", "nowhere", "night"], "nowhere"),
    (["predict", "nowhere", "nothing.png", "--out", "x"], "nothing.png"),
])
def test_mistakes(words, needed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if words[0] == "train": words = [*words, "--out", "run"]
    assert needed in refused(capsys, *words)
    assert not list(tmp_path.iterdir()), "something half-written was left"


def test_argument_errors_are_one_line():
    done = subprocess.run([str(Path(sys.executable).with_name("pinmem")), "train", "--steps", "many"], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_run_already_there(run, capsys):
    assert "already there" in refused(capsys, "train", "--out", str(run), "--steps", "1")


def damage(run, tmp_path):
    shutil.copytree(run, tmp_path / "bad")
    return tmp_path / "bad"


def test_damaged_weights(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    data = (bad / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(data[:1000])
    assert "model.safetensors" in refused(capsys, "evaluate", str(bad), "night")


def test_damaged_config(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    (bad / "config.json").write_text("{")
    assert "config.json" in refused(capsys, "evaluate", str(bad), "night")


def test_unmatched_names(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    weights = load_file(bad / "model.safetensors")
    weights["stranger"] = weights.pop("mem")
    save_file(weights, bad / "model.safetensors")
    error = refused(capsys, "evaluate", str(bad), "night")
    assert "mem missing" in error and "stranger unexpected" in error


def test_other_number_of_classes(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    config = json.loads((bad / "config.json").read_text())
    config["model"]["n"] = 11
    (bad / "config.json").write_text(json.dumps(config))
    assert "classes" in refused(capsys, "evaluate", str(bad), "night")


def test_damaged_state(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    (bad / "state.pt").write_bytes(b"nothing")
    assert "state.pt" in refused(capsys, "train", "--resume", "--out", str(bad))


def test_broken_picture_leaves_nothing(run, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    assert "broken.jpg" in refused(capsys, "predict", str(run), str(tmp_path / "broken.jpg"), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_full_disk(run, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full)
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"")
    monkeypatch.setattr("pinmem.cli.read_image", lambda path: np.zeros((32, 32, 3), np.uint8))
    assert "No space left" in refused(capsys, "predict", str(run), str(photo), "--out", str(tmp_path / "out"), "--quiet")
    assert not list((tmp_path / "out").iterdir())


def test_nan_stops_and_says_where(tmp_path, capsys, monkeypatch):
    from pinmem.algorithms import PinTheMemory
    update = PinTheMemory.update
    def poisoned(self, batches):
        losses = update(self, batches)
        return {**losses, "loss_seg": float("nan")} if self.steps == 3 else losses
    monkeypatch.setattr(PinTheMemory, "update", poisoned)
    out = tmp_path / "nan"
    assert "step 2" in refused(capsys, "train", "--steps", "4", "--out", str(out), "--targets", "night", *SMALL)
    assert all(torch.isfinite(t.float()).all() for t in load_file(out / "model.safetensors").values())


def test_settling_changes_statistics_alone(run, tmp_path):
    "The last acts of a run: the mean of the weights, then new statistics; the state from which a run goes on has neither."
    out = tmp_path / "plain"
    assert main(["train", "--steps", "4", "--out", str(out), "--targets", "night", "--set", "settle=0", *SMALL]) == 0
    settled, plain = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name.rsplit(".", 1)[1] for name in plain if not torch.equal(settled[name], plain[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    state, other = (torch.load(folder / "state.pt", weights_only=True) for folder in (run, out))
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in state["model"].items())


def test_half_of_the_class_weights_is_taken_back(tmp_path):
    "The bias of the last layer differs from the last step's by half the logarithm of the weights, and nothing else does."
    words = ["train", "--steps", "2", "--method", "aggregation", "--targets", "night", "--set", "average=0", *SMALL]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main([*words, "--set", "unweigh=0", "--out", str(tmp_path / "plain")]) == 0
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    assert [name for name in ours if not torch.equal(ours[name], plain[name])] == ["decoder.classify.bias"]
    lost = (plain["decoder.classify.bias"] - ours["decoder.classify.bias"]) * 2
    model = build_model(weights=None, memory=False)
    weigh_classes(model, open_sources(DEFAULT_SOURCES, "aggregation", 6, 0, (128, 64)), 0.5)
    torch.testing.assert_close(lost, model.class_weight.log())
    assert lost.abs().max() > 0.5


def test_a_run_ends_with_the_mean_of_its_last_weights(tmp_path):
    assert main(["train", "--steps", "4", "--out", str(tmp_path / "run"), "--targets", "night", "--set", "average=0.5", *SMALL]) == 0
    saved, state = load_file(tmp_path / "run/model.safetensors"), torch.load(tmp_path / "run/state.pt", weights_only=True)
    weights = [name for name in saved if name.rsplit(".", 1)[-1] in ("weight", "bias") and name != "decoder.classify.bias"]
    assert all(torch.equal(saved[name], state["mean"][f"module.{name}"]) for name in weights)
    assert not all(torch.equal(saved[name], state["model"][name]) for name in weights), "the last weights are others"

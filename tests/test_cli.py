"""The command as a user meets it: the whole path once, resuming, and every mistake in one line."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pinmem.cli import main
from pinmem.model import build_model
from pinmem.plan import plan
from pinmem.runs import Run, open_sources, resume, train
from pinmem.variants import weigh_classes

SMALL = ["--size", "128", "64", "--crop", "64", "32", "--scenes", "3", "--exam", "2", "--memory-images", "2", "--quiet", "--threads", "1",
         "--workers", "0", "--device", "cpu"]
TINY = [*SMALL, "--encoder", "test_resnet", "--weights", "none"]  # where it does not matter which network learns


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of four steps, made once."
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--steps", "4", "--out", str(out), "--targets", "night", *SMALL]) == 0
    return out


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    "The report takes most of a small run's time; the run above has one, and so have the tests that look at it."
    if "report" not in request.keywords: monkeypatch.setattr("pinmem.report.report_run", lambda *args: None)


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
        assert main(["train", "--steps", "1", "--out", str(tmp_path / seed), "--seed", seed, "--targets", "night", *TINY]) == 0
    assert main(["train", "--steps", "1", "--out", str(tmp_path / "again"), "--targets", "night", *TINY]) == 0
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("0", "again", "1"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mem"], other["mem"])


def test_evaluate_prints_json(run, capsys):
    assert main(["evaluate", str(run), "fog", "--json", "--scenes", "3"]) == 0
    result = json.loads(capsys.readouterr().out)["fog"]
    assert set(result) == {"miou", "iou", "pixels", "images", "protocol"} and result["images"] == 3
    assert len(result["iou"]) == 19 and 0 <= result["miou"] <= 1


def test_a_share_of_the_statistics(run, capsys):
    def iou(*more):
        assert main(["evaluate", str(run), "fog", "--json", "--scenes", "2", *more]) == 0
        return json.loads(capsys.readouterr().out)["fog"]["iou"]
    plain = iou()
    assert iou("--statistics", "0") == plain != iou("--statistics", "0.25") != iou("--statistics", "1")
    assert "expected a number from 0 to 1" in refused(capsys, "evaluate", str(run), "fog", "--statistics", "2")


def test_predict_writes_mask_overlay_and_memory(run, tmp_path):
    photo = np.random.default_rng(0).integers(0, 255, (97, 201, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    assert main(["predict", str(run), str(tmp_path / "photo.png"), "--out", str(tmp_path / "out"), "--memory", "--quiet"]) == 0
    mask = np.array(Image.open(tmp_path / "out" / "photo_mask.png"))
    assert mask.shape == (97, 201) and mask.max() < 19
    assert Image.open(tmp_path / "out" / "photo_overlay.png").size == (201, 97)
    assert (tmp_path / "out" / "photo_memory.png").stat().st_size > 10_000


def test_scenes_can_be_read_back(run, tmp_path, capsys):
    assert main(["scenes", "rain", "--n", "3", "--out", str(tmp_path / "rain"), "--size", "128", "64", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), f"folder:{tmp_path / 'rain'}", "--json"]) == 0
    name, result = json.loads(capsys.readouterr().out).popitem()
    assert result["images"] == 3 and name.startswith("folder:"), "`rain` alone is the style"


def test_aggregation_needs_no_second_source(tmp_path):
    out = tmp_path / "one"
    assert main(["train", "--method", "aggregation", "--sources", "town", "--steps", "1", "--out", str(out),
                 "--targets", "night", *TINY]) == 0
    assert "mem" not in load_file(out / "model.safetensors")


@pytest.mark.report
def test_interrupt_keeps_what_was_learned(tmp_path, monkeypatch):
    import signal

    from pinmem.algorithms import PinTheMemory
    update = PinTheMemory.update
    def interrupted(self, batches, unlabelled=None):
        if self.steps == 1: signal.raise_signal(signal.SIGINT)
        return update(self, batches)
    monkeypatch.setattr(PinTheMemory, "update", interrupted)
    out = tmp_path / "stopped"
    assert main(["train", "--steps", "9", "--out", str(out), "--targets", "night", *TINY]) == 0
    assert len((out / "log.csv").read_text().splitlines()) == 3 and (out / "report.html").exists()


@pytest.mark.parametrize("words, needed", [
    (["train", "--sources", "town"], "name one twice"),
    (["train", "--sources", ""], "sources"),
    (["train", "--sources", "twon,city"], "town"),
    (["train", "--method", "magic"], "aggregation"),
    (["train", "--steps", "0"], "steps"), (["train", "--scenes", "0"], "scenes"), (["train", "--exam", "0"], "exam"),
    (["train", "--workers", "-1"], "workers"), (["train", "--stop", "-3"], "stop"), (["train", "--seed", "-1"], "seed"),
    (["train", "--taw", "0.3"], "--tau"), (["train", "--set", "tau=0.3"], "--set"), (["train", "--size", "100", "64"], "multiples of 16"),
    (["train", "--frozen-stats", "no"], "no"), (["train", "--frozen-stats=maybe"], "frozen-stats"), (["train", "--height", "foo"], "height"),
    (["train", "--settle", "1.5"], "settle"), (["train", "--per-domain", "1", "--pool-norm"], "per_domain=2"),
    (["train", "--method", "aggregation", "--tau", "0.3"], "no memory"), (["train", "--window", "64"], "--window"),
    (["scenes", "rain", "--out", "x", "--seed", "-1"], "--seed"), (["scenes", "rain", "--out", "x", "--n", "0"], "--n"),
    (["evaluate", "nowhere", "night", "--scenes", "0"], "--scenes"), (["compare", "--seeds", "0,b"], "'b'"),
    (["compare", "--seeds", "0,-1"], "'-1'"), (["compare", "--processes", "0"], "--processes"),
    (["train", "--device", "gpu"], "device"),
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
    assert "is a file" in refused(capsys, "train", "--out", str(run / "config.json" / "below"), "--steps", "1")


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
    for state in bad.glob("state.pt*"): state.write_bytes(b"nothing")
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
    monkeypatch.setattr("pinmem.runs.read_image", lambda path: np.zeros((32, 32, 3), np.uint8))
    assert "No space left" in refused(capsys, "predict", str(run), str(photo), "--out", str(tmp_path / "out"), "--quiet")
    assert not list((tmp_path / "out").iterdir())


def test_nan_stops_and_says_where(tmp_path, capsys, monkeypatch):
    from pinmem.algorithms import PinTheMemory
    update = PinTheMemory.update
    def poisoned(self, batches, unlabelled=None):
        losses = update(self, batches)
        return {**losses, "loss_seg": float("nan")} if self.steps == 3 else losses
    monkeypatch.setattr(PinTheMemory, "update", poisoned)
    out = tmp_path / "nan"
    assert "step 2" in refused(capsys, "train", "--steps", "4", "--out", str(out), "--targets", "night", *TINY)
    assert all(torch.isfinite(t.float()).all() for t in load_file(out / "model.safetensors").values())


def test_settling_changes_statistics_alone(run, tmp_path):
    "The last acts of a run: the mean of the weights, then new statistics; the state from which a run goes on has neither."
    out = tmp_path / "plain"
    assert main(["train", "--steps", "4", "--out", str(out), "--targets", "night", "--settle", "0", *SMALL]) == 0
    settled, plain = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name.rsplit(".", 1)[1] for name in plain if not torch.equal(settled[name], plain[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    state, other = (torch.load(folder / "state.pt", weights_only=True) for folder in (run, out))
    assert all(torch.equal(tensor, other["model"][name]) for name, tensor in state["model"].items())


def test_half_of_the_class_weights_is_taken_back(tmp_path):
    "The bias of the last layer differs from the last step's by half the logarithm of the weights, and nothing else does."
    words = ["train", "--steps", "2", "--method", "aggregation", "--targets", "night", "--average", "0", *TINY]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main([*words, "--unweigh", "0", "--out", str(tmp_path / "plain")]) == 0
    ours, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "plain"))
    assert [name for name in ours if not torch.equal(ours[name], plain[name])] == ["decoder.classify.bias"]
    lost = (plain["decoder.classify.bias"] - ours["decoder.classify.bias"]) * 2
    model = build_model("test_resnet", weights=None, memory=False)
    weigh_classes(model, open_sources(plan("aggregation", scenes=3, size=(128, 64))), 0.5)
    torch.testing.assert_close(lost, model.class_weight.log())
    assert lost.abs().max() > 0.5


def test_a_run_ends_with_the_mean_of_its_last_weights(tmp_path):
    assert main(["train", "--steps", "4", "--out", str(tmp_path / "run"), "--targets", "night", "--average", "0.5", *TINY]) == 0
    saved, state = load_file(tmp_path / "run/model.safetensors"), torch.load(tmp_path / "run/state.pt", weights_only=True)
    weights = [name for name in saved if name.rsplit(".", 1)[-1] in ("weight", "bias") and name != "decoder.classify.bias"]
    assert all(torch.equal(saved[name], state["mean"][f"module.{name}"]) for name in weights)
    assert not all(torch.equal(saved[name], state["model"][name]) for name in weights), "the last weights are others"


# ------------------------------------------------------------------------------------------ what a resumed run obeys

@pytest.mark.parametrize("words, named", [
    (["--steps", "9"], "steps"), (["--lr", "0.1"], "lr"), (["--method", "mldg"], "method"), (["--seed", "3"], "seed"),
    (["--preset", "paper"], "preset"), (["--sources", "town", "city"], "sources"), (["--crop", "64", "64"], "crop"), (["--tau", "1"], "tau"),
    (["--flip"], "flip"),
])
def test_resume_refuses_what_it_would_not_obey(words, named, run, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    assert named in refused(capsys, "train", "--resume", "--out", str(run), *words)
    assert before == {path: path.stat().st_mtime_ns for path in run.iterdir()}


def test_resume_obeys_other_targets(run, tmp_path, capsys):
    bad = damage(run, tmp_path)
    again = resume(bad, targets=["fog"], workers=0, quiet=True, device="cpu")
    assert set(again.results) - set(again.plan.sources) == {"fog"} and again.plan.targets == ("fog",)
    assert json.loads((bad / "config.json").read_text())["targets"] == ["fog"]


def test_a_run_that_was_killed_at_once_can_be_resumed(run, tmp_path, monkeypatch, capsys):
    "Killed in its first step: what lies there is no result, and the run goes on and ends as if nothing had happened."
    from pinmem.algorithms import PinTheMemory
    out = tmp_path / "killed"
    shared = ["--steps", "4", "--out", str(out), "--targets", "night", *SMALL]
    class Killed(BaseException): pass
    def kill(self, batches, unlabelled=None): raise Killed
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PinTheMemory, "update", kill)
        patch.setattr("pinmem.runs.save_model", lambda *args: None)  # a killed process saves nothing
        main(["train", *shared])
    assert "--resume" in refused(capsys, "evaluate", str(out), "night")
    assert main(["train", "--resume", *shared]) == 0
    whole, killed = load_file(run / "model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


# ------------------------------------------------------------------------------------------ one way to train, to score, to predict

def test_the_function_trains_what_the_command_trains(run, tmp_path):
    ours = train(steps=4, out=tmp_path / "run", targets=["night"], size=(128, 64), crop=(64, 32), scenes=3, exam=2, memory_images=2, quiet=True,
                 threads=1, workers=0, device="cpu")
    theirs = load_file(run / "model.safetensors")
    assert all(torch.equal(tensor.cpu(), theirs[name]) for name, tensor in ours.model.state_dict().items() if name in theirs)
    assert ours.results == json.loads((run / "results.json").read_text())


def test_a_run_is_scored_as_it_was_planned(tmp_path):
    small = dict(targets=["night"], size=(128, 64), scenes=4, exam=2, quiet=True, threads=1, workers=0, device="cpu", method="aggregation")
    made = train(sources=["town"], steps=2, out=tmp_path / "run", classes=16, flip=True, **small)
    again = Run.open(tmp_path / "run", "cpu").evaluate("night", scenes=2, quiet=True)["night"]
    assert again == made.results["night"] and len(again["iou"]) == 16 and again["protocol"]["flip"]
    other = made.evaluate("night", scenes=2, quiet=True, flip=False)["night"]
    assert other["miou"] != again["miou"] and not other["protocol"]["flip"]


def test_predict_and_evaluate_agree_on_large_pictures(run, tmp_path, capsys):
    from pinmem.metrics import confusion
    assert main(["scenes", "rain", "--n", "2", "--out", str(tmp_path / "set"), "--size", "1024", "512", "--quiet"]) == 0
    capsys.readouterr()
    opened = Run.open(run, "cpu")
    scored = opened.evaluate(f"folder:{tmp_path / 'set'}", quiet=True)
    total = 0
    for found in opened.predict(tmp_path / "set" / "images"):
        truth = np.array(Image.open(tmp_path / "set" / "labels" / f"{found.file.stem}.png"))
        total = total + confusion(torch.from_numpy(found.mask).long(), torch.from_numpy(truth).long())
    assert total.tolist() == next(iter(scored.values()))["confusion"]


def test_every_set_keeps_its_row(run, tmp_path, capsys):
    "Two folders of one name, and one that is called like a style."
    for place in ("a/val", "b/val", "c/fog"):
        assert main(["scenes", "rain", "--n", "1", "--out", str(tmp_path / place), "--size", "128", "64", "--quiet", "--seed", str(len(place))]) == 0
    capsys.readouterr()
    sets = [f"folder:{tmp_path / place}" for place in ("a/val", "b/val", "c/fog")] + ["fog"]
    assert main(["evaluate", str(run), *sets, "--json", "--scenes", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 4 and "fog" in rows
    assert main(["evaluate", str(run), *sets, "--scenes", "1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)


def test_a_source_without_labels_is_refused(tmp_path, capsys):
    for part, value in (("images", 90), ("labels", 255)):
        (tmp_path / "set" / part).mkdir(parents=True)
        for i in range(3): Image.fromarray(np.full((64, 128), value, np.uint8)).save(tmp_path / "set" / part / f"{i}.png")
    error = refused(capsys, "train", "--sources", "town", f"folder:{tmp_path / 'set'}", "--out", str(tmp_path / "run"), "--steps", "1", *SMALL)
    assert "label" in error and not (tmp_path / "run").exists()


def test_a_folder_as_people_have_it(run, tmp_path, capsys):
    "Files of the system are passed over, every kind of picture is read, and a broken one does not cost the others."
    folder = tmp_path / "photos"
    folder.mkdir()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), np.uint8))
    for kind in ("png", "jpg", "webp", "tif", "bmp", "gif"): photo.save(folder / f"{kind}.{kind}")
    for name in ("._png.png", ".DS_Store", "Thumbs.db"): (folder / name).write_bytes(b"no picture")
    masks = lambda out: {path.name for path in (tmp_path / out).glob("*_mask.png")}
    wanted = {f"{kind}_mask.png" for kind in ("png", "jpg", "webp", "tif", "bmp", "gif")}
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert masks("out") == wanted and "at most 256 high" in capsys.readouterr().out
    (folder / "broken.jpg").write_bytes(b"no picture")
    error = refused(capsys, "predict", str(run), str(folder), "--out", str(tmp_path / "again"), "--quiet")
    assert "1 of 7" in error and "broken.jpg" in error and masks("again") == wanted
    assert "--window" in refused(capsys, "predict", str(run), str(folder), "--out", str(tmp_path / "third"), "--memory", "--window", "64", "64")


def test_help_of_train_fits_two_screens():
    "In a process of its own: the width of a terminal is read once. Nothing is imported for pictures, which takes half a second."
    words = [sys.executable, "-c", "import sys; from pinmem.cli import main; main(['train', '--help']); sys.exit('matplotlib' in sys.modules)"]
    text = subprocess.run(words, env={**os.environ, "COLUMNS": "140"}, capture_output=True, text=True, check=True).stdout
    assert 60 < len(text.splitlines()) <= 110 and all(word in text for word in ("--tau", "--lam1", "--crop", "--flip", "Network", "Method"))


def test_a_comparison_without_results_is_a_failure(capsys, monkeypatch, tmp_path):
    "Every cell failed: the exit code says so, and so it does the next time."
    calls = []
    def fails(cell, folder, lock): calls.append(cell.name); raise RuntimeError("no luck")
    from pinmem import comparison
    compare = comparison.compare
    monkeypatch.setattr(comparison, "compare", lambda *args, **options: compare(*args, **options, run=fails))
    words = ["compare", "--methods", "aggregation,mldg", "--seeds", "0", "--out", str(tmp_path / "c"), "--steps", "1"]
    for _ in range(2):
        error = refused(capsys, *words)
        assert "2 of 2 cells have no result" in error and "no luck" in error
    assert len(calls) == 2 and "2 of 2" in refused(capsys, *words, "--retry") and len(calls) == 4


def test_a_source_may_be_a_target_too(tmp_path):
    "It is scored once, and not found to be one too many after the training."
    made = train(sources=["town", "city"], targets=["town"], steps=1, out=tmp_path / "run", size=(128, 64), scenes=3, exam=1, quiet=True,
                 threads=1, workers=0, device="cpu", method="aggregation")
    assert list(made.results) == ["city", "town"]


def test_a_table_and_json_contradict_each_other(capsys):
    assert main(["evaluate", "nowhere", "fog", "--json", "--beside", "gs-r50"]) == 2
    assert "--beside contradicts --json" in capsys.readouterr().err

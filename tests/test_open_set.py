"""Open set: scores against loops, measures against hand numbers, classes that nobody is taught, things on the road."""
import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import complaint
from pinmem import open_set as op
from pinmem.algorithms import start_memory
from pinmem.cli import main
from pinmem.desk import Desk
from pinmem.evaluation import (LOGIT_SCORES, ROW_SCORES, SCORES, Protocol, check_threshold, resize_logits, score_range,
                               segment, unknown_map, unknown_score)
from pinmem.explorer import Explorer, panels, unknown_panel, unknown_part
from pinmem.labels import CAMVID11, CLASSES, FULL, IDDLITE7, IGNORE
from pinmem.laboratory import Lab, LabSet, lab_lines
from pinmem.max_squares import Ensemble
from pinmem.model import build_model
from pinmem.plan import ALGORITHMS, class_ids, plan, read_plan
from pinmem.runs import Run, leave_out, make_batches, open_sources, predict_unknown, resume, train
from pinmem.streets import STYLES, draw, draw_anomaly
from pinmem.streets.anomalies import ANOMALIES, UNKNOWN
from pinmem.variants import weigh_classes

SMALL = dict(weights=None, encoder="test_resnet", channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)
QUICK = dict(**SMALL, scenes=3, exam=1, size=(64, 32), crop=(32, 32), per_domain=1, quiet=True, memory_images=2, settle=0,
             targets=[], workers=0)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    made = {"filled": build_model(tau=.1, **SMALL).eval(), "bare": build_model(memory=False, **SMALL).eval()}
    made["filled"].mem = torch.nn.functional.normalize(torch.rand_like(made["filled"].mem), dim=1)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A run with a memory that was taught neither persons nor riders, and one without a memory."
    root = tmp_path_factory.mktemp("runs")
    train(["town", "city"], 2, root / "left", without="person, rider", **QUICK)
    train(["town", "city"], 2, root / "bare", method="aggregation", **QUICK)
    return root


def numbers(*shape, seed=0): return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def by_loop(name, z, s, tau):
    "One pixel, plain Python."
    soft = lambda v, t: [math.exp(a / t) / sum(math.exp(b / t) for b in v) for a in v]
    entropy = lambda p: -sum(a * math.log(a) for a in p) / math.log(len(p))
    return {"softmax": lambda: 1 - max(soft(z, 1)), "logit": lambda: -max(z), "entropy": lambda: entropy(soft(z, 1)),
            "energy": lambda: -math.log(sum(map(math.exp, z))), "cosine": lambda: 1 - max(s),
            "read-entropy": lambda: entropy(soft(s, tau)),
            "read-energy": lambda: -tau * math.log(sum(math.exp(a / tau) for a in s))}[name]()


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_its_formula_at_every_pixel(name):
    z, s = 3 * numbers(2, 5, 3, 4), numbers(2, 5, 3, 4, seed=1).tanh()
    found = unknown_score(name, z, s, .2)
    assert found.shape == (2, 3, 4)
    for b, i, j in np.ndindex(2, 3, 4):
        assert abs(found[b, i, j] - by_loop(name, z[b, :, i, j].tolist(), s[b, :, i, j].tolist(), .2)) < 1e-5


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_classes_is_nothing_to_a_score_and_untaught_ones_are_not_asked(name):
    z, s, order = numbers(1, 6, 2, 2), numbers(1, 6, 2, 2, seed=1).tanh(), [4, 2, 0, 5, 1, 3]
    assert torch.allclose(unknown_score(name, z, s, .2), unknown_score(name, z[:, order], s[:, order], .2), atol=1e-6)
    left = unknown_score(name, z, s, .2, [0, 2, 3])
    assert torch.equal(left, unknown_score(name, z[:, [0, 2, 3]], s[:, [0, 2, 3]], .2))
    assert not torch.allclose(left, unknown_score(name, z, s, .2))


@pytest.mark.parametrize("name", SCORES)
def test_a_score_stays_in_its_range(name):
    for scale in (.01, 1, 60):
        z, s = scale * numbers(1, 19, 8, 8), (scale * numbers(1, 19, 8, 8, seed=1)).tanh()
        found, (low, high) = unknown_score(name, z, s, .1), score_range(name, .1)
        assert found.isfinite().all() and low - 1e-5 <= found.min() and found.max() <= high + 1e-5


def test_what_cannot_be_scored_is_one_line():
    z = numbers(1, 5, 2, 2)
    complaint(ValueError, lambda: unknown_score("cosin", z), "did you mean 'cosine'")
    for name in ROW_SCORES: complaint(ValueError, lambda: unknown_score(name, z), name, "no", "memory", "logit")
    for name in LOGIT_SCORES: unknown_score(name, z)
    for name, value in (("cosine", 2.1), ("cosine", -.1), ("softmax", .99), ("entropy", 1.5), ("read-energy", 3), ("logit", math.inf),
                        ("energy", math.nan)):
        complaint(ValueError, lambda: check_threshold(value, name, .1), "threshold", name, "give a number")
    for name, value in (("cosine", 2), ("logit", -100), ("energy", 1e6)): check_threshold(value, name, .1)


@pytest.mark.parametrize("name", SCORES)
def test_the_map_of_a_picture_is_the_score_of_its_prediction(networks, name):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    out = networks["filled"].predict(x, full=True)
    want = unknown_score(name, out["logits"], out["s"], .1)[:, None]
    assert torch.allclose(unknown_map(networks["filled"], x, name), resize_logits(want, (64, 96))[0, 0], atol=1e-6)
    both = unknown_map(networks["filled"], x, name, Protocol(flip=True))
    mirrored = unknown_map(networks["filled"], x.flip(-1), name, Protocol(flip=True))
    assert torch.allclose(both, mirrored.flip(-1), atol=1e-5)
    assert unknown_map(networks["filled"], x, name, Protocol(height=32, multiple=16, window=(32, 32))).shape == (64, 96)


def test_a_map_of_many_networks_or_of_none(networks):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    complaint(ValueError, lambda: unknown_map(Ensemble([networks["filled"]] * 2), x), "Ensemble", "single network")
    broken = copy.deepcopy(networks["filled"])
    next(broken.decoder.parameters()).data.fill_(float("nan"))
    complaint(ValueError, lambda: unknown_map(broken, x), "not finite")


def test_weights_of_a_padded_picture_are_those_of_the_picture(networks):
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    whole = segment(networks["filled"], x, full=True)[1]
    padded = segment(networks["filled"], x, Protocol(multiple=128), full=True)[1]
    mean = networks["filled"].encoder.mean
    all_of_it = networks["filled"].predict(torch.nn.functional.pad(x - mean, (0, 32, 0, 64)) + mean, full=True)["w"][0]
    h, w = whole.shape[-2:]
    assert padded.shape == whole.shape and all_of_it.shape[-2:] == (2 * h, w * 128 // 96)
    assert torch.allclose(padded, all_of_it[:, :h, :w], atol=1e-6)


def test_measures_by_hand():
    tied = op.detection(torch.tensor([2., 2, 1, 0]), torch.tensor([1, 0, 1, 0]))  # of four pairs two are won, one is a draw
    assert tied["auroc"] == pytest.approx(100 * 2.5 / 4) and tied["share"] == 50
    five = op.detection(torch.tensor([9., 7, 6, 3, 1, 99]), torch.tensor([1, 0, 1, 0, 0, -1]))
    assert five["auroc"] == pytest.approx(100 * 5 / 6) and five["ap"] == pytest.approx(100 * 5 / 6)
    assert five["fpr95"] == pytest.approx(100 / 3)
    turned = op.detection(-torch.tensor([9., 7, 6, 3, 1]), torch.tensor([1, 0, 1, 0, 0]))
    assert turned["auroc"] == pytest.approx(100 / 6) and turned["fpr95"] == 100


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_those_of_counting(seed):
    dice = np.random.default_rng(seed)
    u, s = (dice.random(200) < .2).astype(int), dice.integers(0, 40, 200) / 10 + 0.
    s = s + u
    found = op.detection(torch.tensor(s), torch.tensor(u))
    pairs = [(a > b) + .5 * (a == b) for a in s[u == 1] for b in s[u == 0]]
    need = np.sort(s[u == 1])[::-1][math.ceil(.95 * u.sum()) - 1]
    assert found["auroc"] == pytest.approx(100 * np.mean(pairs)) and found["fpr95"] == pytest.approx(100 * np.mean(s[u == 0] >= need))
    assert found["ap"] == pytest.approx(100 * np.mean([np.mean(u[s >= a]) for a in s[u == 1]]))


def test_a_set_without_unknown_pixels_is_one_line():
    for truth, what in (([0, 0, -1], "no unknown pixels"), ([1, 1, -1], "no known pixels"), ([-1, -1, -1], "no unknown pixels")):
        complaint(ValueError, lambda: op.detection(torch.zeros(3), torch.tensor(truth), "fog"), "fog", what)


def test_mahalanobis_is_the_textbook():
    f, y = numbers(3, 4, 5, 6), torch.from_numpy(np.random.default_rng(1).integers(0, 3, (3, 5, 6)))
    y[0, 0], y[y == 2] = IGNORE, 13
    means, precision = op.class_gaussians(f, y)
    flat, ids = f.movedim(1, -1).reshape(-1, 4).double().numpy(), y.flatten().numpy()
    mu = {n: flat[ids == n].mean(0) for n in (0, 1, 13)}
    within = np.concatenate([flat[ids == n] - mu[n] for n in mu])
    assert np.allclose(means, [mu[n] for n in mu], atol=1e-5)
    inverse = np.linalg.inv(within.T @ within / len(within))
    want = [min((v - mu[n]) @ inverse @ (v - mu[n]) for n in mu) for v in flat]
    assert np.allclose(op.mahalanobis(f, means, precision).flatten(), want, rtol=1e-3)


def test_smoothing_is_the_mean_of_what_is_there():
    v = numbers(2, 4, 5)
    found = op.smoothed(v, 3)
    for b, i, j in np.ndindex(2, 4, 5):
        assert abs(found[b, i, j] - v[b, max(i - 1, 0):i + 2, max(j - 1, 0):j + 2].mean()) < 1e-6
    complaint(ValueError, lambda: op.smoothed(v, 4), "size is 4", "odd")


@pytest.mark.parametrize("labels, without, want", [
    (FULL, "person,rider", {11: 1, 12: 1, 18: 0, 0: 0}), (CAMVID11, "person,rider", {11: 1, 12: -1, 18: -1, 0: 0, 3: -1}),
    (CAMVID11, "rider,bicycle", {12: 1, 18: 1, 11: 0}), (IDDLITE7, "person", {11: -1, 12: -1, 0: 0}), (FULL, None, {11: 0})])
def test_half_unknown_groups_count_neither_way(labels, without, want):
    y = torch.tensor([[[*want, IGNORE, UNKNOWN]]])
    assert op.truth_map(y, class_ids(without), labels)[0, 0].tolist() == [*want.values(), -1, 1]


def test_calibration_by_hand_and_of_a_network_that_knows_itself():
    p = torch.zeros(1, 19, 1, 5)
    p[0, :, 0, :4], p[0, :, 0, 4] = .4 / 18, .1 / 18
    p[0, 0, 0, :4], p[0, 0, 0, 4] = .6, .9
    bins = op.reliability(p, torch.tensor([[[0, 1, 1, 1, 0]]]))
    assert op.calibration_error(bins) == pytest.approx(.8 * .35 + .2 * .1, abs=1e-6) and bins.n.sum() == 5
    dice = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(40, 19, 20, 20, generator=dice)).softmax(1)
    y = torch.multinomial(p.movedim(1, -1).reshape(-1, 19), 1, generator=dice).view(40, 20, 20)
    assert op.calibration_error(op.reliability(p, y)) < .02 < .1 < op.calibration_error(op.reliability((p ** 3) / (p ** 3).sum(1, True), y))
    complaint(ValueError, lambda: op.calibration_error(op.reliability(p[:1], y[:1] * 0 + IGNORE)), "no labelled pixel")


def test_classes_that_a_set_takes_together_are_added_up():
    p = torch.zeros(1, 19, 1, 1)
    p[0, [0, 13, 14, 15], 0, 0] = torch.tensor([.4, .25, .2, .15])               # road wins alone, cars together
    bins = op.reliability(p, torch.tensor([[[13]]]), CAMVID11).query("n > 0")
    assert bins.confidence.item() == pytest.approx(.6) and bins.accuracy.item() == 1
    assert op.reliability(p, torch.tensor([[[13]]]), FULL).query("n > 0").accuracy.item() == 0


@pytest.mark.parametrize("name", STYLES)
def test_a_thing_changes_no_label_but_its_own(name):
    for i, kind in enumerate([*ANOMALIES, None]):
        image, mask, thing = draw_anomaly(name, 3, i, (128, 64), kind)
        plain = draw(name, 3, i, (128, 64))
        assert thing.dtype == bool and thing.any() and (mask[thing] == IGNORE).all()
        assert (mask[~thing] == plain[1][~thing]).all() and image.shape == (64, 128, 3)
        assert np.abs(image.astype(int) - plain[0])[thing].mean() > 2, "nothing is to be seen"
        assert all((a == b).all() for a, b in zip(draw_anomaly(name, 3, i, (128, 64), kind), (image, mask, thing)))


def test_without_is_obeyed_by_every_method_and_refused_in_one_line():
    for method, cls in ALGORITHMS.items():
        photos = {"photos": ["fog"]} if cls.unlabelled else {}
        made = plan(method, sources=["town", "city"], without="rider, person", **photos)
        assert made.data.without == "person,rider" and read_plan(json.loads(made.model_dump_json())) == made
    for value, word in (("persn", "did you mean 'person'"), ("", "names of some"), (",".join(CLASSES), "two or more"), (3, "without")):
        complaint(ValueError, lambda: plan(without=value), "without", word)


def test_an_older_run_was_taught_everything():
    stored = json.loads(plan(sources=["town", "city"]).model_dump_json())
    del stored["data"]["without"]
    assert read_plan(stored).data.without is None


@pytest.mark.parametrize("sources", [["town", "city"], ["rendered", "town"], ["town", "town"], ["rendered", "rendered"]])
def test_nobody_who_learns_sees_a_class_that_is_left_out(sources):
    made = plan(sources=sources, scenes=4, size=(64, 32), without="car,road", crop=(64, 32), rare=1., per_domain=4)
    domains, usual = open_sources(made), open_sources(made.but(data=made.data.but(without=None)))
    for left, whole in zip(domains, usual):
        for i in range(4):
            (image, mask), (same, full) = left[i], whole[i]
            assert (image == same).all() and (mask == np.where(np.isin(full, (0, 13)), IGNORE, full)).all()
    assert any(np.isin(whole[i][1], (0, 13)).any() for whole in usual for i in range(4))
    y = torch.cat([y for step in range(3) for _, y in make_batches(made, domains).batch(step)])
    assert not torch.isin(y, torch.tensor([0, 13])).any() and (y == 2).any()


def test_memory_and_class_weights_know_nothing_of_it():
    domains = [leave_out(domain, [0, 10]) for domain in open_sources(plan(sources=["town", "city"], scenes=3, size=(64, 32)))]
    model = build_model(**SMALL)
    assert {0, 10} <= set(start_memory(model, domains)) and {0, 10} <= set(weigh_classes(model, domains))
    assert torch.allclose(model.mem[0], model.mem[10])                            # neutral rows


def test_a_run_without_classes_from_training_to_the_map(folders, capsys):
    run = Run.open(folders / "left")
    assert json.loads((folders / "left" / "config.json").read_text())["data"]["without"] == "person,rider"
    image, known = draw("town", 5, 0, (96, 64))[0], [n for n in range(19) if n not in (11, 12)]
    x = torch.from_numpy(image).movedim(-1, 0)[None].float() / 255
    want = unknown_map(run.model, x, "read-entropy", run.plan.score, known)
    assert np.allclose(predict_unknown(run, image, "read-entropy"), want)
    assert not np.allclose(want, unknown_map(run.model, x, "read-entropy", run.plan.score))
    resume(folders / "left", without="person,rider", quiet=True, workers=0)
    complaint(ValueError, lambda: resume(folders / "left", without="car"), "without")


def test_the_command_writes_the_map(folders, tmp_path, capsys):
    Image.fromarray(draw_anomaly("town", 5, 0, (96, 64))[0]).save(tmp_path / "a.png")
    words = ["predict", str(folders / "left"), str(tmp_path / "a.png"), "--quiet"]
    assert main([*words, "--out", str(tmp_path / "grey"), "--unknown", "--by", "cosine"]) == 0
    assert "NAME_unknown.png the score cosine" in capsys.readouterr().out
    grey = np.array(Image.open(tmp_path / "grey" / "a_unknown.png"))
    assert grey.shape == (64, 96) and grey.min() == 0 and grey.max() == 255 and len(np.unique(grey)) > 20
    values = predict_unknown(folders / "left", np.array(Image.open(tmp_path / "a.png")), "cosine")
    cut = float(np.median(values))
    assert main([*words, "--out", str(tmp_path / "black"), "--unknown", "--by", "cosine", "--threshold", f"{cut:.6f}"]) == 0
    black = np.array(Image.open(tmp_path / "black" / "a_unknown.png"))
    assert set(np.unique(black)) == {0, 255} and abs((black == 255).mean() - .5) < .02
    assert main([*words, "--out", str(tmp_path / "plain")]) == 0 and not (tmp_path / "plain" / "a_unknown.png").exists()


@pytest.mark.parametrize("run, words, said", [
    ("left", ["--unknown", "--by", "cosine", "--threshold", "2.5"], "runs from 0 to 2"),
    ("bare", ["--unknown", "--by", "cosine"], "no memory|has none"), ("left", ["--threshold", "1"], "add --unknown"),
    ("left", ["--unknown", "--by", "cosin"], "read-entropy"), ("bare", ["--memory"], "trained without a memory")])
def test_bad_input_is_one_line_before_any_work(folders, tmp_path, capsys, run, words, said):
    import re
    Image.fromarray(draw("town", 5, 0, (64, 32))[0]).save(tmp_path / "a.png")
    assert main(["predict", str(folders / run), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *words]) == 2
    line = capsys.readouterr().err.strip()
    assert re.search(said, line) and "\n" not in line and not (tmp_path / "out").exists()


def test_a_class_that_does_not_exist_is_refused_before_training(tmp_path, capsys):
    assert main(["train", "--without", "bycicle", "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'bicycle'" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_explorer_shows_the_unknown(networks):
    e = Explorer(Desk(networks, size=(64, 32)))
    before = e.sheet.value
    e.controls["score"].value = "read-energy"; e.latest.flush()
    assert e.sheet.value != before and "Unknown by read-energy" in e.text.value
    shares = []
    for t in (0, .3, .6, 1):
        e.controls["threshold"].value = t; e.latest.flush()
        found, cut = unknown_part(e.view)
        shares.append((found > cut).mean())
    assert shares == sorted(shares, reverse=True) and shares[-1] == 0 < shares[0]
    e.controls["tau"].value = .5; e.latest.flush()
    assert np.allclose(unknown_part(e.view)[0], unknown_score(e.view.state.score, None, torch.from_numpy(e.view.thought.s)[None], .5)[0])
    assert "τ = 0.5" in unknown_panel(e.view)[0]
    e.controls["memory"].value = False; e.latest.flush()
    assert unknown_part(e.view) is None and "no rows to ask" in e.text.value
    e.controls["memory"].value = True; e.latest.flush()
    e.controls["method"].value = "bare"; e.latest.flush()
    assert "no rows to ask" in e.text.value
    e.controls["score"].value = "logit"; e.latest.flush()
    assert np.allclose(unknown_part(e.view)[0], -e.view.thought.z.max(0))
    e.controls["method"].value, e.controls["score"].value = "filled", ""; e.latest.flush()
    assert panels(e.view).tobytes() == panels(e.desk.view(e.state())).tobytes() and not e.view.state.score


def toy_lab():
    "Four classes on made-up features; nobody draws anything."
    def grids(seed, n=6):
        y = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (n, 4, 6)))
        return LabSet(3 * torch.nn.functional.one_hot(y, 8).movedim(-1, 1).float() + .5 * numbers(n, 8, 4, 6, seed=seed), y)
    return Lab({n: grids(i) for i, n in enumerate("abc")}, {n: grids(10 + i) for i, n in enumerate("abc")}, {"u": grids(20)}, {})


def test_the_study_goes_on_where_it_was_and_teaches_nothing_of_what_is_left_out(tmp_path, monkeypatch):
    lab = toy_lab()
    hidden = op.hide_labels(lab, [2])
    assert not any((s.y == 2).any() for s in hidden.train.values()) and (hidden.val["a"].y == 2).any() and (lab.train["a"].y == 2).any()
    monkeypatch.setattr(op, "open_sets", lambda lab: {"sources": op.joined(lab.val), "unseen styles": op.joined(lab.unseen)})
    how = dict(methods=("aggregation", "pinmem"), groups=("building", None), seeds=[0], steps=60)   # class 2
    op.open_study(lab, tmp_path / "s.jsonl", **how)
    lines = lab_lines(tmp_path / "s.jsonl")
    assert len(lines) == 4 and set(lines[1]["scores"]["sources"]) == {*SCORES, "class-mean", "mahalanobis"}
    assert set(lines[0]["scores"]["sources"]) == {*LOGIT_SCORES, "class-mean", "mahalanobis"} and not lines[2]["scores"]
    assert lines[1]["scores"]["sources"]["mahalanobis"][0]["auroc"] > 80           # another direction: easy to find
    assert lines[2]["bins"].keys() == {"sources", "unseen styles"} and not lines[1]["bins"]
    op.open_study(lab, tmp_path / "s.jsonl", **how)
    assert len(lab_lines(tmp_path / "s.jsonl")) == 4
    frame = op.open_frame(lines)
    both = op.beats(frame, "cosine")
    assert len(both) == 2 and both.ours[0] == [lines[1]["scores"]["sources"]["cosine"][0]["auroc"]]
    complaint(ValueError, lambda: op.beats(frame, "cosine", "aggregation"), "no score 'cosine'", "memory")
    complaint(ValueError, lambda: op.open_study(lab, tmp_path / "t.jsonl", groups=["tree"]), "unknown class 'tree'")
    complaint(ValueError, lambda: op.open_study(lab, tmp_path / "t.jsonl", methods=["pinmen"]), "did you mean 'pinmem'")
    assert not (tmp_path / "t.jsonl").exists()


def test_stored_results_hold_what_the_page_says():
    lines = lab_lines(op.Path(__file__).parents[1] / "nbs" / "results" / "open_set.jsonl")
    frame = op.open_frame(lines)
    assert frame.groupby(["method", "without"]).seed.nunique().min() >= 3 and set(frame.method) == set(op.OPEN_METHODS)
    assert frame[["auroc", "ap", "fpr95"]].stack().between(0, 100).all()
    assert "photographs" not in set(frame[frame.without == "truck,bus,train"].set)

"""The laboratory: features, labels, batches, one step, the study; a few pictures and a few steps."""
import functools
import json

import numpy as np
import pytest
import torch

from helpers import complaint
from pinmem import laboratory as lb
from pinmem.algorithms import split_batches
from pinmem.at_size import CompiledStep
from pinmem.data import to_tensor
from pinmem.datasets import open_domain
from pinmem.encoders import build_backbone, colours, standardise
from pinmem.labels import CAMVID11, IGNORE
from pinmem.laboratory import (LAB_METHODS, Lab, LabJob, LabRun, LabSet, LiveLab, TUNING, finish_job, lab_batches,
                               lab_frame, lab_lines, lab_pairs, majority, open_lab, principal, race_runs, run_study,
                               spread, standardised)
from pinmem.meta_step import meta_gradients, write_memory
from pinmem.plan import ALGORITHMS

C, N = 12, 19


def grids(n, seed, classes=5):
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n, 4, 6), generator=g)
    signal = torch.nn.functional.one_hot(y, C).movedim(-1, 1).float()
    return LabSet(2 * signal + torch.randn(n, C, 4, 6, generator=g) + .1 * seed, y)


@pytest.fixture(scope="module")
def lab():
    "Three sources, one unseen style and photographs, all made up."
    photos = LabSet(grids(4, 9).x, grids(4, 9).y, CAMVID11)
    names = "abc"
    return Lab({n: grids(12, i) for i, n in enumerate(names)}, {n: grids(4, i + 20) for i, n in enumerate(names)},
               {"u": grids(6, 7)}, {"camvid": photos}, (torch.zeros(C), torch.eye(C)))


def test_features_are_those_of_the_encoder():
    domain = open_domain("town", 2)
    backbone, (mean, std) = build_backbone().eval(), colours("tf_efficientnet_lite0")
    found = lb.look_once(backbone, (mean, std), domain, [1])
    x, y = to_tensor(*domain[1])
    with torch.no_grad(): maps = backbone(standardise(x[None], mean, std))
    assert found.x.shape == (1, 360, 8, 16)
    torch.testing.assert_close(found.x[:, :320], maps[-1])
    at = found.x[0, 320:, 3, 5]                                       # by hand: the mean of four finer cells
    torch.testing.assert_close(at, maps[2][0, :, 6:8, 10:12].mean((1, 2)))
    assert mean == (.5, .5, .5), "its own statistics, not ImageNet's"
    assert int(found.y[0, 3, 5]) == np.bincount(y[48:64, 80:96].flatten().numpy()).argmax()


def test_thumbnails_train_from_scratch():
    small = lb.make_lab(("town", "rendered"), ("fog",), train=4, val=2, exam=2, view="thumbnails", processes=0, progress=False)
    x, y = to_tensor(*open_domain("town", 6)[2])
    raw = lb.thumbnails(open_domain("town", 6), [2])
    torch.testing.assert_close(raw.x[0, :, 5, 7], x[:, 20:24, 28:32].mean((1, 2)))
    assert small.train["town"].x.shape == (4, 3, 32, 64) and small.train["town"].y.shape == (4, 32, 64)
    run = LabRun(small, "pinmem", steps=2)
    assert run.model.encoder(small.train["town"].x)[0].shape == (4, 64, 8, 16)
    before = run.model.encoder.layers[0][0].weight.clone()
    run.go()
    assert not torch.equal(before, run.model.encoder.layers[0][0].weight)   # E itself learns
    complaint(ValueError, lambda: lb.make_lab(view="small"), "thumbnails")


def test_majority_by_hand():
    y = torch.tensor([[[3, 3, 255, 255, 7, 1], [3, 8, 255, 4, 1, 7]]])
    assert majority(y, 2).tolist() == [[[3, IGNORE, 1]]]              # most; most ignored; a tie goes to the lower id


def test_photographs_keep_their_shape():
    image, mask = lb.cover(np.zeros((240, 320, 3), np.uint8), np.zeros((240, 320), np.uint8))
    assert image.shape == (128, 256, 3)
    circle = np.hypot(*np.mgrid[-120:120, -160:160]) < 60
    _, cut = lb.cover(np.zeros((240, 320, 3), np.uint8), circle.astype(np.uint8))
    assert abs(cut.any(0).sum() - cut.any(1).sum()) <= 2              # still a circle


def test_standardised_by_sources_only(lab):
    once = standardised(lab)
    x = torch.cat([s.x for s in once.train.values()])
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(C), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var((0, 2, 3), correction=0), torch.ones(C))
    other = Lab(lab.train, lab.val, {"u": LabSet(lab.unseen["u"].x * 5 + 3, lab.unseen["u"].y)}, lab.photos)
    for name in "abc": assert torch.equal(standardised(other).train[name].x, once.train[name].x)
    assert standardised(other).unseen["u"].x.mean() > 2               # an own mean would have been taken away


def test_principal_axes_of_the_sources(lab):
    once = standardised(lab)
    few, whole = principal(once, 5), principal(once, C)
    assert few.channels == 5 and few.photos["camvid"].x.shape == (4, 5, 4, 6)
    x = torch.cat([s.x for s in few.train.values()]).movedim(1, -1).reshape(-1, 5)
    shape = x.T @ x / len(x)
    torch.testing.assert_close(shape, torch.diag(shape.diag()), atol=1e-4, rtol=0)    # axes do not mix
    assert (shape.diag().diff() <= 1e-4).all() and abs(float(shape.diag().mean()) - 1) < 1e-4
    for name, s in once.unseen.items(): torch.testing.assert_close(lb.in_units(lab.unseen[name].x, *few.units), few.unseen[name].x)
    dot = lambda s: torch.einsum("bchw,bchw->", s.x[:1], s.x[1:2])                    # a turn keeps every angle
    torch.testing.assert_close(dot(whole.unseen["u"]), dot(once.unseen["u"]))


def test_spread_scales_the_offset_of_the_means(lab):
    mean = lambda lab: torch.stack([s.x.mean((0, 2, 3)) for s in (*lab.train.values(), *lab.unseen.values())])
    centre = torch.cat([s.x for s in lab.train.values()]).mean((0, 2, 3))
    for strength in (0., .5, 2.):
        torch.testing.assert_close(mean(spread(lab, strength)) - centre, strength * (mean(lab) - centre), atol=1e-4, rtol=0)
    moved = spread(lab, 2.)
    for name in "abc": torch.testing.assert_close(moved.val[name].x - lab.val[name].x, (moved.train[name].x - lab.train[name].x)[:4])


def test_same_batches_whatever_the_method(lab, monkeypatch):
    seen = []
    def taken(*args):
        seen.append(lab_batches(*args))
        return seen[-1]
    monkeypatch.setattr(lb, "lab_batches", taken)
    for method in ("aggregation", "pinmem"): LabRun(lab, method, seed=3, steps=4).go(4)
    LabRun(lab, "aggregation", seed=4, steps=4).go(4)
    flat = [torch.cat([x.flatten() for x, y in batches]) for batches in seen]
    assert all(torch.equal(a, b) for a, b in zip(flat[:4], flat[4:8]))
    assert not torch.equal(flat[0], flat[8])


def test_methods_are_those_of_the_plan():
    assert all(ALGORITHMS[name] is cls for name, cls in LAB_METHODS.items())


@pytest.mark.parametrize("method", LAB_METHODS)
def test_every_method_learns(lab, method):
    run = LabRun(lab, method, steps=60, lr=1e-2)
    run.go()
    scores = lb.means_of(run.end()["mean"])
    assert run.step == 60 and set(scores) == {"val", "unseen", "photos"}
    assert scores["val"] > run.curve[0]["val"] + 10


def test_a_step_is_that_of_meta_gradients(lab):
    run = LabRun(lab, "pinmem", seed=2, steps=10, optimiser="sgd", lr=1., weight_decay=0., average=0.)
    a, mem = run.algorithm, run.model.mem.clone()
    a.model.train()
    (params, buffers), (mtr, mte) = a.tensors(), split_batches(lab_batches(run.sets, 2, 0), 2, 0)
    step = meta_gradients(a.model, params, buffers, mem, mtr, mte, alpha=.1, order=2, objective="sum", aim=a.aim)
    before = {name: p.detach().clone() for name, p in params.items()}
    run.go(1)
    for name, p in run.model.named_parameters(): torch.testing.assert_close(p.detach(), before[name] - step.grads[name])
    torch.testing.assert_close(run.model.mem, write_memory(run.model, mem, *mtr, aim=a.aim))


def test_rate_follows_half_a_cosine_over_the_whole_run(lab):
    run, rates = LabRun(lab, "aggregation", steps=4, lr=1e-2), []
    for _ in range(4):
        run.go(1)
        rates.append(run.algorithm.optimisers["main"].param_groups[1]["lr"])
        assert (run.algorithm.mean is None) == (run.step <= 2)         # the mean is that of the last half
    np.testing.assert_allclose(rates, 1e-2 * np.array([1, (2 + 2 ** .5) / 4, .5, (2 - 2 ** .5) / 4]))


def test_a_run_stops_and_goes_on(lab):
    whole, parts = LabRun(lab, "pinmem", steps=6), LabRun(lab, "pinmem", steps=6)
    whole.go()
    for _ in range(4): parts.go(2); parts.measure()
    assert parts.step == 6 and whole.end() == parts.end()


def test_a_file_keeps_the_laboratory(lab, tmp_path, monkeypatch):
    made, path = [], tmp_path / "lab.pt"
    monkeypatch.setattr(lb, "make_lab", functools.wraps(lb.make_lab)(lambda **how: made.append(how) or lab))
    open_lab(path, photos={"camvid": "camvid:/somewhere"})
    again = open_lab(path, photos={"camvid": "camvid:/elsewhere"})
    assert torch.equal(again.photos["camvid"].x, lab.photos["camvid"].x) and again.photos["camvid"].labels == CAMVID11
    assert b"somewhere" not in path.read_bytes() and len(made) == 1
    assert all(map(torch.equal, again.units, lab.units))
    complaint(ValueError, lambda: open_lab(path, train=7), "train", "delete")


def study(lab, path, seeds=(0, 1)):
    run_study(lab, path, ("aggregation", "pinmem"), seeds, (8,), rates=(1e-3, 1e-2), tries=1, domains=3)


def test_study_resumes_without_double_lines(lab, tmp_path, capsys):
    path = tmp_path / "study.jsonl"
    study(lab, path)
    def reported(): return [line["job"] for line in lab_lines(path) if line["job"]["seed"] < TUNING]
    tuned = len(lab_lines(path)) - 2 * 2                              # two rates or more for each of two recipes
    assert len(reported()) == 2 * 2 and tuned >= 2 * 2 and "rate" in capsys.readouterr().out
    whole = path.read_text()
    study(lab, path)
    assert path.read_text() == whole
    path.write_text(whole[:-40])                                      # killed while it wrote the last line
    study(lab, path, (0, 1, 2))
    jobs = [json.dumps(line["job"]) for line in lab_lines(path)]
    assert len(jobs) == len(set(jobs)) == tuned + 2 * 3
    assert str(tmp_path) not in path.read_text()


def test_a_study_shares_what_was_compiled(lab, tmp_path):
    "One graph for each kind of split serves all seeds and lengths; a method without splits compiles nothing."
    made, usual, listed = [], tmp_path / "usual.jsonl", tmp_path / "listed.jsonl"
    def compiled():
        made.append(CompiledStep(lambda graph, given: graph))
        return made[-1]
    for path, how in ((usual, {}), (listed, dict(compiled=compiled))):
        run_study(lab, path, ("aggregation", "pinmem"), (0, 1), (6, 8), rates=(1e-3,), tries=1, domains=3, **how)
    assert [len(meta.graphs) for meta in made] == [2]                  # 3 + 6 and 6 + 3 pictures
    rows = [[{k: v for k, v in line.items() if k not in ("seconds", "compiled")} for line in lab_lines(path)]
            for path in (usual, listed)]
    assert rows[0] == rows[1]
    assert {(line["job"]["recipe"], line["compiled"]) for line in lab_lines(listed)} == {("aggregation", False), ("pinmem", True)}
    run_study(lab, tmp_path / "none.jsonl", ("pinmem",), (0,), (2,), rates=(1e-3,), tries=1, compiled=lambda: None)
    assert not any(line["compiled"] for line in lab_lines(tmp_path / "none.jsonl"))          # no compiler here
    complaint(ValueError, lambda: LabRun(lab, "aggregation", meta=made[0]), "aggregation", "no inner step")


def test_rate_is_chosen_on_the_sources_alone(lab, tmp_path):
    path, job = tmp_path / "study.jsonl", LabJob(recipe="aggregation", seed=0, steps=8, domains=3)
    def line(lr, seed, val, unseen):
        scores = dict(val={"a": val}, unseen={"u": unseen}, photos={})
        return dict(job=job.but(lr=lr, seed=seed).model_dump(), last=scores, mean=scores, curve=[dict(unseen=unseen)])
    lines = [line(1e-3, TUNING, 50, 1), line(2e-3, TUNING, 10, 90), line(5e-4, TUNING, 20, 95), line(1e-3, 0, 5, 6), line(2e-3, 0, 7, 8)]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert lb.best_rate(lab, job, path, rates=(1e-3, 2e-3), tries=1) == 1e-3
    frame = lab_frame(lines)
    assert frame.seed.tolist() == [0] and frame.lr.tolist() == [1e-3] and frame.unseen.tolist() == [6]


def test_rate_at_the_end_of_the_grid_is_not_taken_on_trust(lab, tmp_path, monkeypatch):
    job = LabJob(recipe="aggregation", steps=8, domains=3)
    def chosen(score, rates):                                     # -> the rate, and all that were tried
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        def run(lab, job, meta):
            scores = dict(val={"a": score(job.lr)}, unseen={}, photos={})
            return dict(job=job.model_dump(), last=scores, mean=scores, curve=[])
        monkeypatch.setattr(lb, "run_job", run)
        return lb.best_rate(lab, job, path, rates, tries=1), [line["job"]["lr"] for line in lab_lines(path)]
    assert chosen(lambda lr: -abs(lr - .8), (.1, .2)) == (.8, [.1, .2, .4, .8, 1.6])             # up, until it is worse
    assert chosen(lambda lr: -abs(lr - .05), (.1, .2)) == (.05, [.1, .2, .05, .025])             # and down
    assert chosen(lambda lr: -abs(lr - .2), (.1, .2, .4)) == (.2, [.1, .2, .4])                  # inside: nothing more
    assert chosen(lambda lr: 30., (.1, .2)) == (.05, [.1, .2, .05])                              # no better: no further
    assert chosen(lambda lr: lr, (.1,)) == (.1, [.1])                                            # one rate is an order


def test_pairs_share_their_seeds(lab, tmp_path):
    path = tmp_path / "study.jsonl"
    for recipe, seed in (("aggregation", 0), ("aggregation", 1), ("pinmem", 1), ("pinmem", 2)):
        finish_job(lab, LabJob(recipe=recipe, seed=seed, steps=6, domains=3), path)
    frame = lab_frame(lab_lines(path))
    row, = lab_pairs(frame).to_dict("records")
    one = lambda recipe: frame[(frame.recipe == recipe) & (frame.seed == 1)].unseen.tolist()
    assert row["n"] == 1 and row["ours"] == one("pinmem") and row["theirs"] == one("aggregation")
    assert row["fall"] >= 0


def pressed(lab, **how):
    "A live figure without a browser: what is put off waits in a list."
    waiting = []
    live = LiveLab(lab, steps=8, chunk=2, every=4, later=waiting.append, **how)
    return live, waiting


def test_live_figure_trains_stops_and_goes_on(lab):
    live, waiting = pressed(lab)
    empty = live.picture.value
    live.button.click()
    assert live.button.description == "stop"
    waiting.pop()()
    live.button.click()                                               # stop: the chunk that waits does nothing
    waiting.pop()()
    assert [run.step for run in live.runs] == [2, 2] and not waiting
    live.button.click()
    while waiting: waiting.pop()()
    by_hand = race_runs(lab, "aggregation", "pinmem", steps=8)
    for run, other in zip(live.runs, by_hand):
        other.go()
        assert run.step == 8 and run.curve[-1] == other.measure()
    assert live.picture.value != empty and live.button.description == "train"


def test_a_knob_starts_afresh(lab):
    live, waiting = pressed(lab)
    live.button.click(); waiting.pop()()
    live.controls["domains"].value, live.controls["order"].value, live.controls["tau"].value = 2, 1, .5
    first, second = live.runs
    assert first.step == second.step == 0 and len(first.sources) == 2
    assert second.algorithm.switches.order == 1 and abs(second.model.tau - .5) < 1e-6
    live.controls["strength"].value = 2.
    moved = spread(lab, 2.).unseen["u"].x
    torch.testing.assert_close(live.runs[0].lab.unseen["u"].x, moved)


def test_an_unknown_method_gets_a_hint(lab):
    complaint(ValueError, lambda: LabRun(lab, "pinmen"), "pinmem")

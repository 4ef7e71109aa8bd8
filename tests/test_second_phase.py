"""The second phase of a run: what stays, what learns, what is written down, and who is refused."""
import pytest
import torch

from helpers import complaint
from pinmem.algorithms import pool
from pinmem.data import drawn_from
from pinmem.model import collect_statistics
from pinmem.plan import ALGORITHMS, plan
from pinmem.processes import check_crops
from pinmem.runs import Run, Work, estimate, make_batches, open_sources, prepare, resume, train
from pinmem.second_phase import above, keep_maps, second_algorithm
from pinmem.training import lr_factor, read_state

TINY = dict(encoder="test_resnet", weights=None, channels=16, rates=(1, 2), context_width=8, fine=8, width=16)
SMALL = dict(sources=["town", "winter"], size=(128, 64), scenes=4, exam=2, quiet=True, threads=1, workers=0, device="cpu",
             memory_images=4, crop=(64, 32), targets=["fog"], steps=3, **TINY)
AGAIN = dict(quiet=True, threads=1, workers=0, device="cpu")


@pytest.fixture(scope="module", params=["pinmem", "aggregation"])
def runs(request, tmp_path_factory):
    "The same run without and with a second phase of five steps, and one that was stopped and resumed."
    folder = tmp_path_factory.mktemp("second")
    plain = train(method=request.param, out=folder / "plain", **SMALL)
    both = train(method=request.param, out=folder / "both", second_phase=5, **SMALL)
    train(method=request.param, out=folder / "halves", second_phase=5, stop=2, **SMALL)
    first = Run.open(folder / "halves").log["step"]
    return plain, both, first, resume(folder / "halves", **AGAIN)


def test_the_backbone_stays_and_what_is_above_learns(runs):
    plain, both, *_ = runs
    before, after = plain.model.state_dict(), both.model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith("encoder.backbone.")]
    for part in ("encoder.context.", "decoder."):
        learned = {n for n, p in plain.model.named_parameters() if n.startswith(part)}
        assert learned and learned <= changed
    assert any("running_mean" in name for name in changed)
    if plain.model.mem is None: return
    assert "mem" in changed and any(name.startswith("updater.") for name in changed)
    torch.testing.assert_close(after["mem"].norm(dim=1), torch.ones(19))


def test_the_log_goes_on_and_a_stopped_run_has_no_second_phase(runs):
    plain, both, first, _ = runs
    assert first == [0, 1] and plain.log["step"] == [0, 1, 2] and both.log["step"] == list(range(8))
    assert both.log["loss_seg"][:3] == plain.log["loss_seg"]


def test_stopped_and_resumed_equals_uninterrupted(runs):
    _, both, _, halves = runs
    assert halves.log["step"] == list(range(8))
    whole = both.model.state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in halves.model.state_dict().items())


def test_a_run_with_it_can_be_resumed_again(runs):
    "Its state is that before the second phase, so the result is the same."
    _, both, _, halves = runs
    again = resume(halves.folder, **AGAIN)
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in both.model.state_dict().items())


def test_who_has_no_second_phase(monkeypatch):
    for method, cls in ALGORITHMS.items():
        if not cls.unlabelled and method != "robustnet": continue
        photos = {"photos": ["fog"]} if cls.unlabelled else {}
        complaint(ValueError, lambda: plan(method, second_phase=5, **photos), "second_phase=5 contradicts", method)
    made = plan("aggregation", sources=["town", "winter"], second_phase=5)
    check_crops(made)
    monkeypatch.setenv("WORLD_SIZE", "2")
    complaint(ValueError, lambda: check_crops(made), "second_phase=5 is for one process, and 2 were started")


def test_estimate_says_that_it_is_not_in_it(capsys):
    given = {name: value for name, value in SMALL.items() if name not in ("steps", "targets", "quiet")}
    estimate(method="aggregation", steps=4, second_phase=5, **given)
    assert "the second phase is not in it" in capsys.readouterr().out


def test_a_run_that_the_clock_ends_has_its_second_phase(tmp_path):
    run = train(method="aggregation", out=tmp_path / "run", second_phase=2, minutes=0.02, **{**SMALL, "steps": 100_000})
    done = read_state(run.folder / "state.pt")["step"]
    assert 0 < done < 100_000 and run.log["step"] == list(range(done + 2))


@pytest.mark.parametrize("method", ["pinmem", "aggregation"])
def test_it_is_what_its_parts_do_one_after_the_other(method, tmp_path):
    "The batches that would come next, their maps, five steps without a warm-up, the mean, the statistics."
    plain = train(method=method, out=tmp_path / "plain", unweigh=0, **SMALL)
    both = train(method=method, out=tmp_path / "both", second_phase=5, unweigh=0, **SMALL)
    model, domains = plain.model, open_sources(plain.plan)
    prepare(model, domains, plain.plan, Work(**AGAIN), first=False)
    encoder, kept = keep_maps(model, make_batches(plain.plan, domains).stream(3, 8))
    with above(model, encoder):
        by_hand = second_algorithm(ALGORITHMS[method](model, 0, **plain.plan.algorithm))
        for t in range(5):
            by_hand.done = t / 5
            by_hand.set_rate(lr_factor(t / 5))
            by_hand.update(drawn_from(kept, 0, t, 2))
        by_hand.end()
        collect_statistics(model, (pool(drawn_from(kept, 0, t, 2))[0] for t in range(5, 10)))
    whole = both.model.state_dict()
    for name, tensor in model.state_dict().items(): torch.testing.assert_close(whole[name], tensor)

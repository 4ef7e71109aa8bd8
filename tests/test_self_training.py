"""Self-training: no label of a photograph is read, nothing is random but (seed, step), and what it costs to have none."""
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import complaint
from pinmem import plan, runs
from pinmem.algorithms import pool
from pinmem.feature_norm import SourceOnly
from pinmem.labels import IGNORE
from pinmem.model import build_model
from pinmem.self_training import SelfTraining, SelfTrainingMemory, mix_classes, photo_loss

METHODS = {"self-training": SelfTraining, "self-training-memory": SelfTrainingMemory}
SMALL = dict(encoder="test_resnet", weights=None, channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)
FEW = dict(threads=1, workers=0, quiet=True)


def toy(seed, size=(32, 64)):
    "Two batches of sources, a part of them ignored, and photographs."
    g = torch.Generator().manual_seed(seed)
    one = lambda: (torch.rand(2, 3, *size, generator=g), torch.randint(0, 19, (2, *size), generator=g))
    batches = [one(), one()]
    for _, y in batches: y[:, :4] = IGNORE
    return batches, torch.rand(3, 3, *size, generator=g)


def make(cls, network={}, **switches):
    torch.manual_seed(0)
    return cls(build_model(**{**SMALL, **network}), seed=3, **switches)


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


@pytest.mark.parametrize("cls", METHODS.values())
def test_steps_are_finite_and_everything_learns(cls):
    learner = make(cls)
    before = learner.state_dict()["model"]
    log = [learner.update(*toy(s)) for s in range(3)]
    after = learner.state_dict()["model"]
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name for name, _ in learner.model.named_parameters()} | {"mem"} <= moved
    assert all(row.keys() == log[0].keys() and all(np.isfinite(v) for v in row.values()) for row in log)
    assert all(t.isfinite().all() for t in after.values())
    torch.testing.assert_close(learner.teacher.mem.norm(dim=1), torch.ones(19))


@pytest.mark.parametrize("cls", METHODS.values())
def test_a_state_put_back_goes_on_to_the_same_bytes(cls):
    one, other = make(cls), make(cls)
    for s in range(2): one.update(*toy(s))
    other.load_state_dict(one.state_dict())
    assert one.update(*toy(2)) == other.update(*toy(2))
    a, b = one.state_dict(), other.state_dict()
    assert equal(a["model"], b["model"]) and equal(a["teacher"], b["teacher"])
    if cls is SelfTrainingMemory: assert torch.equal(a["rows"], b["rows"])


def test_a_state_from_before_the_first_step_has_no_teacher_yet():
    fresh, used = make(SelfTrainingMemory), make(SelfTrainingMemory)
    kept = fresh.state_dict()
    used.update(*toy(0))
    used.load_state_dict(kept)
    assert used.teacher is None and used.update(*toy(1)) == fresh.update(*toy(1))


@pytest.mark.parametrize("cls", METHODS.values())
def test_without_weight_it_is_the_control(cls):
    "λ = 0: photographs teach nothing, and BatchNorm never meets them."
    off, plain, on = make(cls, lam_photo=0.0), make(SourceOnly), make(cls)
    for s in range(2):
        for learner in (off, plain, on): learner.update(*toy(s))
    assert equal(plain.model.state_dict(), off.model.state_dict())
    assert not equal(dict(plain.model.named_parameters()), dict(on.model.named_parameters()))


def test_the_teacher_learns_nothing_and_follows():
    learner = make(SelfTraining, slow=0.5)
    learner.update(*toy(0))
    assert not any(p.requires_grad or p.grad is not None for p in learner.teacher.parameters())
    assert not learner.teacher.training
    before = {name: t.clone() for name, t in learner.teacher.state_dict().items()}
    learner.update(*toy(1))
    student = learner.model.state_dict()
    for name, p in learner.teacher.named_parameters():
        torch.testing.assert_close(p, 0.5 * before[name] + 0.5 * student[name])


def test_every_class_of_the_source_or_none():
    "A pasted class comes whole; what is not pasted is the photograph to the bit."
    (batches, photos), rng = toy(4), np.random.default_rng(0)
    x, y = pool(batches)
    q = torch.full((3, 19, *y.shape[1:]), 1 / 19)
    mixed, labels = mix_classes(x, y, photos, q, rng)
    pasted = labels.amax(1) == 1
    assert pasted.any() and not pasted.all()
    assert torch.equal(mixed.movedim(1, -1)[~pasted], photos.movedim(1, -1)[~pasted])
    assert torch.equal(photos, toy(4)[1]), "the photographs that were given stay as they are"


@pytest.mark.parametrize("cls", METHODS.values())
def test_sources_without_a_label(cls):
    batches, photos = toy(0)
    for _, y in batches: y[:] = IGNORE
    learner = make(cls)
    assert all(np.isfinite(v) for v in learner.update(batches, photos).values())


def test_memory_is_wanted():
    complaint(ValueError, lambda: make(SelfTrainingMemory, dict(memory=False)), "memory=True", "SelfTrainingMemory")
    make(SelfTraining, dict(memory=False)).update(*toy(0))


def test_photographs_are_wanted():
    complaint(ValueError, lambda: make(SelfTraining).update(toy(0)[0]), "SelfTraining", "unlabelled")


def test_trust_of_zero_is_plain_self_training():
    plain, memory = make(SelfTraining), make(SelfTrainingMemory, trust=0.0)
    for s in range(2): a, b = plain.update(*toy(s)), memory.update(*toy(s))
    assert a["loss_photo"] == pytest.approx(b["loss_photo"], abs=1e-6)
    trusting = make(SelfTrainingMemory, trust=5.0)
    for s in range(2): c = trusting.update(*toy(s))
    assert abs(c["loss_photo"] - a["loss_photo"]) > 1e-4


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun") / "run"
    return runs.train(["town", "city"], steps=2, out=folder, targets=[], scenes=4, exam=1, size=(64, 32), crop=(64, 32),
                      per_domain=1, memory_images=2, settle=1, encoder="test_resnet", weights=None, channels=16,
                      rates=(1, 2, 3), context_width=8, fine=8, width=16, **FEW).folder


def folder_of(path, n, label):
    "A folder as data sets have it; every pixel of its labels is `label`."
    for part in ("images", "labels"): (path / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(path / "images" / f"{i}.png")
        (path / "labels" / f"{i}.png").write_bytes(b"no picture") if label is None else (
            Image.fromarray(np.full((40, 80), label, np.uint8)).save(path / "labels" / f"{i}.png"))
    return path


def adapt(begun, photos, out, method):
    run = runs.adapt(begun, photos, method=method, steps=2, out=out, targets=[], photos_per_step=2, **FEW)
    return (out / "model.safetensors").read_bytes(), run


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_photographs_are_never_read(begun, tmp_path, method):
    "Right labels, wrong labels, and files that are no pictures at all: the same network to the byte."
    made = [adapt(begun, folder_of(tmp_path / str(label), 3, label), tmp_path / f"run-{label}", method)[0]
            for label in (0, 13, None)]
    assert made[0] == made[1] == made[2]


def test_one_photograph_is_enough(begun, tmp_path):
    _, run = adapt(begun, folder_of(tmp_path / "one", 1, 0) / "images" / "0.png", tmp_path / "run", "self-training")
    assert len(run.log["loss_photo"]) == 2 and np.isfinite(run.log["loss_photo"]).all()


def test_no_photograph_is_one_line(begun, tmp_path):
    (tmp_path / "none").mkdir()
    for photos in ((), (tmp_path / "none",)):
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            runs.adapt(begun, *photos, method="self-training", steps=2, out=tmp_path / "run", **FEW)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0])])
def test_gradient_of_the_photographs_loss(weight):
    logits = torch.randn(1, 2, 2, 2, dtype=torch.double, requires_grad=True, generator=torch.Generator().manual_seed(0))
    q = torch.softmax(torch.randn(1, 2, 2, 2, dtype=torch.double), 1)
    weight = None if weight is None else weight.double()
    assert torch.autograd.gradcheck(lambda z: photo_loss(z, q, weight), logits)


def test_aligned_labels_go_towards_the_shares_of_the_sources():
    "And only as far as `align` says; what the slow means have seen counts, not one batch alone."
    y = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, IGNORE]]])                         # 5 : 2
    q = torch.full((1, 19, 2, 4), 1e-3); q[:, 0], q[:, 1] = .9, .1 - 17e-3
    share = lambda q: float(q[:, 1].mean())
    learner, off = make(SelfTraining), make(SelfTraining, align=0.0)
    once = learner.aligned(q, y)
    assert torch.equal(off.aligned(q, y), q / q.sum(1, keepdim=True))
    assert share(q) < share(once) < 0.4
    torch.testing.assert_close(learner.shares[1, :3], torch.tensor([5 / 7, 2 / 7, 0]))
    learner.aligned(q, torch.zeros_like(y))
    torch.testing.assert_close(learner.shares[1, 1], torch.tensor(.95 * 2 / 7))

"""The method's parts (notebooks 11 to 16): names of classes do not matter, wrong input is refused, a step leaves its network alone."""
import copy

import pytest
import torch
from torch.testing import assert_close

from helpers import complaint
from pinmem.labels import IGNORE
from pinmem.losses import cohesion_loss, divergence_terms, seg_loss
from pinmem.memory_init import init_memory, normalise, one_hot
from pinmem.memory_read import Fusion, cosines, read
from pinmem.memory_update import Updater, class_means, update
from pinmem.meta_step import combine, meta_gradients, write_memory
from pinmem.model import build_model

ORDER = torch.tensor([3, 0, 4, 1, 2])


@pytest.fixture(scope="module")
def toy():
    "Features, unit rows, labels of five classes, soft labels, all on one grid."
    g = torch.Generator().manual_seed(0)
    f = torch.rand(3, 8, 6, 7, dtype=torch.float64, generator=g)
    mem = normalise(torch.rand(5, 8, dtype=torch.float64, generator=g))
    y = torch.randint(0, 5, (3, 6, 7), generator=g)
    y[0, :2] = IGNORE
    return f, mem, y, one_hot(y, 5, (6, 7), dtype=torch.float64)


def test_names_of_classes_do_not_matter(toy):
    f, mem, y, y1h = toy
    s = cosines(f, mem)
    assert_close(init_memory([(f, y1h[:, ORDER])])[0], init_memory([(f, y1h)])[0][ORDER])
    means = class_means(normalise(f), y1h), class_means(normalise(f), y1h[:, ORDER])
    assert_close(update(mem[ORDER], *means[1]), update(mem, *means[0])[ORDER])
    (qm, _, w), (qm2, _, w2) = read(f, mem, .1), read(f, mem[ORDER], .1)
    assert_close(qm2, qm)
    assert_close(w2, w[:, ORDER])
    assert_close(cohesion_loss(s[:, ORDER], y1h[:, ORDER]), cohesion_loss(s, y1h))
    pairs = lambda m: divergence_terms(m, torch.nn.Linear(8, 5).double())[1]
    assert_close(pairs(mem[ORDER]), pairs(mem))


def test_batches_and_ignored_images_do_not_matter_to_the_first_memory(toy):
    f, _, _, y1h = toy
    whole, _ = init_memory([(f, y1h)])
    assert_close(init_memory((f[i:i + 1], y1h[i:i + 1]) for i in range(3))[0], whole)
    assert_close(init_memory([(f, y1h), (f, torch.zeros_like(y1h))])[0], whole)


def test_wrong_input_is_refused_in_one_line(toy):
    f, mem, y, y1h = toy
    s = cosines(f, mem)
    for wrong, word in ((lambda: one_hot(y + 33, 19, (2, 2)), "recode"), (lambda: one_hot(y, 5, (2, 2), "nearest"), "nearest"),
                        (lambda: init_memory([(f, torch.zeros_like(y1h))]), "no labelled pixel"),
                        (lambda: Updater(8, "unit"), "unit"), (lambda: Fusion(8, "sum"), "sum"),
                        (lambda: seg_loss(s, y[:, :2]), "height"), (lambda: cohesion_loss(s, y), "one_hot"),
                        (lambda: cohesion_loss(s, y1h, at="pixels"), "pixels")):
        complaint(ValueError, wrong, word)


@pytest.fixture(scope="module")
def step():
    "A small network, a batch for each side, and its step."
    torch.manual_seed(0)
    model = build_model(weights=None, tau=.1, channels=16, context_width=16, fine=8, width=16).double().train()
    batches = [(torch.rand(2, 3, 32, 64, dtype=torch.float64), torch.randint(0, 19, (2, 32, 64))) for _ in range(2)]
    return model, batches, meta_gradients(model, *state(model), model.mem, *batches, alpha=.1)


def state(model): return dict(model.named_parameters()), dict(model.named_buffers())


def test_what_is_stepped_on(step):
    model, batches, found = step
    for objective, share in ("sum", 1), ("mean", .5):                    # as many images on either side
        both = meta_gradients(model, *state(model), model.mem, *batches, alpha=.1, objective=objective)
        for name in found.inner: assert_close(both.grads[name], share * (found.inner[name] + found.outer[name]))
    one_of_three = combine(found.inner, found.outer, "mean", images=(1, 2))
    for name in found.inner: assert_close(one_of_three[name], found.inner[name] / 3 + found.outer[name] * 2 / 3)


def test_log_tells_what_the_second_order_changed(step):
    model, batches, found = step
    first = meta_gradients(model, *state(model), model.mem, *batches, alpha=.1, order=1)
    assert first.losses["second"] == 0
    change = sum((found.outer[n] - first.outer[n]).square().sum() for n in found.outer).sqrt()
    length = sum(g.square().sum() for g in first.outer.values()).sqrt()
    assert change > 0
    assert_close(found.losses["second"], change / length)
    assert_close(first.mem_prime, found.mem_prime)                       # the order changes gradients, not values


def test_wrong_words_are_refused(step):
    model, batches, _ = step
    for wrong in (dict(order=3), dict(objective="inner"), dict(prime="frozen")):
        complaint(ValueError, lambda: meta_gradients(model, *state(model), model.mem, *batches, alpha=.1, **wrong), *wrong.values())


def test_statistics_move_once_and_rows_stay_unit(step):
    model, batches, found = step
    reference = copy.deepcopy(model)
    reference.updater(reference(batches[0][0], full=True)["f"])          # one pass over X_mtr in training mode
    for name, t in reference.named_buffers():
        if name in found.buffers: assert_close(found.buffers[name], t)
    counts = [int(t) for name, t in found.buffers.items() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {1}
    star = write_memory(model, model.mem, *batches[0])
    for mem in (found.mem_hat, found.mem_prime, star): assert_close(mem.norm(dim=1), torch.ones(19, dtype=torch.float64))
    assert model.training                                                # write_memory gave the mode back


@pytest.mark.parametrize("prime, hears", [("hat", False), ("prime", True), ("prime_frozen_e", True), ("prime_frozen_eu", False)])
def test_what_u_hears_of_the_meta_test(step, prime, hears):
    model, batches, _ = step
    outer = meta_gradients(model, *state(model), model.mem, *batches, alpha=.1, order=1, prime=prime).outer
    assert (outer["updater.conv.weight"].abs().max() > 0) == hears

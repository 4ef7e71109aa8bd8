"""Maximum squares, entropy, ensembles, schedules and IoU against recorded numbers of the published code, in float64.

tests/reference_fta/README.md says where the numbers are from; PINMEM_REFERENCE_FTA names another folder of them.
"""
import pytest
import torch

import fta_recipe as recipe
from fta_recipe import LOSSES, Numbers
from helpers import WORST, same, tensor
from pinmem.decoders import resize
from pinmem.feature_norm import damping
from pinmem.max_squares import entropy, image_weights, max_squares, mix
from pinmem.metrics import confusion, iou, miou
from pinmem.training import lr_factor

SHAPES = {"maxsquare": ("ms:z", (2, 19, 8, 12)), "maxsquare_one_class": ("ms:one", (2, 19, 6, 8))}
IMAGE_WISE = {"iw": (max_squares, .2), "iw_ratio0": (max_squares, 0), "iw_ratio1": (max_squares, 1),
              "iw_entropy": (entropy, .2)}


@pytest.fixture(params=LOSSES, ids=lambda p: p.stem)
def file(request):
    return request.param


def test_reference_is_there():
    assert LOSSES, f"no fta_losses_*.npz in {recipe.FOLDER}"


def scores(numbers):
    "The input of a case of maximum squares; one image of the second is sure of one class everywhere."
    key, shape = SHAPES[numbers.case]
    z = tensor(recipe.logits(key, shape, numbers.seed))
    if numbers.case == "maxsquare_one_class": z[0, 3] += 40
    return z.requires_grad_()


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name, loss", [("plain", max_squares), ("entropy", entropy)])
def test_plain(file, case, name, loss):
    numbers = Numbers(file, case)
    z = scores(numbers)
    found = loss(z.softmax(1))
    same(f"{name}:value", found, numbers(name))
    same(f"{name}:gradient", torch.autograd.grad(found, z)[0], numbers(f"{name}_grad"))


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("name", IMAGE_WISE)
def test_image_wise(file, case, name):
    "The released code takes one image; a batch of two is the mean of both."
    numbers, (loss, ratio) = Numbers(file, case), IMAGE_WISE[name]
    z = scores(numbers)
    p = z.softmax(1)
    alone = [loss(one, weight=image_weights(one, ratio)) for one in p.split(1)]
    for k, value in enumerate(alone):
        want = numbers(name)[k]
        assert abs(value.item() - want) <= 1e-8 * abs(want), f"{name} of image {k}: {value}, expected {want}"
    both = loss(p, weight=image_weights(p, ratio))
    same(f"{name}:mean", both, numbers(name).mean())
    same(f"{name}:gradient", torch.autograd.grad(both, z)[0], numbers(f"{name}_grad"))


def test_ensemble(file):
    "Seven tenths of the first, three of the second, each the mean of an image and its mirror image."
    numbers = Numbers(file, "ensemble")
    scored = lambda name: tensor(recipe.logits(f"ens:{name}", (1, 19, 9, 13), numbers.seed))
    a, b, fa, fb = map(scored, ("a", "b", "fa", "fb"))
    p = mix([a, fa.flip(-1), b, fb.flip(-1)], (.35, .35, .15, .15))
    same("ensemble:probabilities", p, numbers("probabilities"))
    for name, z in (("probabilities", p), ("logits", mix([a, b], (.7, .3), "logits")), ("first", a)):
        best = resize(z, (36, 52)).argmax(1)
        assert best.numpy().tolist() == numbers(f"argmax_{name}").tolist(), name


def test_iou(file):
    numbers = Numbers(file, "iou")
    truth, found = (recipe.labels(f"iou:{name}", (3, 40, 56), numbers.seed) for name in ("gt", "pr"))
    found[found == 255] = 0
    found[truth == 5] = 5
    conf = confusion(tensor(found).long(), tensor(truth).long())
    assert conf.tolist() == numbers("hist").tolist()
    same("iou:mean", torch.tensor(miou(conf), dtype=torch.float64), numbers("miou"))
    ours, theirs = iou(conf), tensor(numbers("iou"))
    assert torch.equal(ours.isnan(), theirs.isnan()) and ours.isnan().sum() == 2
    same("iou:classes", ours[~ours.isnan()], theirs[~theirs.isnan()].numpy())


def test_schedules(file):
    "The released constants; the damping of the norm is stopped at zero here, there it goes on below."
    numbers = Numbers(file, "schedule")
    done = numbers("iteration") / 150_000
    each = lambda f: torch.tensor([f(float(t)) for t in done], dtype=torch.float64)
    same("schedule:rate", 2.5e-4 * each(lambda t: lr_factor(t, "warmpoly")), numbers("lr_g"))
    same("schedule:damping", each(damping), numbers("damping"))
    same("schedule:damping of the norm", each(lambda t: damping(t, 1.5)), numbers("damping_norm").clip(min=0))
    assert (numbers("damping_norm") < 0).any() and (each(lambda t: damping(t, 1.5)) >= 0).all()


def test_summary(capsys):
    "Shows the largest error of each kind of number."
    with capsys.disabled():
        for kind, error in sorted(WORST.items()): print(f"\n  {kind:14} {error:.1e}", end="")

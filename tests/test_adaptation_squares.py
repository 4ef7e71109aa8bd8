"""Sure answers on photographs, and ensembles: what is accepted, what is refused in one line, what stays finite."""
import numpy as np
import pytest
import torch

from helpers import complaint
from pinmem.data import DrawnDomain, to_tensor
from pinmem.evaluation import Protocol, score, segment
from pinmem.feature_norm import Adaptation
from pinmem.max_squares import (Ensemble, MaxSquare, MaxSquareNorm, MinEntropy, entropy, image_weights, max_squares,
                                mix, sure_labels)
from pinmem.model import build_model
from pinmem.published import beside_published, published


def network(seed=0, **switches):
    torch.manual_seed(seed)
    return build_model(**{**dict(encoder="test_resnet", weights=None, memory=False), **switches})


def given(seed=0, size=(32, 64), n=19):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, 3, *size, generator=g), torch.randint(0, n, (2, *size), generator=g)
    return [(x, y)], torch.rand(2, 3, *size, generator=g)


@pytest.mark.parametrize("words, call", [
    (("lam_square", "0 to 1000"), lambda: MaxSquare(network(), lam_square=-1)),
    (("ratio", "0 to 1"), lambda: MaxSquare(network(), ratio=1.5)),
    (("square_from", "0 to 1"), lambda: MaxSquare(network(), square_from=2)),
    (("unsure", "'squares'", "'entropy'"), lambda: MaxSquare(network(), unsure="cubes")),
    (("lam_sqare", "did you mean 'lam_square'"), lambda: MaxSquare(network(), lam_sqare=.1)),
    (("MinEntropy", "image_wise=True", "contradicts"), lambda: MinEntropy(network(), image_wise=True)),
    (("lam_multi=0.01", "aux=True"), lambda: MaxSquareNorm(network(), lam_multi=.01)),
    (("MaxSquare", "`unlabelled`"), lambda: MaxSquare(network()).update(given()[0])),
])
def test_refused_switches(words, call): complaint(ValueError, call, *words)


@pytest.mark.parametrize("words, call", [
    (("[0.5]", "2 predictions"), lambda z: mix([z, z], [.5])),
    (("[0.6, 0.6]", "add up to 1"), lambda z: mix([z, z], [.6, .6])),
    (("[1.5, -0.5]", "none below 0"), lambda z: mix([z, z], [1.5, -.5])),
    (("'votes'", "'probabilities' or 'logits'"), lambda z: mix([z, z], [.5, .5], "votes")),
    (("3 predictions",), lambda z: Ensemble([network()] * 3)),
    (("7, 19 classes", "same classes"), lambda z: Ensemble([network(), network(n=7)])),
])
def test_refused_mixtures(words, call): complaint(ValueError, lambda: call(torch.zeros(1, 19, 2, 2)), *words)


@pytest.mark.parametrize("loss", [entropy, max_squares])
def test_as_sure_as_can_be(loss):
    "In float32 a softmax reaches 0 and 1; values and gradients stay finite."
    z = torch.zeros(2, 19, 3, 4)
    z[:, 5] = 1e4
    z.requires_grad_()
    p = z.softmax(1)
    value = loss(p, weight=image_weights(p))
    grad, = torch.autograd.grad(value, z)
    assert value.isfinite() and grad.isfinite().all() and p.min() == 0


def test_gradient_of_squares_is_linear():
    p = torch.rand(2, 19, 3, 4, dtype=torch.float64).requires_grad_()
    grad, = torch.autograd.grad(max_squares(p), p)
    torch.testing.assert_close(grad, -p.detach() / (2 * 19 * 12))


def test_weights_carry_no_gradient_and_count_any_classes():
    p = torch.randn(2, 7, 5, 5).softmax(1).requires_grad_()
    w = image_weights(p)
    assert not w.requires_grad and w.shape == (2, 5, 5) and w.min() >= 1 / 25 - 1e-6 and w.max() <= 1
    alone = torch.cat([image_weights(one) for one in p.split(1)])
    assert torch.equal(w, alone)                                        # an image does not count its neighbour's pixels


def test_nobody_sure_means_no_labels():
    flat = torch.full((1, 4, 2, 2), .25)
    assert (sure_labels(flat, flat) == 255).all()


@pytest.mark.parametrize("cls", [MaxSquare, MinEntropy, MaxSquareNorm])
@pytest.mark.parametrize("switches", [
    dict(), dict(encoder="tf_efficientnet_lite0"), dict(memory=True), dict(head="twoheads"), dict(n=7)], ids=str)
def test_three_steps_on_every_kind_of_network(cls, switches):
    algorithm = cls(network(**switches))
    start = {name: p.detach().clone() for name, p in algorithm.model.named_parameters()}
    for seed in range(3):
        terms = algorithm.update(*given(seed, n=switches.get("n", 19)))
        assert {"loss_square", "sure", "loss_seg"} <= set(terms) and all(np.isfinite(v) for v in terms.values())
        assert ("loss_norm" in terms) == (cls is MaxSquareNorm)
    assert any(not torch.equal(p, start[name]) for name, p in algorithm.model.named_parameters())


def test_half_of_the_run_without_it():
    "Before its share of the run a method is its control, to the bit; from there on it is not."
    late, control = MaxSquare(network(), square_from=.5), Adaptation(network())
    for step in range(3):
        for algorithm in (late, control):
            algorithm.done = step / 4
            algorithm.update(*given(step))
        same = all(torch.equal(a, b) for a, b in zip(late.model.parameters(), control.model.parameters()))
        assert same == (step < 2)


@pytest.mark.parametrize("head", ["deeplabv3plus", "twoheads"])
def test_second_head_learns_from_pseudo_labels_alone(head):
    "With labels that are all ignored and no other loss, only the auxiliary head's weight can bring it a gradient."
    model = network(head=head, aux=True)
    last = model.decoder.heads[0].branches[0] if head == "twoheads" else model.decoder.classify
    with torch.no_grad(): last.bias[3] += 50                            # the main head is sure of class 3
    batches, photos = given()
    batches[0][1].fill_(255)
    algorithm = MaxSquare(model, lam_square=0, lam_multi=1, weight_decay=0)
    before = [p.detach().clone() for p in model.aux.parameters()]
    terms = algorithm.update(batches, photos)
    assert terms["loss_multi"] > 0
    assert all(not torch.equal(p, old) for p, old in zip(model.aux.parameters(), before))


def test_ensemble_is_segmented_and_scored_like_a_network():
    pair = [network(0), network(1)]
    x = to_tensor(*DrawnDomain("town", 1, size=(64, 32))[0])[0][None]
    both = Ensemble(pair, (.5, .5))
    want = sum(net.predict(x).softmax(1) for net in pair).argmax(1)[0]
    found, w = segment(both, x, full=True)
    assert torch.equal(found, want) and w is None
    assert torch.equal(segment(Ensemble(pair, (0, 1)), x)[0], segment(pair[1], x)[0])
    domain = DrawnDomain("fog", 2, size=(64, 32))
    protocol = Protocol(flip=True, multiple=48)                         # padded with the encoder's mean colour
    twins = score(Ensemble([pair[0], pair[0]]), [domain], protocol, progress=False)
    assert twins["fog"]["confusion"] == score(pair[0], [domain], protocol, progress=False)["fog"]["confusion"]


def test_each_network_answers_with_its_own_statistics():
    a, b = network(0), network(1)
    x = torch.rand(1, 3, 32, 64)
    b.statistics = 1.0                                                  # of the images at hand
    b_answer = b.predict(x)
    assert not torch.allclose(b_answer, b.predict(x, 0.0))
    torch.testing.assert_close(Ensemble([a, b], of="logits").predict(x), .7 * a.predict(x) + .3 * b_answer)
    torch.testing.assert_close(Ensemble([a, b], (0, 1)).predict(x, 0.0).softmax(1), b.predict(x, 0.0).softmax(1))


def test_published_gain_like_for_like():
    plain, flip, table = (published(name, "cityscapes") for name in ("fta-plain", "fta-flip", "fta"))
    gain = lambda rows, base: round(100 * (rows["CLAN + norm"]["miou"] - base["CLAN"]["miou"]), 2)
    assert gain(table, table) == 2.47 and gain(plain, plain) == 1.61
    assert flip["CLAN + norm"]["iou"]["car"] == .8373 and table["CLAN + norm"]["iou"]["car"] == .8473
    for name, rows in (("fta-flip", flip), ("fta", table)):
        means = {m: 100 * (np.mean(list(r["iou"].values())) - r["miou"]) for m, r in rows.items() if r["iou"]}
        off = {m for m, d in means.items() if abs(d) > .06}
        assert off == ({"CLAN + norm"} if name == "fta" else set()), means
    result = dict(name="cityscapes/val", miou=.5, iou={"car": .9})
    assert "+5.3" in beside_published([result], "fta", "CLAN + norm")   # 90 against 84.73

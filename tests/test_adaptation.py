"""Learning from images without labels: what the methods must do, and the traps of the released code."""
import io

import pytest
import torch

from helpers import complaint
from pinmem.adversary import RELEASED, AdaptSegNet, CLAN, CLANNorm, Discriminator, discrepancy_map
from pinmem.algorithms import PinTheMemory
from pinmem.feature_norm import (Adaptation, NormOnly, PinTheMemoryNorm, SourceOnly, damping, last_map, norm_ceiling,
                                 norm_step)
from pinmem.losses import seg_loss
from pinmem.model import build_model

HEADS = dict(encoder="test_resnet", weights=None, memory=False, head="twoheads")
SIDE = {**HEADS, "head": "onehead", "aux": True}
PINNED = dict(encoder="test_resnet", weights=None, channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)
METHODS = {"bn-only": (Adaptation, HEADS, {}), "source-only": (SourceOnly, HEADS, {}), "norm": (NormOnly, HEADS, {}),
           "snapshot": (NormOnly, HEADS, dict(norm_form="snapshot", snapshot_every=2)), "clan": (CLAN, HEADS, {}),
           "adaptsegnet": (AdaptSegNet, HEADS, {}), "adaptsegnet-side": (AdaptSegNet, SIDE, {}),
           "clan+norm": (CLANNorm, HEADS, {}), "pinmem+norm": (PinTheMemoryNorm, PINNED, dict(norm_form="snapshot")),
           "released": (CLANNorm, {**HEADS, "frozen_affine": True}, dict(RELEASED["clan+norm"], d_width=4))}


def data(seed, size=(32, 64)):
    "Two labelled domains, and photographs."
    g = torch.Generator().manual_seed(seed)
    pair = lambda: (torch.rand(1, 3, *size, generator=g), torch.randint(0, 19, (1, *size), generator=g))
    return [pair(), pair()], torch.rand(2, 3, *size, generator=g)


def make(cls, network=HEADS, done=0.3, **switches):
    torch.manual_seed(0)
    method = cls(build_model(**network), **switches)
    method.done = done
    return method


def train(method, steps=2, first=0):
    return [method.update(*data(first + s)) for s in range(steps)]


def same_bits(a, b, names=None):
    a, b = (m.model.state_dict() for m in (a, b))
    return all(torch.equal(a[name], b[name]) for name in names or a)


# ------------------------------------------------------------------------------------------- the norm loss

def test_value_is_a_constant_and_only_the_gradient_lives():
    f = torch.randn(2, 7, 3, 4, dtype=torch.float64, requires_grad=True)
    for scale in (0.1, 1, 50):
        g, = torch.autograd.grad(norm_step(scale * f, 0.12), f)
        assert norm_step(scale * f, 0.12).item() == pytest.approx(0.12 ** 2)
        torch.testing.assert_close(g, -2 * 0.12 * scale / (2 * 12) * (f / f.norm(dim=1, keepdim=True)).detach())
    assert torch.autograd.gradcheck(lambda f: norm_step(f, 0.12, torch.ones_like(f)), f)


def test_snapshot_pulls_back_beyond_the_step():
    f0 = torch.randn(1, 7, 3, 4, dtype=torch.float64)
    def along(growth):
        f = (f0 * (1 + growth / f0.norm(dim=1, keepdim=True))).requires_grad_()
        loss = norm_step(f, 0.12, f0)
        assert loss.item() == pytest.approx((0.12 - growth) ** 2, abs=1e-12)
        return (torch.autograd.grad(loss, f)[0] * f).sum().item()
    assert along(0.0) < along(0.05) < 0 < along(0.2) and abs(along(0.12)) < 1e-9


def test_a_zero_pixel_has_no_direction():
    f = torch.randn(2, 7, 3, 4)
    f[0, :, 0, 0] = 0
    f.requires_grad_()
    for before in (None, f.detach() + 1):
        g, = torch.autograd.grad(norm_step(f, 0.12, before), f)
        assert g.isfinite().all() and g[0, :, 0, 0].eq(0).all()


def test_half_precision_can_tell_the_step():
    f = torch.full((1, 64, 2, 2), 6.0, dtype=torch.bfloat16, requires_grad=True)   # of length 48
    assert norm_step(f, 0.12).item() == pytest.approx(0.0144, rel=1e-3)


def test_damping_is_never_below_zero():
    assert all(damping(t / 20, rate) >= 0 for t in range(21) for rate in (0, 1, 1.5, 9))
    late, control = make(NormOnly, done=0.8, kappa=1.0), make(Adaptation, done=0.8)
    assert train(late)[-1]["lam_norm"] == 0
    train(control)
    assert same_bits(late, control)


@pytest.mark.parametrize("affine", ["frozen", "trained"])
def test_frozen_affine_is_a_ceiling(affine):
    network = dict(encoder="tf_efficientnet_lite0", weights=None, memory=False, head="twoheads", output_stride=16)
    method = make(NormOnly, {**network, "frozen_affine": affine == "frozen"}, lam_norm=1e3, lr=0.1, fade_norm=0)
    images = data(0)[1]
    last = [m for m in method.model.encoder.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
    start = norm_ceiling(last)
    train(method, 3)
    with torch.no_grad(): rms = last_map(method.model.train(), images).square().sum(1).mean().sqrt()
    torch.testing.assert_close(rms, norm_ceiling(last), rtol=1e-2, atol=0)
    torch.testing.assert_close(start, torch.tensor(320.0).sqrt())
    assert (rms > 1.02 * start) == (affine == "trained")


@pytest.mark.parametrize("name", ["norm", "snapshot", "clan+norm", "bn-only", "clan"])
def test_statistics_move_once_for_each_kind_of_image(name):
    cls, network, how = METHODS[name]
    method = make(cls, network, **how)
    train(method, 3)
    counts = {int(t) for k, t in method.model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {6}


def test_sources_pass_before_photographs():
    method = make(Adaptation, lr=0.0)
    batches, photographs = data(0)
    seen = []
    method.model.encoder.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    method.update(batches, photographs)
    sources = torch.cat([x for x, _ in batches])
    assert len(seen) == 2 and torch.equal(seen[0], sources) and torch.equal(seen[1], photographs)


def test_kappa_is_the_share_of_the_gradient():
    pushes = {k: train(make(NormOnly, kappa=k, fade_norm=0), 1)[0]["lam_norm"] for k in (0.1, 0.2)}
    assert pushes[0.2] == pytest.approx(2 * pushes[0.1]) and pushes[0.1] > 0
    assert train(make(NormOnly, kappa=0.1, lam_norm=0.5, fade_norm=0), 1)[0]["lam_norm"] == 0.5


def test_norm_on_one_kind_of_images():
    both, source, target = (train(make(NormOnly, lam_norm=0.1, norm_on=on, norm_form="snapshot"), 3)[-1]["loss_norm"]
                            for on in ("both", "source", "target"))
    assert both != source != target and all(v > 0 for v in (both, source, target))


def test_the_printed_form_compares_with_weights_before_the_previous_update():
    method = make(NormOnly, lam_norm=0.1, norm_form="snapshot", fade_norm=0)
    assert train(method, 1)[0]["loss_norm"] == pytest.approx(2 * 0.12 ** 2, rel=1e-3)
    earlier = make(NormOnly).model.train()                                  # the weights that the run began with
    batches, photographs = data(1)
    sources, now = torch.cat([x for x, _ in batches]), method.model.train()
    with torch.no_grad():
        want = sum(norm_step(last_map(now, x), 0.12, last_map(earlier, x)) for x in (sources, photographs)).item()
    assert method.update(batches, photographs)["loss_norm"] == pytest.approx(want, rel=1e-3)


# ------------------------------------------------------------------------------------------- the adversaries

@pytest.mark.parametrize("cls, network", [(CLAN, HEADS), (CLANNorm, HEADS), (AdaptSegNet, SIDE)])
def test_neither_network_learns_from_the_other_s_loss(cls, network):
    kinds = dict(lam_adv=0), dict(lam_adv=9), dict(lam_adv=9, lr_d=0)
    quiet, loud, still = (make(cls, network, **how) for how in kinds)
    start = {k: t.clone() for k, t in loud.adversary.state_dict().items()}
    for method in (quiet, loud, still): train(method, 1)
    equal = lambda a, b: all(torch.equal(a[k], b[k]) for k in a)
    assert equal(quiet.adversary.state_dict(), loud.adversary.state_dict()), "D heard how much G cares"
    assert not equal(start, loud.adversary.state_dict()) and equal(start, still.adversary.state_dict())
    assert same_bits(loud, still), "G heard how fast D learns"
    assert not same_bits(quiet, loud), "G does not hear D"


def test_the_map_is_cut_off_for_d_and_may_be_for_g():
    for detach in (False, True):
        method = make(CLAN, detach_map=detach)
        target = dict(method.model(data(0)[1], full=True), size=(32, 64))
        m = discrepancy_map(*[torch.nn.functional.interpolate(z, (32, 64)).softmax(1) for z in target["heads"]])
        target, d = {**target, "map": m}, torch.zeros(2, 1, 32, 64)
        assert m.requires_grad and not method.caught(d, target).requires_grad
        assert method.fooled(d, target).requires_grad != detach


def test_weights_begin_when_they_are_told_to():
    "At first a pixel counts 1, then ε + λM: below a share of .5 of these two switches the losses are plain."
    early, late = (make(CLAN, done=done, weighted_g_from=0.5, weighted_d_from=0.6) for done in (0.5, 0.55))
    losses = [train(method, 1)[0] for method in (early, late)]
    assert losses[1]["loss_adv"] > 1.5 * losses[0]["loss_adv"]
    assert losses[1]["loss_d_target"] == losses[0]["loss_d_target"]


def test_focal_loss_of_two_images_is_the_mean_of_both():
    z, y = torch.randn(2, 19, 8, 8), torch.randint(0, 19, (2, 8, 8))
    one = [seg_loss(z[[k]], y[[k]], focal=2.0) for k in (0, 1)]
    torch.testing.assert_close(seg_loss(z, y, focal=2.0), sum(one) / 2)


@pytest.mark.parametrize("cls", [NormOnly, CLAN, CLANNorm, AdaptSegNet])
def test_weight_zero_is_bn_only(cls):
    off = {name: 0 for name in ("kappa", "lam_adv", "lam_weight") if name in cls.Switches.model_fields}
    method, control = make(cls, lr=1e-3, encoder_lr=1.0, **off), make(Adaptation, lr=1e-3, encoder_lr=1.0)
    for m in (method, control): train(m, 3)
    assert same_bits(method, control)


def test_bn_only_learns_what_source_only_learns():
    bn, source = make(Adaptation), make(SourceOnly)
    for m in (bn, source): train(m, 3)
    learning = [name for name, _ in bn.model.named_parameters()]
    assert same_bits(bn, source, learning) and not same_bits(bn, source)
    assert SourceOnly.settles and not Adaptation.settles


def test_pin_the_memory_without_the_norm():
    plain, off, on = make(PinTheMemory, PINNED), make(PinTheMemoryNorm, PINNED, kappa=0), make(PinTheMemoryNorm, PINNED)
    for s in range(2): plain.update(data(s)[0])
    rows = [train(method) for method in (off, on)]
    assert same_bits(plain, off) and not same_bits(plain, on)
    assert "loss_norm" not in rows[0][0] and rows[1][0]["loss_norm"] == pytest.approx(2 * 0.12 ** 2, rel=1e-3)
    counts = {int(t) for k, t in on.model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {2}, "the passes of the norm leave no trace"


@pytest.mark.parametrize("network", [PINNED, {**PINNED, "head": "deeplabv2", "memory": False, "aux": True},
                                     {**PINNED, "head": "fcn8s", "encoder": "tf_efficientnet_lite0"}])
@pytest.mark.parametrize("cls", [NormOnly, AdaptSegNet])
def test_other_networks(cls, network):
    "One discriminator on the answer and longer features need no special head; a memory is written as ever."
    method = make(cls, network)
    before = {k: t.clone() for k, t in method.model.state_dict().items()}
    row = train(method, 3)[-1]                                              # blocks begin with a scale of zero
    assert torch.tensor(list(row.values())).isfinite().all()
    assert ("loss_adv_aux" in row) == (cls is AdaptSegNet and "aux" in network)
    after = method.model.state_dict()
    assert all(not torch.equal(t, after[k]) for k, t in before.items() if not k.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", ["clan+norm", "adaptsegnet", "adaptsegnet-side"])
def test_computing_in_bfloat16(name):
    cls, network, how = METHODS[name]
    method = make(cls, network, **how)
    method.model.precision = method.model.encoder.precision = "bf16"
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in train(method))


def test_sizes_of_the_published_networks():
    with torch.device("meta"): model = build_model("resnet101", weights=None, memory=False, head="twoheads")
    assert sum(p.numel() for p in model.parameters()) == 45_301_976
    assert sum(p.numel() for p in model.decoder.parameters()) == 2_801_816
    assert sum(p.numel() for p in Discriminator().parameters()) == 2_781_121


# ------------------------------------------------------------------------------------------- states and complaints

@pytest.mark.parametrize("name", METHODS)
def test_a_state_goes_on_to_the_same_bytes(name):
    cls, network, how = METHODS[name]
    straight = make(cls, network, **how)
    train(straight, 3)
    state = io.BytesIO()
    torch.save(straight.state_dict(), state)
    rows = train(straight, 2, first=3)
    other = make(cls, network, **how)
    train(other, 1, first=7)                                                # it has been somewhere else
    state.seek(0)
    other.load_state_dict(torch.load(state, weights_only=True))
    assert train(other, 2, first=3) == rows and same_bits(straight, other)
    a, b = straight.state_dict(), other.state_dict()
    for part in ("adversary", "earlier"):
        assert a.get(part, {}).keys() == b.get(part, {}).keys()
        assert all(torch.equal(t, b[part][k]) for k, t in a.get(part, {}).items())


def test_wrong_networks_and_images_are_refused():
    complaint(ValueError, lambda: make(CLAN, SIDE), "CLAN", "twoheads", "onehead")
    complaint(ValueError, lambda: make(CLANNorm, {**PINNED, "memory": False}), "CLANNorm", "twoheads")
    complaint(ValueError, lambda: make(PinTheMemoryNorm, HEADS), "memory=True")
    complaint(ValueError, lambda: make(NormOnly).update(data(0)[0]), "NormOnly", "unlabelled")
    complaint(ValueError, lambda: make(CLAN).update(data(0)[0], data(0, (24, 48))[1]), "48x24", "32")
    complaint(ValueError, lambda: make(NormOnly, visits="released"), "visits", "sgd")
    lite = dict(encoder="tf_efficientnet_lite0", weights=None, memory=False, head="twoheads", output_stride=16)
    complaint(ValueError, lambda: make(NormOnly, lite, visits="released", optimiser="sgd"), "visits", "ResNet")
    complaint(ValueError, lambda: make(CLAN, norm_form="paper"), "norm_form", "snapshot")


def test_visits_are_as_many_as_released():
    method = make(NormOnly, {**HEADS, "frozen_affine": True}, visits="released", optimiser="sgd")
    group = method.optimisers["main"].param_groups[0]["params"]
    learning = {name: p for name, p in method.model.encoder.backbone.named_parameters() if p.requires_grad}
    counts = {name: sum(p is q for q in group) for name, p in learning.items()}
    kind = lambda name: "stem" if not name.startswith("layer") else "shortcut" if "downsample" in name else "block"
    assert {(kind(name), n) for name, n in counts.items()} == {("stem", 1), ("block", 3), ("shortcut", 4)}

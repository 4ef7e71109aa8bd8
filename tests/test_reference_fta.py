"""Every recorded number of Feature To Adapt, CLAN and AdaptSegNet in float64: losses, gradients, four whole iterations.

The numbers lie in tests/reference_fta (or in the directory that PINMEM_REFERENCE_FTA names); README.md there says what
they are. Maximum squares, entropy and ensembles have their own file of tests.
"""
import gc

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

import fta_recipe as recipe
from fta_recipe import LOSSES, STEPS, Numbers
from helpers import WORST, same, tensor
from pinmem.adversary import (RELEASED, AdaptSegNet, CLAN, CLANNorm, Discriminator, discrepancy_map, head_cosine,
                              weighted_bce)
from pinmem.decoders import DilatedHead, resize
from pinmem.feature_norm import NormOnly, damping, norm_step
from pinmem.losses import seg_loss
from pinmem.metrics import confusion, iou, miou
from pinmem.model import build_model
from pinmem.training import lr_factor

losses = pytest.mark.parametrize("file", LOSSES, ids=lambda p: p.stem)


def test_reference_is_there():
    assert LOSSES and STEPS, f"no fta_losses_*.npz or fta_steps_*.npz in {recipe.FOLDER}"


def leaf(array):
    return tensor(array).requires_grad_()


def compare(numbers, key, loss, at):
    "A loss and its gradients, `at`: name of a recorded gradient -> tensor."
    same(f"loss:{numbers.case} {key}", loss, numbers(key))
    found = torch.autograd.grad(loss, list(at.values()), retain_graph=True)
    for name, gradient in zip(at, found): same(f"gradient:{name}", gradient, numbers(name))


@losses
def test_weighted_bce(file):
    n = Numbers(file, "weighted_bce")
    d = leaf(1.5 * recipe.gauss("bce:d", (2, 1, 8, 12), n.seed))
    m = leaf(recipe.uniform("bce:w", (2, 1, 8, 12), n.seed) ** 3)
    for t in (0, 1):
        compare(n, f"loss_t{t}", weighted_bce(d, t, m, 0.4, 40), {f"grad_d_t{t}": d, f"grad_m_t{t}": m})
        compare(n, f"plain_t{t}", weighted_bce(d, t), {f"plain_grad_d_t{t}": d})
        same("loss:bce without weights", weighted_bce(d, t, None, 0.4, 40), n(f"noweight_t{t}"))


@losses
def test_discrepancy_map(file):
    n = Numbers(file, "weightmap")
    z = [leaf(recipe.logits(f"map:{name}", (1, 19, 8, 12), n.seed)) for name in ("z1", "z2")]
    m = discrepancy_map(*[t.softmax(1) for t in z])
    same("map:M", m, n("map"))
    grads = torch.autograd.grad((m * tensor(recipe.probe("map", m.shape, n.seed))).sum(), z)
    for name, g in zip(("z1", "z2"), grads): same("gradient:of M", g, n(f"grad_{name}"))


PUBLISHED_D = ["conv1", "conv2", "conv3", "conv4", "classifier"]


def discriminator(prefix, width, seed):
    "Our D with the recorded weights, and its tensors by their published names."
    d = Discriminator(19, width).double()
    names = {f"{theirs}.{kind}": getattr(layer, kind) for theirs, layer in zip(PUBLISHED_D, d.layers)
             for kind in ("weight", "bias")}
    with torch.no_grad():
        for name, p in names.items(): p.copy_(tensor(recipe.weights(prefix + name, p.shape, seed)))
    return d, names


@losses
def test_adversary(file):
    n, size = Numbers(file, "adv"), (64, 96)
    d, names = discriminator("D.", 4, n.seed)
    t1, t2, s1, s2 = (leaf(recipe.logits(f"adv:{name}", (1, 19, 9, 13), n.seed)) for name in ("t1", "t2", "s1", "s2"))
    u1, u2 = resize(t1, size), resize(t2, size)
    raw = d((u1 + u2).softmax(1))
    up = resize(raw, size)
    m = discrepancy_map(u1.softmax(1), u2.softmax(1))
    for name, t in (("d_raw", raw), ("d_up", up), ("map", m)): same(f"map:{name}", t, n(name))
    for name, given in (("g_weighted", m), ("g_weighted_detached_map", m.detach()), ("g_plain", None)):
        compare(n, name, weighted_bce(up, 0, given, 0.4, 40), {f"{name}_grad_t1": t1, f"{name}_grad_t2": t2})
    on = lambda z1, z2: resize(d((resize(z1, size) + resize(z2, size)).softmax(1).detach()), size)
    m, on_source, on_target = m.detach(), on(s1, s2), on(t1, t2)
    for name, loss in (("d_source", weighted_bce(on_source, 0)), ("d_target_plain", weighted_bce(on_target, 1)),
                       ("d_target_weighted", weighted_bce(on_target, 1, m, 0.4, 40))):
        compare(n, name, loss, {f"{name}_grad/{tensor}": p for tensor, p in names.items()})


@losses
def test_adaptsegnet(file):
    n, size = Numbers(file, "adaptsegnet"), (64, 96)
    d, names = discriminator("D1.", 4, n.seed)
    t1, s1 = (leaf(recipe.logits(f"adv:{name}", (1, 19, 9, 13), n.seed)) for name in ("t1", "s1"))
    p_t, p_s = (resize(z, size).softmax(1) for z in (t1, s1))
    same("map:of one head", d(p_t), n("d_map"))
    compare(n, "g_loss", weighted_bce(d(p_t), 0), {"g_grad": t1})
    compare(n, "ls_g_loss", d(p_t).square().mean(), {"ls_g_grad": t1})
    both = weighted_bce(d(p_s.detach()), 0) + weighted_bce(d(p_t.detach()), 1)
    compare(n, "d_loss", AdaptSegNet.share * both, {f"d_grad/{name}": p for name, p in names.items()})


def load_head(head, layer, channels, seed):
    "Weights of a published head; its parameters by their published names."
    names = {f"{layer}.conv2d_list.{i}.{kind}": getattr(branch, kind) for i, branch in enumerate(head.branches)
             for kind in ("weight", "bias")}
    with torch.no_grad():
        for name, p in names.items(): p.copy_(tensor(recipe.weights(name, p.shape, seed)))
    return names


@losses
def test_head(file):
    n = Numbers(file, "aspp")
    x = leaf(recipe.gauss("aspp:x", (2, 8, 9, 13), n.seed))
    for name, rates in (("four", (6, 12, 18, 24)), ("two", (6, 12))):
        head = DilatedHead(8, 19, rates).double()
        load_head(head, "layer5", 8, n.seed)
        y = head(x)
        same("map:head", y, n(name))
        g = torch.autograd.grad((y * tensor(recipe.probe("aspp", y.shape, n.seed))).sum(), x)[0]
        same("gradient:head", g, n(f"{name}_grad_x"))


@losses
def test_cosine_of_heads(file):
    n = Numbers(file, "discrepancy")
    heads = [DilatedHead(8, 19).double() for _ in range(2)]
    names = load_head(heads[0], "layer5", 8, n.seed) | load_head(heads[1], "layer6", 8, n.seed)
    same("loss:cosine", head_cosine(*heads), n("cosine"))
    compare(n, "loss_plus_one", head_cosine(*heads) + 1, {f"grad/{name}": p for name, p in names.items()})


@losses
def test_norms(file):
    n = Numbers(file, "norm")
    f = leaf(recipe.features("norm:f", (2, 32, 7, 9), n.seed))
    f0 = f.detach() + 0.1 * tensor(recipe.gauss("norm:move", f.shape, n.seed))
    same("map:norms", f.norm(dim=1), n("norms"))
    same("map:norms", f0.norm(dim=1), n("norms0"))
    compare(n, "released", norm_step(f, 0.12), {"released_grad": f})
    compare(n, "snapshot", norm_step(f, 0.12, f0), {"snapshot_grad": f})
    v = leaf(recipe.features("norm:v", (6, 32, 1, 1), n.seed)[..., 0, 0] + 0.01)
    compare(n, "safn", 0.05 * norm_step(v[..., None, None], 1.0), {"safn_grad": v})
    compare(n, "hafn", 0.05 * (v.norm(dim=1).mean() - 25).square(), {"hafn_grad": v})


@losses
def test_segmentation(file):
    n = Numbers(file, "seg")
    z = leaf(recipe.logits("seg:z", (1, 19, 16, 24), n.seed))
    y = tensor(recipe.labels("seg:y", (1, 16, 24), n.seed, cell=8))
    compare(n, "focal", seg_loss(z, y, focal=2.0), {"focal_grad": z})
    compare(n, "ce", seg_loss(z, y), {"ce_grad": z})


@losses
def test_schedule(file):
    n, total = Numbers(file, "schedule"), 150_000
    done = [t / total for t in n("iteration").tolist()]
    same("schedule:rate", [2.5e-4 * lr_factor(t, "warmpoly") for t in done], n("lr_g"))
    same("schedule:damping", [damping(t) for t in done], n("damping"))
    same("schedule:damping of the norm", [damping(t, 1.5, floor=-1) for t in done], n("damping_norm"))
    same("schedule:never below 0", [damping(t, 1.5) for t in done], n("damping_norm").clip(0))


@losses
def test_iou(file):
    n = Numbers(file, "iou")
    y, answer = (recipe.labels(f"iou:{name}", (3, 40, 56), n.seed) for name in ("gt", "pr"))
    answer[answer == 255] = 0
    answer[y == 5] = 5
    counts = confusion(tensor(answer), tensor(y))
    same("iou:counts", counts, n("hist"))
    assert (iou(counts).isnan().numpy() == np.isnan(n("iou"))).all()
    same("iou:classes", iou(counts).nan_to_num(), np.nan_to_num(n("iou")))
    same("iou:mean", miou(counts), n("miou"))


# ------------------------------------------------------------------------------------------- whole iterations

METHODS = {"fta_adv": (CLANNorm, "clan+norm"), "fta_norm_only": (NormOnly, "norm-only"), "clan": (CLAN, "clan"),
           "adaptsegnet": (AdaptSegNet, "adaptsegnet")}
T, WARM = 8, 2
HEADS = {"twoheads": {"layer5": "decoder.heads.0", "layer6": "decoder.heads.1"},
         "onehead": {"layer5": "aux", "layer6": "decoder.heads.0"}}


def one_block_network(head):
    "The published ResNet with one block a stage: a ResNet-50 whose further blocks are cut off."
    aux = dict(aux=True, rates=(6, 12)) if head == "onehead" else {}
    model = build_model("resnet50", weights=None, memory=False, head=head, early_stride=True, ceil_pool=True,
                        frozen_affine=True, mean=(0, 0, 0), std=(1, 1, 1), **aux)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        setattr(model.encoder.backbone, stage, getattr(model.encoder.backbone, stage)[:1])
    return model.double()


def name_here(name, head):
    "Where a published tensor is in our network."
    layer, _, rest = name.partition(".")
    if layer in HEADS[head]: return HEADS[head][layer] + rest.replace("conv2d_list", ".branches")
    return f"encoder.backbone.{name}"


def fill(model, head, data):
    "Every weight and statistic from its published name."
    state, seed = model.state_dict(), int(data["seed"])
    for name, shape in zip(data["params/names"].tolist(), data["params/shapes"].tolist()):
        here, shape = name_here(name, head), [int(n) for n in shape.split()]
        if head == "onehead" and name.startswith("layer5") and len(shape) == 4: shape[1] = 1024
        if here not in state: assert head == "onehead" and name.split(".")[2] in "23", name  # branches it never runs
        else: state[here] = tensor(recipe.weights(name, shape, seed)).reshape(state[here].shape)
    model.load_state_dict(state)


class Iterations:
    "Four steps of `update`, and everything that is recorded about them."
    def __init__(self, file, case):
        self.numbers, self.case = Numbers(file, case), case
        cls, key = METHODS[case]
        self.head = "onehead" if case == "adaptsegnet" else "twoheads"
        model = one_block_network(self.head)
        fill(model, self.head, self.numbers.data)
        width, height = recipe.TARGET_ANSWER[::-1]
        how = dict(RELEASED[key], **({"target_size": (width, height)} if "target_size" in cls.Switches.model_fields else {}))
        if "weighted_d_from" in cls.Switches.model_fields:
            how = {**{"weighted_g_from": WARM / T, "weighted_d_from": WARM / T}, **how}
        self.algorithm = cls(model, **how)
        self.discriminators()
        self.record()
        for t in range(4): self.step(t)

    def discriminators(self):
        "Recorded weights of D by name: 'answer', 'aux'."
        self.d = {}
        if not hasattr(self.algorithm, "adversary"): return
        kinds = {"aux": "D1.", "answer": "D2."} if self.case == "adaptsegnet" else {"answer": "D."}
        for k, (kind, prefix) in enumerate(kinds.items()):
            published, _ = discriminator(prefix, 64, self.numbers.seed)
            self.algorithm.adversary[kind].load_state_dict(published.state_dict())
            self.d[k] = kind

    def record(self):
        "Keep what passes by: gradients before the step, what the network said of both kinds of images."
        step_on, target_loss = self.algorithm.step_on, self.algorithm.target_loss
        def keep_grads(grads):
            self.now["grads"] = {name: g.clone() for name, g in grads.items()}
            step_on(grads)
        def keep_outs(source, target):
            self.now["outs"] = tree_map(lambda t: t.detach() if torch.is_tensor(t) else t, (source, target))  # not their graphs
            return target_loss(source, target)
        self.algorithm.step_on, self.algorithm.target_loss = keep_grads, keep_outs
        self.rows = []

    def step(self, t):
        self.now = {}
        algorithm, poly = self.algorithm, self.algorithm.schedule == "poly"
        algorithm.done = t / T
        algorithm.set_rate(t / WARM if t < WARM and not poly else lr_factor(t / T, algorithm.schedule))
        x, y = map(tensor, recipe.source_batch(self.numbers.seed, t))
        self.now["y"] = y.long()
        self.now["losses"] = algorithm.update([(x, y.long())], tensor(recipe.target_batch(self.numbers.seed, t)))
        self.now["state"] = {name: v.clone() for name, v in algorithm.model.state_dict().items()}
        self.now["lr"] = {name: [g["lr"] for g in o.param_groups] for name, o in algorithm.optimisers.items()}
        if self.d: self.now["rivals"] = {name: v.clone() for name, v in algorithm.adversary.state_dict().items()}
        self.rows.append(self.now)

    def published(self, name):
        "A tensor's name here; None: a branch that the released AdaptSegNet has and never runs."
        here = name_here(name, self.head)
        return here if here in self.rows[0]["state"] else None


@pytest.fixture(params=[(file, case) for file in STEPS for case in METHODS], ids=lambda p: f"{p[0].stem}-{p[1]}",
                scope="module")
def run(request):
    yield Iterations(*request.param)
    gc.collect()  # what was recorded refers to itself


def check(kind, run, label, names, key, tensors, mark=""):
    "Norms and probes of tensors, in each of the four rows, against `label`_norm and `label`_dot."
    for t, row in enumerate(tensors):
        for i, name in enumerate(names):
            want, want_dot = run.numbers(f"{label}_norm")[t, i], run.numbers(f"{label}_dot")[t, i]
            if key(name) is None:
                if kind == "gradient": assert want == 0 == want_dot, name
                continue
            got = row[key(name)].numpy()
            dot = (got * recipe.probe(mark + name, got.shape, run.numbers.seed)).sum()
            for error in (abs(np.linalg.norm(got) - want), abs(dot - want_dot)):
                assert error <= 1e-8 * want + 1e-14, f"{kind} {name}, iteration {t}: error {error:.1e} of {want:.3g}"
                WORST[f"steps {kind}"] = max(WORST.get(f"steps {kind}", 0), error / max(want, 1e-12))


def test_rates(run):
    same("steps:lr", [row["lr"]["main"] for row in run.rows], run.numbers("lr"))
    if run.d: same("steps:lr of D", [row["lr"]["adversary"][0] for row in run.rows for _ in run.d], run.numbers("lr_d"))


def test_visits(run):
    group = run.algorithm.optimisers["main"].param_groups[0]["params"]
    names = {id(p): name for name, p in run.algorithm.model.named_parameters()}
    counts = {}
    for p in group: counts[names[id(p)]] = counts.get(names[id(p)], 0) + 1
    assert list(counts.values()) == run.numbers("visits").tolist()


def test_losses_of_iterations(run):
    n, how = run.numbers, run.algorithm.switches
    heads, seen = [], {"mean_norm": [], "loss_norm": [], "norm_shape": []}
    for row in run.rows:
        source, target = row["outs"]
        scores = [source["aux"], *source["heads"]] if run.head == "onehead" else source["heads"]
        each = [seg_loss(resize(z, row["y"].shape[-2:]), row["y"], focal=how.focal) for z in scores]
        heads += [loss.item() for loss in each]
        own = row["losses"]["loss_seg"] + how.lam_aux * row["losses"].get("loss_aux", 0.0)
        same("steps:L_seg", own, (each[1] + how.lam_aux * each[0] if run.head == "onehead" else sum(each)).item())
        for out in (source, target):
            f = out["maps"][-1]
            seen["mean_norm"].append(f.norm(dim=1).mean().item())
            seen["loss_norm"].append(norm_step(f, how.delta_r).item())
            seen["norm_shape"].append(list(f.shape))
        if "loss_norm" in n: same("steps:L_norm", row["losses"]["loss_norm"], sum(seen["loss_norm"][-2:]))
    same("steps:L_seg", heads, n("loss_seg"))
    for name, values in seen.items():
        if name in n: same(f"steps:{name}", values, n(name))


def test_adversarial_losses_of_iterations(run):
    "In the order of the released code; weighted ones apart from plain ones."
    if not run.d: return
    plain, weighted, how = [], [], run.algorithm.switches
    for t, row in enumerate(run.rows):
        for term in ("loss_adv", "loss_d_source", "loss_d_target"):
            since = {"loss_adv": "weighted_g_from", "loss_d_target": "weighted_d_from"}.get(term)
            is_weighted = t / T > getattr(how, since, 1.0) if since else False
            for kind in run.d.values():
                value = row["losses"][term if kind == "answer" else f"{term}_{kind}"]
                (weighted if is_weighted else plain).append(value)
    same("steps:BCE", plain, run.numbers("loss_plain"))
    if weighted: same("steps:weighted BCE", weighted, run.numbers("loss_weighted"))


def test_gradients_of_iterations(run):
    names = run.numbers("g_names").tolist()
    grads = [row["grads"] for row in run.rows]
    check("gradient", run, "g", names, run.published, grads)
    learning = {name for name in grads[0] if not name.startswith("adversary")}
    assert {run.published(name) for name in names} - {None} == learning
    for field in run.numbers.fields("g_full/"):
        here = run.published(field.split("/")[1])
        for t, row in enumerate(grads):
            if here: same("steps:full gradient", row[here], run.numbers(field)[t])
            else: assert not run.numbers(field)[t].any(), f"{field}: a branch that never runs has a gradient"


def test_gradients_of_discriminators(run):
    published = [f"{name}.{kind}" for name in PUBLISHED_D for kind in ("weight", "bias")]
    def here(kind, name):
        layer, part = name.split(".")
        return f"{kind}.layers.{PUBLISHED_D.index(layer)}.{part}"
    for k, kind in run.d.items():
        assert run.numbers(f"d{k}_names").tolist() == published == run.numbers(f"dw{k}_names").tolist()
        check("gradient of D", run, f"d{k}", published, lambda name: "adversary." + here(kind, name),
              [row["grads"] for row in run.rows], "D:")
        check("weight of D", run, f"dw{k}", published, lambda name: here(kind, name),
              [row["rivals"] for row in run.rows], "D:")
        for field in run.numbers.fields(f"d{k}_full/"):
            name = "adversary." + here(kind, field.split("/")[1])
            for t, row in enumerate(run.rows): same("steps:full gradient", row["grads"][name], run.numbers(field)[t])


def test_weights_after_iterations(run):
    states = [row["state"] for row in run.rows]
    check("weight", run, "w", run.numbers("w_names").tolist(), run.published, states)


def test_statistics_after_iterations(run):
    states = [row["state"] for row in run.rows]
    check("statistics", run, "b", run.numbers("b_names").tolist(), run.published, states)
    for field in run.numbers.fields("b_full/"):
        here = run.published(field.split("/")[1])
        for t, row in enumerate(states): same("steps:full statistics", row[here], run.numbers(field)[t])


@pytest.mark.parametrize("file", STEPS, ids=lambda p: p.stem)
def test_answer_in_evaluation_mode(file):
    n, model = Numbers(file, "eval"), one_block_network("twoheads")
    fill(model, "twoheads", n.data)
    out = model.predict(tensor(recipe.target_batch(n.seed, 0)), full=True)
    for name, z in zip(("p1", "p2"), out["heads"]): same("eval:scores", z, n(name))
    f = out["maps"][-1]
    same("eval:norms", f.norm(dim=1), n("f_norms"))
    same("eval:features", f.mean((0, 2, 3))[:256], n("f_mean"))
    assert list(f.shape) == n("f_shape").tolist()
    answer = resize(sum(out["heads"]), (128, 192)).argmax(1)
    assert (answer.numpy() == n("argmax")).all()


def test_summary(capsys):
    "Shows the largest error of each kind of number."
    with capsys.disabled():
        for kind, error in sorted(WORST.items()): print(f"\n  {kind:24} {error:.1e}", end="")

"""Every number of one training step of the published code, in float64: modules, losses, gradients, weights, memory.

The numbers lie in tests/reference (or in the directory that PINMEM_REFERENCE names); README.md there says what they are.
"""
import json
import os
from pathlib import Path
import numpy as np
import pytest
import torch
from torch import nn
from helpers import WORST, load_recipe, same, tensor
from pinmem.losses import Objective, cohesion_loss, divergence_terms
from pinmem.memory_init import one_hot
from pinmem.memory_read import Fusion, read
from pinmem.memory_update import Updater, class_means, update
from pinmem.meta_step import meta_gradients, write_memory
from pinmem.model import build_model, official_names

HERE = Path(__file__).resolve().parent / "reference"
FOLDER = Path(os.environ.get("PINMEM_REFERENCE", HERE))
STEPS = sorted(FOLDER.glob("official_step_*.npz"))
MODULES = sorted(FOLDER.glob("official_modules_*.npz"))
CASES = ["train", "odd", "eval", "temp05_mom099", "gumbel"]


recipe = load_recipe()


# ---------------------------------------------------------------------------------------------- modules

class Case:
    "One case of the modules file: inputs, and U, G and the fusion with their recorded weights."
    def __init__(self, file, name):
        data = np.load(file)
        self.data = {k[len(name) + 1:]: data[k] for k in data.files if k.startswith(name + "/")}
        self.f = tensor(self.data["query"]).requires_grad_()
        self.mem = tensor(self.data["memory"]).requires_grad_()
        self.y = tensor(self.data["label"]).long()
        n, c = self.mem.shape
        self.fusion, self.updater, self.classifier = Fusion(c).double(), Updater(c).double(), nn.Linear(c, n).double()
        state = lambda prefix: {k[len("state." + prefix):]: tensor(v).reshape(()) if "num_batches" in k else tensor(v)
                                for k, v in self.data.items() if k.startswith("state." + prefix)}
        for module, names in ((self.fusion, "output"), (self.updater, "writenet.writefeat")):
            module.conv.load_state_dict(state(names + ".0."))
            module.bn.load_state_dict(state(names + ".1."))
        self.classifier.load_state_dict(state("clsfier."))
        for module in (self.fusion, self.updater): module.train(bool(self.data["train"]))
        self.temperature, self.momentum = float(self.data["temperature"]), float(self.data["momentum"])

    def weights(self, module):
        return {"conv": module.conv.weight, "bn_w": module.bn.weight, "bn_b": module.bn.bias}

    def compare(self, kind, loss, tensors):
        "The gradients of `loss` against `kind`_grad_*."
        found = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
        for name, gradient in zip(tensors, found):
            same(f"gradient:{kind} {name}", gradient, self.data[f"{kind}_grad_{name}"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("file", MODULES, ids=lambda p: p.stem)
def test_read(file, name):
    case = Case(file, name)
    d = case.data
    noise = tensor(d["gumbel_noise"]).permute(0, 3, 1, 2) if d["gumbel"] else None
    qm, s, w = read(case.f, case.mem, tau=1.0, noise=noise)
    r = case.fusion(qm)
    loss = cohesion_loss(s, case.y, case.temperature, at="labels")
    same("read:cosines", s, d["score_cos"])
    same("read:weights", w.permute(0, 2, 3, 1), d["read_w"])
    same("read:readout", r, d["read_out"])
    same("read:loss", loss, d["read_loss"])
    total = (tensor(d["read_cotangent"]) * r).sum() + 3 * loss
    case.compare("read", total, {"query": case.f, "memory": case.mem, **case.weights(case.fusion)})
    case.compare("read_loss", loss, {"query": case.f})
    for part in ("running_mean", "running_var"):
        same("read:statistics", getattr(case.fusion.bn, part), d[f"after_read.output.1.{part}"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("file", MODULES, ids=lambda p: p.stem)
def test_write(file, name):
    case = Case(file, name)
    d, mem = case.data, case.mem.detach()
    y1h = one_hot(case.y, len(mem), case.f.shape[-2:], "bilinear", torch.float64)
    same("write:labels", y1h, d["soft_label"][:, :19])
    z = case.updater(case.f)
    z_cls, k = class_means(z, y1h)
    mem_hat = update(mem, z_cls, k, case.momentum)
    cls, div = divergence_terms(mem_hat, case.classifier)
    same("write:counts", k, d["K"][:19])
    assert ((k > 0).numpy() == d["present"]).all()
    for label, got, want in (("z", z, "write_z"), ("means", z_cls, "write_class_mean"), ("memory", mem_hat, "write_memory")):
        same("write:" + label, got, d[want])
    same("write:divergence", div / 2, d["div_loss"])
    same("write:classification", cls, d["cls_loss"])
    own = divergence_terms(mem, case.classifier)
    same("write:loss of the old memory", own[0], d["cls_of_memory"])
    same("write:loss of the old memory", own[1] / 2, d["div_of_memory"])
    for part in ("running_mean", "running_var"):
        same("write:statistics", getattr(case.updater.bn, part), d[f"after_write.writenet.writefeat.1.{part}"])
    if d["writing_detach"]: return
    leaves = {"query": case.f, **case.weights(case.updater)}
    case.compare("write", (tensor(d["write_cotangent"]) * mem_hat).sum(), leaves)
    case.compare("div", div / 2, leaves)
    case.compare("cls", cls, {**leaves, "w": case.classifier.weight, "b": case.classifier.bias})


@pytest.mark.parametrize("file", MODULES, ids=lambda p: p.stem)
def test_divergence_of_opposite_rows(file):
    data = np.load(file)
    mem = tensor(data["div_signed/memory"]).requires_grad_()
    _, div = divergence_terms(mem, nn.Linear(mem.shape[1], len(mem)).double())
    same("write:divergence", div / 2, data["div_signed/div"])
    same("gradient:div signed", torch.autograd.grad(div / 2, mem)[0], data["div_signed/grad"])


# ------------------------------------------------------------------------------------------- a whole step

def official_network(seed):
    "DeepLabV3+ on ResNet-18 at stride 32, every weight made from its official name."
    model = build_model("resnet18", weights=None, output_stride=32, rates=(3, 6, 9), label_mode="bilinear",
                        coh_at="labels", aux_dropout=0.0, mean=(0, 0, 0), std=(1, 1, 1)).double().train()
    shapes = json.loads((HERE / "official_params.json").read_text())["DeepR18V3PlusD"]
    names = official_names(model)
    assert set(names) == {name for name, _ in shapes}
    state = {names[name]: tensor(recipe.weights(name, shape, seed)) for name, shape in shapes}
    state["mem"] = tensor(recipe.memory(seed))
    model.load_state_dict(state)
    return model, names


class Step:
    "One meta-iteration here, beside the recorded one. Runs once a file and order."
    made = {}

    @classmethod
    def of(cls, file):
        if file not in cls.made: cls.made[file] = cls(file)
        return cls.made[file]

    def __init__(self, file):
        self.d = d = np.load(file)
        self.seed = seed = int(d["cfg_seed"])
        self.model, self.names = official_network(seed)
        x, y = recipe.batch(seed, int(d["cfg_B"]), int(d["cfg_D"]), int(d["cfg_H"]), int(d["cfg_W"]))
        self.mtr, self.mte = [(tensor(x[:, i]), tensor(y[:, i]).long())
                              for i in (int(d["cfg_train_domain"]), int(d["cfg_test_domain"]))]
        self.aim = Objective(momentum=float(d["cfg_memory_momentum"]), lam1=float(d["cfg_w_read"]),
                             lam2=float(d["cfg_w_cls"]), lam_aux=float(d["cfg_w_aux"]))
        assert float(d["cfg_w_div"]) == 2 * self.aim.lam2
        self.start = {k: v.clone() for k, v in self.model.state_dict().items()}
        with torch.no_grad(): self.eval_start = self.model.eval()(self.mte[0], full=True)
        self.first, self.second = self.take(1), self.take(2)
        self.passes = self.record()
        self.finish()

    def tensors(self):
        return dict(self.model.named_parameters()), dict(self.model.named_buffers())

    def take(self, order):
        d, (params, buffers) = self.d, self.tensors()
        return meta_gradients(self.model.train(), params, buffers, self.model.mem, self.mtr, self.mte, order=order,
                              alpha=float(d["cfg_inner_lr"]), objective="sum", aim=self.aim)

    def record(self):
        "Features, readouts, weights and logits of the inner and the outer pass."
        state = dict(self.start)
        with torch.no_grad():
            inner = self.model.train()(self.mtr[0], full=True)
            prime = {n: p - float(self.d["cfg_inner_lr"]) * self.first.inner[n]
                     for n, p in self.model.named_parameters()}
            outer = torch.func.functional_call(self.model, prime, (self.mte[0],),
                                               dict(mem=self.first.mem_prime, full=True))
        self.model.load_state_dict(state)
        return {"inner": inner, "outer": outer, "eval_start": self.eval_start}

    def finish(self):
        "The optimiser's step as in the published code (first order, inner + outer), then Eq 12."
        d, model = self.d, self.model
        optimiser = torch.optim.SGD(model.parameters(), lr=float(d["cfg_lr"]), momentum=float(d["cfg_sgd_momentum"]),
                                    weight_decay=float(d["cfg_weight_decay"]))
        for name, p in model.named_parameters(): p.grad = self.first.grads[name]
        optimiser.step()
        model.load_state_dict(self.first.buffers, strict=False)
        self.mem_star = write_memory(model, model.mem, *self.mtr, aim=self.aim)
        with torch.no_grad(): self.passes["star"] = model.eval()(self.mtr[0], full=True)
        self.after = {k: v.clone() for k, v in model.state_dict().items()}


@pytest.fixture(params=STEPS, ids=lambda p: p.stem, scope="module")
def step(request):
    return Step.of(request.param)


def test_reference_is_there():
    assert STEPS and MODULES, f"no official_step_*.npz or official_modules_*.npz in {FOLDER}"


def test_losses(step):
    for run in (step.first, step.second):
        for ours, theirs, factor in (("loss_seg", "inner_seg", 1), ("loss_aux", "inner_aux", 1), ("loss_coh", "inner_read", 1),
                                     ("loss_div_names", "inner_cls", 1), ("loss_div_pairs", "inner_div", 2), ("test_seg", "outer_seg", 1),
                                     ("test_aux", "outer_aux", 1), ("test_coh", "outer_read", 1)):
            same("loss:" + ours, run.losses[ours], factor * step.d["loss_" + theirs])
        for k in ("inner", "outer"): same("loss:total", run.losses["loss_" + k], step.d[f"loss_{k}_total"])
    cls, div = divergence_terms(step.first.mem_prime, lambda rows: rows @ theta_prime(step, "classifier.weight").T
                                + theta_prime(step, "classifier.bias"))
    same("loss:of M'", div / 2, step.d["loss_prime_div"])
    same("loss:of M'", cls, step.d["loss_prime_cls"])


def theta_prime(step, name):
    return step.start[name] - float(step.d["cfg_inner_lr"]) * step.first.inner[name]


def test_memories(step):
    same("memory:start", step.start["mem"], step.d["memory_start"])
    for run in (step.first, step.second):
        same("memory:hat", run.mem_hat, step.d["memory_hat"])
        same("memory:prime", run.mem_prime, step.d["memory_prime"])
    same("memory:star", step.mem_star, step.d["memory_star"])
    for mem in (step.first.mem_hat, step.first.mem_prime, step.mem_star):
        same("memory:unit rows", mem.norm(dim=1), np.ones(19))


@pytest.mark.parametrize("which", ["inner", "outer", "eval_start", "star"])
def test_passes(step, which):
    out, d, seed = step.passes[which], step.d, step.seed
    same(f"pass:{which} weights", out["w"].permute(0, 2, 3, 1), d[f"read_w_{which}"])
    b, i, j = d[f"pos_{which}"].T
    same(f"pass:{which} logits", out["logits"][b, :, i, j], d[f"logits_{which}"])
    if which == "eval_start": return
    for label, t in (("feat", out["f"]), ("readout", out["r"])):
        t, key = t.numpy(), f"{label}_{which}"
        assert t.shape == tuple(d[key + "_shape"])
        same(f"pass:{key} mean", t.mean((0, 2, 3)), d[key + "_mean"])
        same(f"pass:{key} std", t.std((0, 2, 3)), d[key + "_std"])
        same(f"pass:{key} norm", np.linalg.norm(t), d[key + "_norm"])
        scale = np.linalg.norm(t)
        same(f"pass:{key} probe", (t * recipe.probe(label, t.shape, seed)).sum() / scale + 1, d[key + "_dot"] / scale + 1)


def gradients_of(step, which):
    run = step.second if which == "outer2" else step.first
    return {"inner": run.inner, "outer1": run.outer, "outer2": run.outer, "total1": run.grads}[which]


@pytest.mark.parametrize("which", ["inner", "outer1", "outer2", "total1"])
def test_gradients(step, which):
    d, grads = step.d, gradients_of(step, which)
    names = [str(n) for n in d["param_names"]]
    ours = [step.names[n] for n in names]
    assert set(ours) == set(grads)
    norms = np.array([grads[o].norm().item() for o in ours])
    probes = np.array([(grads[o].numpy() * recipe.probe(n, tuple(grads[o].shape), step.seed)).sum()
                       for n, o in zip(names, ours)])
    for n, norm, probe, want, want_probe in zip(names, norms, probes, d[f"grad_{which}_norm"], d[f"grad_{which}_dot"]):
        floor = 1e-12  # dsn.0.bias stands before a BatchNorm: its true gradient is zero
        assert abs(norm - want) <= 1e-8 * want + floor, f"{which} {n}: norm {norm}, expected {want}"
        assert abs(probe - want_probe) <= 1e-8 * want + floor, f"{which} {n}: probe {probe}, expected {want_probe}"
        if want > 1e-9: WORST[f"grad {which}"] = max(WORST.get(f"grad {which}", 0), abs(norm - want) / want,
                                                     abs(probe - want_probe) / want)
    for key in d.files:
        if key.startswith(f"full_{which}/"): same(f"full {which}:{key}", grads[step.names[key.split('/')[1]]], d[key])


def test_orders_differ(step):
    "The two orders are two sets of numbers; G hears of the meta-test only through the second."
    g1, g2 = step.first.outer["classifier.weight"], step.second.outer["classifier.weight"]
    assert g1.abs().max() == 0 and g2.norm() > 0
    flat = [torch.cat([g.flatten() for g in run.outer.values()]) for run in (step.first, step.second)]
    assert (flat[0] - flat[1]).norm() > 1e-3 * flat[0].norm()


def test_weights_after(step):
    d, seed = step.d, step.seed
    for i, n in enumerate(map(str, d["param_names"])):
        before, after = step.start[step.names[n]].numpy(), step.after[step.names[n]].numpy()
        probe = recipe.probe(n, before.shape, seed)
        for label, t in (("before", before), ("after", after), ("step", after - before)):
            scale = d[f"w_{label}_norm"][i]
            assert abs(np.linalg.norm(t) - scale) <= 1e-8 * scale, f"{n}: norm of w_{label}"
            assert abs((t * probe).sum() - d[f"w_{label}_dot"][i]) <= 1e-8 * scale, f"{n}: probe of w_{label}"


def test_statistics_after(step):
    d = step.d
    for i, n in enumerate(map(str, d["buffer_names"])):
        for label, state in (("before", step.start), ("after", step.after)):
            t, scale = state[step.names[n]].numpy(), d[f"buf_{label}_norm"][i]
            assert abs(np.linalg.norm(t) - scale) <= 1e-8 * scale, f"{n}: norm {label}"
            probe = (t * recipe.probe(n, t.shape, step.seed)).sum()
            assert abs(probe - d[f"buf_{label}_dot"][i]) <= 1e-8 * scale, f"{n}: probe {label}"
    counts = [t for n, t in step.after.items() if n.endswith("num_batches_tracked")]
    assert {int(t) for t in counts} == {int(d["num_batches_tracked_after"])}


def test_parameter_count():
    "Table 8 counts DeepLabV3+ on ResNet-50; names and shapes are the published ones."
    with torch.device("meta"): model = build_model("resnet50", weights=None)
    shapes = {n: tuple(s) for n, s in json.loads((HERE / "official_params.json").read_text())["DeepR50V3PlusD"]}
    state = model.state_dict()
    assert {n: tuple(state[o].shape) for n, o in official_names(model).items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == 45_284_057
    with torch.device("meta"): plain = build_model("resnet50", weights=None, memory=False)
    assert sum(p.numel() for p in plain.parameters()) == 45_081_542


def test_summary(capsys):
    "Shows the largest error of each kind of number."
    with capsys.disabled():
        for kind, error in sorted(WORST.items()): print(f"\n  {kind:14} {error:.1e}", end="")

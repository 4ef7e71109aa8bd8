"""The authors' checkpoints: converted exactly, or refused in one line; never run."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from helpers import load_recipe
from pinmem.checkpoints import convert, expected, read_checkpoint
from pinmem.cli import main
from pinmem.training import load_run, load_weights

HERE = Path(__file__).resolve().parent / "reference"
FOLDER = Path(os.environ.get("PINMEM_REFERENCE", HERE))
STEPS = sorted(FOLDER.glob("official_step_*.npz"))
SHAPES = json.loads((HERE / "official_params.json").read_text())
V3_18, V3_50, V2_101 = "DeepLabV3+ on ResNet-18", "DeepLabV3+ on ResNet-50", "DeepLabV2 on ResNet-101"

recipe = load_recipe()


def released(state, memory, dtype=None):
    "The dictionary that the released code saves."
    state = {"module." + k: t if dtype is None or not t.is_floating_point() else t.to(dtype) for k, t in state.items()}
    slots = [i for i, name in enumerate(state) if "running" not in name and "num_batches" not in name]
    group = dict(lr=0.001, momentum=0.9, dampening=0, weight_decay=5e-4, nesterov=False, initial_lr=0.01, params=slots)
    return {"state_dict": state, "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [group]},
            "scheduler": {"base_lrs": [0.01], "last_epoch": 7, "_step_count": 8, "_last_lr": [0.001], "lr_lambdas": [None]},
            "epoch": 3, "mean_iu": 0.0, "memory": memory}


def from_recipe(seed):
    state = {name: torch.from_numpy(np.array(recipe.weights(name, shape, seed))) for name, shape in SHAPES["DeepR18V3PlusD"]}
    return released(state, torch.from_numpy(recipe.memory(seed)))


def random_state(network, memory=True):
    "Random weights under the authors' names, small enough that 100 layers do not explode."
    g = torch.Generator().manual_seed(0)
    def value(name, shape):
        if name.endswith("num_batches_tracked"): return torch.zeros((), dtype=torch.int64)
        if name.endswith("running_var"): return 0.5 + torch.rand(shape, generator=g)
        if len(shape) == 4: return torch.randn(shape, generator=g) * (2 / shape[1:].numel()) ** 0.5
        if len(shape) == 1 and name.endswith("weight"): return 0.5 + 0.2 * torch.rand(shape, generator=g)
        return 0.05 * torch.randn(shape, generator=g)
    return {name: value(name, shape) for name, (_, shape) in expected(network, memory).items()}


@pytest.fixture(scope="module")
def whole():
    "A file in the released format with the recipe's weights."
    return from_recipe(20220301)


@pytest.fixture
def save(tmp_path):
    def save(found, name="file.pth", **how):
        torch.save(found, tmp_path / name, **how)
        return tmp_path / name
    return save


def refused(file, out):
    "Convert, expect one line that names the file, and nothing written."
    with pytest.raises((ValueError, FileNotFoundError)) as error: convert(file, out)
    text = str(error.value)
    assert text.startswith(str(file)) and "\n" not in text and not out.exists()
    return text


# ------------------------------------------------------------------------------------------ the same numbers

@pytest.mark.parametrize("file", STEPS, ids=lambda p: p.stem)
def test_reference_logits(file, save, tmp_path):
    d = np.load(file)
    seed = int(d["cfg_seed"])
    facts = convert(save(from_recipe(seed)), tmp_path / "run")
    model, config = load_run(tmp_path / "run")
    load_weights(model.double(), tmp_path / "run" / "model.safetensors")
    x, _ = recipe.batch(seed, int(d["cfg_B"]), int(d["cfg_D"]), int(d["cfg_H"]), int(d["cfg_W"]))
    x, e = torch.from_numpy(x[:, int(d["cfg_test_domain"])]), model.encoder
    with torch.no_grad(): out = model(x * e.std + e.mean, full=True)  # they were recorded behind the normalisation
    b, i, j = d["pos_eval_start"].T
    assert np.abs(out["logits"][b, :, i, j].numpy() - d["logits_eval_start"]).max() <= 1e-8
    assert np.abs(out["w"].permute(0, 2, 3, 1).numpy() - d["read_w_eval_start"]).max() <= 1e-10
    want = dict(encoder="resnet18", head="deeplabv3plus", output_stride=32, tau=1.0, read="gumbel", updater="raw", fusion="bn",
                label_mode="bilinear", coh_at="labels", rates=[3, 6, 9], memory=True, n=19)
    assert want.items() <= config["model"].items()
    assert facts["network"] == config["network"] == V3_18 and config["epoch"] == 3 and config["converted_from"] == "file.pth"
    assert config["method"] == "pinmem" and len(config["sha256"]) == 64


def by_hand(state, memory, x, network):
    "The released networks written out with functions of PyTorch alone, by the authors' names, in evaluation mode."
    v2 = network == V2_101
    def conv(x, name, stride=1, dilation=1):
        w = state[name + ".weight"]
        return F.conv2d(x, w, state.get(name + ".bias"), stride, dilation * (w.shape[-1] // 2), dilation)
    def bn(x, name):
        s = [state[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *s)
    def brick(x, name, dilation=1): return F.relu(bn(conv(x, name + ".0", 1, dilation), name + ".1"))
    def up(x, like): return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)
    strides = {1: 1, 2: 2, 3: 1 if v2 else 2, 4: 1}
    spread = {1: 1, 2: 1, 3: 2 if v2 else 1, 4: 4 if v2 else 2}
    y, i = F.max_pool2d(F.relu(bn(conv2(x, state["layer0.0.weight"]), "layer0.1")), 3, 2, 1), 0
    maps = {}
    for layer in (1, 2, 3, 4):
        i = 0
        while f"layer{layer}.{i}.conv1.weight" in state:
            p, stride = f"layer{layer}.{i}.", strides[layer] if i == 0 else 1
            early = v2 and layer == 2                                  # the released DeepLabV2 halves in the 1 x 1
            z = F.relu(bn(conv(y, p + "conv1", stride if early else 1), p + "bn1"))
            z = F.relu(bn(conv(z, p + "conv2", 1 if early else stride, spread[layer]), p + "bn2"))
            z = bn(conv(z, p + "conv3"), p + "bn3")
            if i == 0: y = bn(conv(y, p + "downsample.0", stride), p + "downsample.1")
            y, i = F.relu(y + z), i + 1
        maps[layer] = y
    if v2: f = sum(brick(y, f"aspp.conv2d_list.{k}", rate) for k, rate in enumerate((6, 12, 18, 24)))
    else:
        pooled = brick(y.mean((2, 3), keepdim=True), "aspp.img_conv").expand(-1, -1, *y.shape[-2:])
        rest = [brick(y, f"aspp.features.{k}", rate) for k, rate in enumerate((1, 6, 12, 18))]
        f = brick(torch.cat([pooled, *rest], 1), "bot_aspp")
    q = f / f.norm(dim=1, keepdim=True)
    b, c, h, w = q.shape
    rows = q.permute(0, 2, 3, 1).reshape(-1, c)
    out = torch.softmax(rows @ memory.T, 1) @ memory
    r = brick(torch.cat([q, out.reshape(b, h, w, c).permute(0, 3, 1, 2)], 1), "memory.output")
    if v2: return up(conv(brick(r, "final1"), "final2.0"), x)
    fine = brick(maps[1], "bot_fine")
    z = brick(torch.cat([fine, up(r, fine)], 1), "final1")
    z = F.relu(bn(conv(z, "final1.3"), "final1.4"))
    return up(conv(z, "final2.0"), x)


def conv2(x, w): return F.conv2d(x, w, None, 2, 3)


@pytest.mark.parametrize("network", [V3_50, V2_101])
def test_published_networks(network, save, tmp_path):
    "Both published networks against the network written out by the authors' names."
    state = random_state(network)
    memory = F.normalize(torch.rand(19, 256, generator=torch.Generator().manual_seed(1)))
    facts = convert(save(released(state, memory)), tmp_path / "run")
    assert facts["network"] == network
    model, config = load_run(tmp_path / "run")
    assert config["model"]["output_stride"] == {V3_50: 16, V2_101: 8}[network]
    assert config["model"]["early_stride"] == (network == V2_101)
    double = lambda t: t.double() if t.is_floating_point() else t
    x = torch.randn(1, 3, 56, 72, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        want = by_hand({k: double(t) for k, t in state.items()}, memory.double(), x, network)
        e = model.double().encoder
        got = model(x * e.std + e.mean)                                # E takes the colours as they are
    assert want.std() > 1e-3
    assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))


def test_baseline_without_memory(save, tmp_path):
    state = random_state(V3_18, memory=False)
    found = released(state, None)
    del found["memory"]
    assert convert(save(found), tmp_path / "run")["method"] == "aggregation"
    model, config = load_run(tmp_path / "run")
    assert model.mem is None and not config["model"]["memory"]
    assert torch.equal(model.decoder.final[3].weight, state["final1.3.weight"])


@pytest.mark.parametrize("how", ["as it is", "old format", "without module.", "float32"])
def test_forms(how, whole, save, tmp_path):
    "Files of old versions of PyTorch, of one process, of any precision."
    found = dict(whole)
    if how == "without module.": found["state_dict"] = {k[len("module."):]: t for k, t in whole["state_dict"].items()}
    if how == "float32": found = released({k[7:]: t for k, t in whole["state_dict"].items()}, whole["memory"].float(), torch.float32)
    convert(save(found, _use_new_zipfile_serialization=how != "old format"), tmp_path / "run")
    model, _ = load_run(tmp_path / "run")
    assert_close(model.updater.conv.weight, whole["state_dict"]["module.memory.writenet.writefeat.0.weight"].float())
    assert_close(model.mem, whole["memory"].float())


def test_command(whole, save, tmp_path, capsys):
    "A converted run is evaluated and predicts like any other."
    convert(save(whole), tmp_path / "run")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "town", "--scenes", "1", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["town"]["images"] == 1
    Image.fromarray(np.full((40, 70, 3), 90, np.uint8)).save(tmp_path / "p.png")
    assert main(["predict", str(tmp_path / "run"), str(tmp_path / "p.png"), "--out", str(tmp_path / "o"), "--quiet",
                 "--device", "cpu"]) == 0
    assert Image.open(tmp_path / "o" / "p_mask.png").size == (70, 40)


# ------------------------------------------------------------------------------------------ what is refused

class Trap:
    "A pickle that creates a file when it is read carelessly."
    def __init__(self, call, *args): self.call, self.args = call, args
    def __reduce__(self): return self.call, self.args


@pytest.mark.parametrize("place", ["memory", "state_dict", "epoch", "whole"])
@pytest.mark.parametrize("old", [False, True])
def test_hostile_file(place, old, whole, save, tmp_path):
    target = tmp_path / "sprung"
    trap = Trap(open, str(target), "w") if place != "epoch" else Trap(eval, f"open({str(target)!r}, 'w')")
    found = {"memory": {**whole, "memory": trap}, "state_dict": {**whole, "state_dict": {"module.x": trap}},
             "epoch": {**whole, "epoch": trap}, "whole": trap}[place]
    file = save(found, _use_new_zipfile_serialization=not old)
    assert "refused" in refused(file, tmp_path / "run")
    assert not target.exists()
    torch.load(file, weights_only=False)                              # the trap does work
    assert target.exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_file(share, whole, save, tmp_path):
    file = save(whole)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(share * len(raw))])
    assert "download it again" in refused(file, tmp_path / "run")


def test_no_checkpoint(save, tmp_path):
    assert "no such file" in refused(tmp_path / "nothing.pth", tmp_path / "run")
    (tmp_path / "text.pth").write_text("<html>sign in to download</html>")
    assert "damaged or no checkpoint" in refused(tmp_path / "text.pth", tmp_path / "run")
    for found in (torch.zeros(2), {"model": {}}, {"state_dict": 3}, [1, 2]):
        assert "state_dict" in refused(save(found), tmp_path / "run")
    assert "fits none" in refused(save({"state_dict": {}}), tmp_path / "run")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", tmp_path / "run")


def test_missing_memory(whole, save, tmp_path):
    for found in ({**whole, "memory": None}, {k: v for k, v in whole.items() if k != "memory"}):
        assert "no tensor 'memory'" in refused(save(found), tmp_path / "run")


@pytest.mark.parametrize("memory", [torch.ones(19, 256), torch.zeros(19, 256), F.normalize(torch.rand(16, 256)), torch.ones(256),
                                    torch.full((19, 256), torch.nan), torch.ones((), dtype=torch.int64)])
def test_memory_that_is_none(memory, whole, save, tmp_path):
    assert "expected 19 unit rows" in refused(save({**whole, "memory": memory}), tmp_path / "run")


def test_memory_of_other_width(whole, save, tmp_path):
    refused(save({**whole, "memory": F.normalize(torch.rand(19, 128))}), tmp_path / "run")


def test_other_class_count(whole, save, tmp_path):
    state = {**whole["state_dict"], "module.final2.0.weight": torch.zeros(16, 256, 1, 1), "module.final2.0.bias": torch.zeros(16)}
    assert "16 classes, pinmem 19" in refused(save({**whole, "state_dict": state}), tmp_path / "run")


def test_other_architecture(save, tmp_path):
    "DeepLabV3+ on ResNet-101 was never released."
    state = random_state(V3_50)
    state.update({k.replace("layer3.5", f"layer3.{i}"): t for k, t in state.items() if k.startswith("layer3.5.") for i in range(6, 23)})
    text = refused(save(released(state, F.normalize(torch.rand(19, 256)))), tmp_path / "run")
    assert f"closest is {V2_101}" in text and "aspp.conv2d_list.0.0.weight is missing" in text and "73 name(s)" in text


def test_every_name_counts(whole, save, tmp_path):
    state = dict(whole["state_dict"])
    del state["module.dsn.4.bias"], state["module.layer1.0.bn1.num_batches_tracked"]
    state["module.memory.extra"] = torch.zeros(1)
    state["module.bot_fine.0.weight"] = torch.zeros(32, 64, 1, 1)
    text = refused(save({**whole, "state_dict": state}), tmp_path / "run")
    for part in ("dsn.4.bias is missing", "layer1.0.bn1.num_batches_tracked is missing", "memory.extra is not in the network",
                 "bot_fine.0.weight is (32, 64, 1, 1) instead of (48, 64, 1, 1)", "4 name(s)", f"closest is {V3_18}"):
        assert part in text


def test_not_finite(whole, save, tmp_path):
    state = {**whole["state_dict"], "module.layer1.0.bn1.bias": torch.full((64,), torch.inf)}
    assert "layer1.0.bn1.bias" in refused(save({**whole, "state_dict": state}), tmp_path / "run")


def test_out_is_there(whole, save, tmp_path):
    file = save(whole)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match="already there"): convert(file, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["precious.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="already there"): convert(file, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    convert(file, tmp_path / "empty")
    assert load_run(tmp_path / "empty")[1]["preset"] == "official"


def test_reading_leaves_the_optimizer(whole, save):
    assert set(read_checkpoint(save(whole))) == set(whole)

"""Every network of the paper, and any timm backbone under each head: shapes, weights, and a second-order step."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.testing import assert_close

import pinmem.encoders as encoders
from helpers import complaint
from pinmem.cost import on_meta, parameters, published_gflops, published_macs, table8, tally, true_flops
from pinmem.data import to_image, to_tensor
from pinmem.datasets import open_domain
from pinmem.encoders import PIP, QuickConv2d, QuickBatchNorm2d, build_backbone, colours, read_weights_file, standardise, weights_file
from pinmem.meta_step import meta_gradients, write_memory
from pinmem.model import Network, build_model, official_names, old_config
from pinmem.training import load_run, save_model

timm = encoders.load_timm()

PAPER = {
    "v3plus-r50": dict(encoder="resnet50"),
    "v3plus-r50-os8": dict(encoder="resnet50", output_stride=8),
    "v3plus-r101": dict(encoder="resnet101"),
    "v2-r101": dict(encoder="resnet101", head="deeplabv2"),
    "v2-r101-released": dict(encoder="resnet101", head="deeplabv2", early_stride=True),
    "fcn8s-r50": dict(encoder="resnet50", head="fcn8s"),
}
OTHERS = {
    "v3plus-lite0": dict(),
    "v2-lite0": dict(head="deeplabv2"),
    "fcn8s-lite0": dict(head="fcn8s", aux=True),
    "v3plus-convnext": dict(encoder="convnext_atto"),
    "v2-regnet": dict(encoder="regnetx_002", head="deeplabv2"),
    "fcn8s-pvt": dict(encoder="pvt_v2_b0", head="fcn8s"),
    "v3plus-mobilenet": dict(encoder="mobilenetv3_small_050", aux=True),
    "v3plus-vit": dict(encoder="vit_tiny_patch16_224"),
}
TINY = dict(channels=8, context_width=8, fine=4, width=8, pool_norm=False, aux=True, aux_dropout=0.0, weights=None)


def batch(seed=0, b=2, h=64, w=64, dtype=torch.float32):
    "Images and labels of two domains; a rectangle of every image is ignored."
    g = torch.Generator().manual_seed(seed)
    x = [torch.randn(b, 3, h, w, generator=g, dtype=dtype) for _ in range(2)]
    y = [torch.randint(0, 19, (b, h // 16, w // 16), generator=g).repeat_interleave(16, 1).repeat_interleave(16, 2) for _ in range(2)]
    for t in y: t[:, :8, :8] = 255
    return list(zip(x, y))


def step(model, mtr, mte, order, **more):
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    return meta_gradients(model, params, buffers, model.mem, mtr, mte, alpha=0.01, order=order, **more)


def flat(grads): return torch.cat([g.flatten() for g in grads.values()])


# ------------------------------------------------------------------------------------------ what is built

def test_released_parameter_counts():
    "By part, as the published networks have them."
    v2 = on_meta(**PAPER["v2-r101"])
    parts = dict(backbone=v2.encoder.backbone, aspp=v2.encoder.context, final1=v2.decoder.final, final2=v2.decoder.classify,
                 dsn=v2.aux, fusion=v2.decoder.fusion, u=v2.updater, g=v2.classifier)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert count == dict(backbone=9_536 + 215_808 + 1_219_584 + 26_090_496 + 14_964_736, aspp=18_876_416, final1=590_336,
                         final2=4_883, dsn=4_729_875, fusion=131_584, u=66_048, g=4_883)
    assert parameters(v2) == 66_904_185 and parameters(on_meta(**PAPER["v2-r101"], memory=False)) == 66_701_670
    assert len(official_names(v2)) == 679
    shapes = json.loads((Path(__file__).parent / "reference" / "official_params.json").read_text())["DeepR101V2D"]
    state = v2.state_dict()
    assert {n: list(state[o].shape) for n, o in official_names(v2).items()} == dict(shapes)


@pytest.mark.parametrize("name", PAPER)
def test_strides_and_dilations(name):
    model = on_meta(**PAPER[name])
    stride = model.config["output_stride"]
    assert stride == {"v3plus-r50-os8": 8, "v2-r101": 8, "v2-r101-released": 8, "fcn8s-r50": 32}.get(name, 16)
    with torch.no_grad(): out = model(torch.empty(1, 3, 128, 64, device="meta"), full=True)
    assert out["f"].shape == (1, 256, 128 // stride, 64 // stride) and out["logits"].shape == (1, 19, 128, 64)
    assert out["aux"].shape[2] == 128 // min(stride, 16)
    body = model.encoder.backbone
    spread = {s: {m.dilation[0] for m in getattr(body, s).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
              for s in ("layer2", "layer3", "layer4")}
    assert spread == dict(layer2={1}, layer3={2 if stride == 8 else 1}, layer4={32 // stride})
    first = body.layer2[0]
    assert (first.conv1.stride, first.conv2.stride)[0 if "released" in name else 1] == (2, 2)


def test_default_is_as_before():
    "The default network and the config of older runs."
    with torch.device("meta"): model = build_model(weights=None)
    old = dict(encoder="tf_efficientnet_lite0", weights=None, memory=True, n=19, output_stride=16, tau=1.0, read="softmax",
               updater="raw", fusion="bn", label_mode="area", coh_at="features", aux_dropout=0.1, channels=128, rates=(2, 4, 6),
               context_width=64, fine=32, width=64, pool_norm=False, aux=False)
    assert old.items() <= model.config.items()
    with torch.device("meta"): again = build_model(**old)
    assert again.config == model.config == build_model(**json.loads(json.dumps(model.config))).config
    assert sum(p.numel() for p in model.parameters()) == 3_778_022
    names = list(model.state_dict())
    assert names[0] == "mem" and "decoder.fine.0.weight" in names and "encoder.context.branches.3.0.weight" in names


def test_run_without_head_in_its_config(tmp_path):
    torch.manual_seed(0)
    model = build_model("resnet18", **{**TINY, "aux": False}, rates=(1, 2, 3)).eval()
    save_model(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["head"], config["model"]["early_stride"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, _ = load_run(tmp_path)
    x = torch.randn(1, 3, 32, 48)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("head", ["deeplabv2", "fcn8s"])
def test_saved_and_rebuilt(tmp_path, head):
    torch.manual_seed(0)
    model = build_model("resnet18", head=head, **TINY).eval()
    save_model(tmp_path, model)
    again, config = load_run(tmp_path)
    x = torch.randn(1, 3, 61, 75)                                     # no multiple of anything
    assert torch.equal(again(x), model(x)) and model(x).shape == (1, 19, 61, 75) and config["model"]["head"] == head


@pytest.mark.parametrize("choice, said", [
    (dict(head="unet"), "'deeplabv3plus' or 'deeplabv2' or 'fcn8s'"), (dict(encoder="resnet-50"), "timm does not know it"),
    (dict(encoder="densenet121"), "output stride 32"), (dict(encoder="resnet18", early_stride=True), "bottleneck"),
    (dict(encoder="resnet50", output_stride=5), "cannot be built"), (dict(frozen_stats="perhaps"), "True or False"),
    (dict(pool_norm=2), "True or False"), (dict(aux="maybe"), "True or False"), (dict(tau=0), "from 0.001 to 1000"),
    (dict(tau=float("nan")), "tau is nan"), (dict(channels=0), "1 or more"), (dict(n=True), "n is True"),
    (dict(mean=0.5), "three numbers"), (dict(mean=(123.7, 116.3, 103.5)), "from 0 to 1"), (dict(std=(0, 1, 1)), "0.001 to 1"),
    (dict(mean=(0.5, 0.5)), "three numbers"), (dict(rates=[]), "rates is []"), (dict(rates=[2, 0]), "from 1 to 999"),
    (dict(rates="wide"), "[2, 4, 6]"), (dict(fusion="magic"), "'residual'"), (dict(fusion="magic", memory=False), "'residual'"),
    (dict(read="hard"), "'centred'"), (dict(widht=64), "did you mean 'width'?"), (dict(weights=3), "weights is 3")])
def test_bad_choices(choice, said):
    complaint(ValueError, lambda: build_model(**{"weights": None, **choice}), said)


def test_words_for_switches():
    "As they come from a command line: 'false' switches nothing on."
    off = dict(frozen_stats="false", pool_norm="false", aux="false", memory="no", early_stride="0")
    assert not any(getattr(Network(**off), name) for name in off)
    assert Network(frozen_stats="true").frozen_stats is True and Network(tau="0.1").tau == 0.1
    assert Network(weights=Path("a") / "b.pth").weights == str(Path("a") / "b.pth")


# ------------------------------------------------------------------------------------------ colours

def street():
    "A rendered street, (H, W, 3) uint8."
    return open_domain("rendered")[3][0]


IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_there_and_back():
    image, mask = open_domain("rendered")[3]
    x, y = to_tensor(image, mask)
    assert torch.equal(x, to_tensor(image)) and y.shape == x.shape[1:] and 0 <= x.min() and x.max() <= 1
    assert (to_image(x) == image).all() and (to_image(x.double()) == image).all()


def test_imagenet_numbers_as_before():
    "Bit for bit what was made of the bytes when they were normalised outside the network."
    image = np.stack([np.arange(256, dtype=np.uint8)] * 3, 1)[:, None]                    # every level of every channel
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in IMAGENET.values())
    before = (torch.from_numpy(image.transpose(2, 0, 1)).float() - mean) / std
    encoder = build_model(weights=None, **IMAGENET).encoder
    seen = []
    encoder.backbone.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    encoder.maps(to_tensor(image)[None])
    assert torch.equal(seen[0][0], before)


@pytest.mark.parametrize("name", PIP)
def test_fed_like_timm(name):
    "Features and beliefs of timm's own pipeline on a picture; with ImageNet's numbers they are others."
    full = timm.create_model(name).eval()
    full.load_state_dict(dict(zip(full.state_dict(), read_weights_file(PIP[name].get_model_file_path()).values())))
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=full))
    to_their_tensor, normalise = transform.transforms[-2:]                                # MaybeToTensor, Normalize
    image = street()
    theirs, x = normalise(to_their_tensor(Image.fromarray(image)))[None], to_tensor(image)[None]
    body = timm.create_model(name, features_only=True, output_stride=16).eval()
    body.load_state_dict(dict(zip(body.state_dict(), full.state_dict().values())))
    model = build_model(name).eval()
    assert_close(full(standardise(x, *colours(name))), full(theirs), rtol=1e-4, atol=1e-4)
    for mine, want in zip(model.encoder(x)[1], body(theirs)): assert_close(mine, want, rtol=1e-3, atol=1e-3)
    wrong = build_model(name, **IMAGENET).eval()
    last = wrong.encoder(x)[1][-1], body(theirs)[-1]
    assert (last[0] - last[1]).norm() > 0.1 * last[1].norm()
    assert wrong.config["mean"] == IMAGENET["mean"] and model.config["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["resnet50", "resnet50.tv_in1k", "test_resnet", "convnext_atto", "tf_efficientnet_lite0", "mobilevit_s"])
def test_every_backbone_by_its_own_configuration(name):
    with torch.device("meta"): model = build_model(name, weights=None, output_stride=32)
    config = timm.data.resolve_data_config({}, model=timm.create_model(name))
    assert model.config["mean"] == tuple(config["mean"]) and model.config["std"] == tuple(config["std"])
    assert not any("mean" in n.split(".")[1:2] or "std" in n.split(".")[1:2] for n in model.state_dict())


def test_old_runs_keep_their_numbers(tmp_path):
    "A configuration that says nothing is one from before."
    torch.manual_seed(0)
    model = build_model(**TINY, **IMAGENET).eval()
    save_model(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["mean"] == list(IMAGENET["mean"])
    del config["model"]["mean"], config["model"]["std"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again, config = load_run(tmp_path)
    x = to_tensor(street())[None]
    assert torch.equal(again(x), model(x)) and config["model"]["mean"] == IMAGENET["mean"]
    assert not torch.equal(build_model(**TINY).eval()(x), model(x)) and old_config(dict(mean=1, std=2)) == dict(mean=1, std=2)


# ------------------------------------------------------------------------------------------ ImageNet weights

def test_local_weights(tmp_path):
    "torchvision's file holds a classifier too; the file of another network is refused by name."
    for name, other in (("resnet50", "resnet101"), ("resnet101", "resnet50")):
        torch.manual_seed(1)
        full = timm.create_model(name)
        torch.save(full.state_dict(), tmp_path / f"{name}.pth")
        body = build_backbone(name, 8, tmp_path / f"{name}.pth")
        assert_close(body.layer4[2].conv3.weight, full.layer4[2].conv3.weight, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"layer3.6.conv1.weight is missing"):
        build_backbone("resnet101", 8, tmp_path / "resnet50.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"): build_backbone("resnet50", 16, tmp_path / "nowhere.pth")


@pytest.mark.parametrize("name, stride", [("convnext_atto", 16), ("swin_tiny_patch4_window7_224", 32), ("vit_tiny_patch16_224", 16),
                                          ("densenet121", 32), ("mobilenetv3_small_050", 16), ("pvt_v2_b0", 32)])
def test_local_weights_of_other_families(tmp_path, name, stride):
    torch.manual_seed(1)
    full = timm.create_model(name)
    torch.save(full.state_dict(), tmp_path / "w.pth")
    body = build_backbone(name, stride, tmp_path / "w.pth")
    loaded = {p.data_ptr(): p for p in body.parameters()}.values()
    theirs = {(t.shape, round(t.double().sum().item(), 6)) for t in full.state_dict().values()}
    assert all((p.shape, round(p.double().sum().item(), 6)) in theirs for p in loaded)
    maps = body.eval()(torch.randn(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == body.channels and [64 // m.shape[2] for m in maps] == body.strides


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet50.tv_in1k"])
def test_offline(name, monkeypatch, tmp_path):
    "Without network the message names the file and its place; put there, it is found."
    def no_network(*args, **kwargs): raise OSError("no network")
    create = timm.create_model
    def no_download(*args, pretrained=False, **kwargs):
        if pretrained: raise OSError("no network")
        return create(*args, **kwargs)
    monkeypatch.setattr(encoders.socket, "create_connection", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm, "create_model", no_download)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    url, place = weights_file(name)
    with pytest.raises(FileNotFoundError) as error: build_backbone(name)
    assert url in str(error.value) and place.name in str(error.value) and "weights=PATH" in str(error.value)
    assert "\n" not in str(error.value) and place.is_relative_to(tmp_path) and url.endswith(place.name)
    place.parent.mkdir(parents=True)
    torch.manual_seed(2)
    full = create(name)
    torch.save(full.state_dict(), place)
    assert_close(build_backbone(name).layer3[0].conv1.weight, full.layer3[0].conv1.weight, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------ second order

@pytest.mark.parametrize("name", ["v3plus-r50", "v3plus-r101", "v2-r101", "fcn8s-r50"])
def test_second_order_step_of_the_papers(name):
    "One step of Algorithm 1 on 64 x 64 images. G hears of the meta-test through the second derivative alone."
    torch.manual_seed(0)
    model = build_model(weights=None, **PAPER[name], aux_dropout=0.0).train()
    taken = step(model, *batch(h=32), 2)
    heard(model, taken)
    assert taken.outer["classifier.weight"].norm() > 0 and taken.outer["aux.4.weight"].norm() > 0


@pytest.mark.parametrize("name", OTHERS)
def test_second_order_step_of_others(name):
    torch.manual_seed(0)
    model = build_model(weights=None, **{**OTHERS[name], "aux_dropout": 0.0}).train()
    mtr, mte = batch()
    first, second = (step(model, mtr, mte, order) for order in (1, 2))
    heard(model, second)
    assert_close(first.losses["loss_outer"], second.losses["loss_outer"], rtol=1e-4, atol=1e-5)
    assert (flat(first.outer) - flat(second.outer)).norm() > 0
    g = "classifier.weight"
    assert first.outer[g].norm() == 0 and second.outer[g].norm() > 0
    assert_close(write_memory(model, model.mem, *mtr).norm(dim=1), torch.ones(19))


def heard(model, taken):
    "Every part has a finite gradient that is not zero, and the memory has unit rows."
    for name, g in taken.grads.items(): assert g.isfinite().all(), name
    for prefix in ("encoder.backbone.", "encoder.context.", "updater.", "decoder.fusion.", "decoder.classify.", "classifier."):
        assert sum(g.norm() for n, g in taken.grads.items() if n.startswith(prefix)) > 0, prefix
    assert_close(taken.mem_prime.norm(dim=1), torch.ones(19))


SMALL = {"v3plus": dict(encoder="test_resnet", rates=(1, 2, 3)), "v2": dict(encoder="test_resnet", head="deeplabv2", rates=(1, 2)),
         "fcn8s": dict(encoder="test_resnet", head="fcn8s", output_stride=16), "grouped, dilated": dict(encoder="regnetx_002", head="deeplabv2",
                                                                                   rates=(1, 2))}


def plain(model):
    "The same network with PyTorch's own convolution and BatchNorm."
    for child in model.modules():
        if type(child) is QuickConv2d: child.__class__ = nn.Conv2d
        if isinstance(child, QuickBatchNorm2d):
            child.__class__ = timm.layers.BatchNormAct2d if hasattr(child, "act") else nn.BatchNorm2d
    return model


@pytest.mark.parametrize("name", SMALL)
def test_against_plain_double_backward(name):
    torch.manual_seed(0)
    model = build_model(**TINY, **SMALL[name]).double().train()
    if name == "grouped, dilated":
        assert any(type(m) is QuickConv2d and m.groups > 1 and m.dilation == (4, 4) for m in model.modules())
    mtr, mte = batch(dtype=torch.float64)
    ours = step(model, mtr, mte, 2, objective="sum")
    theirs = step(plain(model), mtr, mte, 2, objective="sum")
    assert not any(isinstance(m, (QuickConv2d, QuickBatchNorm2d)) for m in model.modules())
    assert (flat(ours.outer) - flat(theirs.outer)).norm() <= 1e-9 * flat(theirs.outer).norm()
    for n, g in theirs.grads.items(): assert_close(ours.grads[n], g, rtol=1e-6, atol=1e-9 * float(flat(theirs.grads).abs().max()))


# ------------------------------------------------------------------------------------------ Table 8

def test_table_8():
    baseline, ours = table8()
    assert [r["gflops"] for r in (baseline, ours)] == ["277.16", "277.69"]
    assert [f'{r["parameters"] / 1e6:.2f}' for r in (baseline, ours)] == ["45.08", "45.22"]
    assert [r["macs"] for r in (baseline, ours)] == [554_307_551_488, 555_383_390_464]
    assert [r["true_flops"] for r in (baseline, ours)] == [1_107_431_522_304, 1_109_738_389_504]
    assert [r["all_parameters"] for r in (baseline, ours)] == [45_081_542, 45_284_057]


def test_counts_of_another_size():
    "1024 x 1024: half of everything."
    for memory, gmac in ((False, "277.154038"), (True, "277.691958")):
        counts = tally(on_meta(encoder="resnet50", memory=memory), (1024, 1024))
        assert f"{published_macs(counts) / 1e9:.6f}" == gmac


@pytest.mark.parametrize("name", PAPER)
def test_both_counters_agree(name):
    model = on_meta(**PAPER[name])
    counts = tally(model, (512, 256))
    assert true_flops(model, (512, 256)) == 2 * (counts["conv"] + counts["matmul"])


def test_counting_does_not_need_meta():
    model = build_model(weights=None).eval()
    assert tally(model, (64, 32)) == tally(on_meta(), (64, 32))


def test_halves_are_rounded_up():
    assert str(published_gflops(554_307_551_488)) == "277.16"          # 554.31 / 2 = 277.155

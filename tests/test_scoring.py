"""One protocol from an image to its score: what it accepts, one mask for everybody, and no row lost."""
import json

import numpy as np
import pytest
import torch
from pandas.testing import assert_frame_equal

from pinmem.data import DrawnDomain, to_tensor
from pinmem.evaluation import (Protocol, bootstrap, classes_at, domain_table, evaluate_domain, interval,
                               paired_difference, per_class_table, predict_logits, rescore, resize_logits, score,
                               segment)
from pinmem.labels import CAMVID11, FULL, IDDLITE7, SYNTHIA16
from pinmem.metrics import confusion
from pinmem.model import build_model
from pinmem.published import ADAPTED, FTA1, MIOU, PUBLISHED, TABLE1, beside_published, published, tidy


class Grey:
    "Pictures of one grey, labels of one class."
    def __init__(self, name="grey", labels=FULL, mask=13): self.name, self.labels, self.mask = name, labels, mask
    def __len__(self): return 2
    def key(self, i): return f"picture {i}"
    def __getitem__(self, i): return np.full((8, 12, 3), 90, np.uint8), np.full((8, 12), self.mask, np.uint8)


def car(x): return torch.eye(19)[13].view(1, 19, 1, 1).expand(1, 19, *x.shape[-2:])


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_model(encoder="tf_efficientnet_lite0", weights=None)


@pytest.mark.parametrize("words, given", [
    ("expected 19 or 16", dict(classes=11)), ("expected 19 or 16", dict(classes="many")),
    ("expected 19 or 16", dict(classes=None)), ("did you mean 'window'", dict(windows=[9, 9])),
    ("did you mean 'height'", dict(hight=9)),
    ("two numbers", dict(window=9)), ("two numbers", dict(window=[9])), ("two numbers", dict(window=[9, 9, 9])),
    ("two numbers", dict(window=[9, 0])), ("two numbers", dict(window=[9, -1])), ("two numbers", dict(window="9x9")),
    ("two numbers", dict(window=[9.5, 9])), ("True or False", dict(flip="perhaps")), ("True or False", dict(flip=None)),
    ("1 or more", dict(height=0)), ("1 or more", dict(height=-5)), ("1 or more", dict(height=2.5)),
    ("1 or more", dict(height="foo")), ("1 or more", dict(height=True)),
    ("1 or more", dict(multiple=0)), ("1 or more", dict(multiple=None)),
    ("from 0 to 1", dict(statistics=2)), ("from 0 to 1", dict(statistics=-.1)), ("from 0 to 1", dict(statistics="all")),
    ("from 0 to 1", dict(statistics=float("nan")))])
def test_a_wrong_protocol_is_refused_in_one_line(words, given):
    with pytest.raises(ValueError) as error: Protocol(**given)
    assert words in str(error.value) and next(iter(given))[0] in str(error.value) and "\n" not in str(error.value)


def test_a_protocol_survives_its_result():
    given = Protocol(classes=16, window=(8, 8), flip=True, height=6, statistics=0.5)
    result = json.loads(json.dumps(evaluate_domain(car, Grey(), given, progress=False)))
    assert Protocol(**result["protocol"]) == given
    assert Protocol(classes=19, window=None, flip=False, height=None) == Protocol(), "as old runs have it"
    text = domain_table([result])
    for words in "windows of 8x8", "at most 6 high", "16 of the 19", "mirror", "50% of BatchNorm": assert words in text


@pytest.mark.parametrize("protocol", [Protocol(), Protocol(height=256), Protocol(window=(512, 256))], ids=str)
def test_one_mask_whoever_asks(net, protocol):
    "A drawn street of 1024 pixels: what a picture is given is what is scored."
    street = DrawnDomain("night", n=1, size=(1024, 512))
    image, mask = street[0]
    guess, _ = segment(net, to_tensor(image, mask)[0][None], protocol)
    result = evaluate_domain(net, street, protocol, progress=False)
    assert confusion(guess, torch.from_numpy(mask).long()).tolist() == result["confusion"]


def test_enlarged_class_by_class_is_enlarged_at_once(net):
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    logits = predict_logits(lambda x: net.predict(x).float(), x)
    assert (classes_at(logits, (200, 310)) == resize_logits(logits, (200, 310))[0].argmax(0)).all()
    assert (segment(net, x, size=(200, 310))[0] == classes_at(logits, (200, 310))).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 90), (31, 33)])
def test_a_tiny_picture_has_a_mask(net, size): assert segment(net, torch.zeros(1, 3, *size))[0].shape == size


def test_the_shown_network_is_padded_with_its_mean_colour(net, monkeypatch):
    seen, mean = [], torch.tensor([.1, .2, .3]).view(3, 1, 1)
    monkeypatch.setattr(net, "predict", lambda x, *a, **k: seen.append(x) or torch.zeros(1, 19, *x.shape[-2:]))
    monkeypatch.setitem(net.encoder._buffers, "mean", mean)
    segment(net, torch.ones(1, 3, 20, 40), Protocol(multiple=32))
    assert seen[0].shape == (1, 3, 32, 64) and torch.allclose(seen[0][0, :, 25, 50], mean.flatten())
    assert torch.allclose(seen[0][0, :, :20, :40], torch.ones(1))


def test_two_domains_of_one_name_do_not_share_a_row():
    with pytest.raises(ValueError, match="more than one domain is called val; ") as error:
        score(None, [Grey("val"), Grey("night"), Grey("val")])
    assert "\n" not in str(error.value)
    results = score(car, [Grey("a/val"), Grey("b/val", mask=0)], progress=False)
    assert {name: r["miou"] for name, r in results.items()} == {"a/val": 1, "b/val": 0}


@pytest.mark.parametrize("labels", [CAMVID11, IDDLITE7])
def test_sixteen_classes_are_scored_only_where_nineteen_are_labelled(labels):
    few, full = (evaluate_domain(car, Grey(name, kind), Protocol(classes=16), progress=False)
                 for name, kind in (("few", labels), ("full", FULL)))
    assert few["iou"] == evaluate_domain(car, Grey("few", labels), progress=False)["iou"]
    assert few["labels"] == labels.name
    assert len(full["iou"]) == 16 and full["labels"] == SYNTHIA16.name
    assert "few: scored with" in domain_table([few, full]) and "full: scored" not in domain_table([few, full])
    with pytest.raises(ValueError, match="few has .*; 16 classes need 19 classes"): rescore(few, SYNTHIA16)
    assert rescore(few, labels) == few


def test_a_broken_network_names_the_picture(net):
    with pytest.raises(ValueError, match="grey, image picture 0: the logits are not finite") as error:
        evaluate_domain(lambda x: car(x) / 0, Grey(), progress=False)
    assert "\n" not in str(error.value)


def test_tables_of_results_without_a_protocol():
    "Runs of before did not store it."
    old = [evaluate_domain(car, Grey(name), progress=False) for name in ("a", "b")]
    for result in old: del result["protocol"]
    assert domain_table(old).splitlines()[-1].split() == ["mean", "100.0", "4", "19", "classes"]
    empty = [{**old[0], "miou": None, "iou": dict.fromkeys(FULL.names)}, {**old[1], "iou": {"other": .5}}]
    table = [line.split() for line in per_class_table(empty).splitlines()]
    assert table[-1] == ["mIoU", "–", "100.0"]
    assert table[-2] == ["other", "–", "50.0"] and table[1] == ["road", "–", "–"]


def test_intervals_by_hand():
    assert interval([1, 2, 3]) == pytest.approx(dict(mean=2, low=2 - 2.4841377, high=2 + 2.4841377, n=3))
    means = np.array([2., 2.5, 1])[np.random.default_rng(0).integers(0, 3, (10_000, 3))].mean(1)
    found = bootstrap([2., 2.5, 1])
    assert [found["low"], found["high"]] == pytest.approx(list(np.quantile(means, [.025, .975])))
    for f in interval, bootstrap:
        assert f([5.]) == dict(mean=5, low=None, high=None, n=1) and f([2., 2, 2]) == dict(mean=2, low=2, high=2, n=3)
        with pytest.raises(ValueError, match="no values"): f([])
    with pytest.raises(ValueError, match="2 numbers against 1"): paired_difference([1, 2], [1])


@pytest.mark.parametrize("words, call", [
    ("did you mean 'gs-r50'", lambda: published("gs-r5", "cityscapes")),
    ("choose gs-r50", lambda: published("table 1", "cityscapes")),
    ("did you mean 'bdd100k'", lambda: published("gs-r50", "bdd100")),
    ("unknown table", lambda: beside_published([dict(name="cityscapes", miou=.5, iou={})], "x"))])
def test_names_that_are_not_in_the_paper(words, call):
    with pytest.raises(ValueError) as error: call()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_ours_beside_theirs():
    result = evaluate_domain(car, Grey("bdd100k/val"), progress=False)
    lines = {line.split()[0]: line.split()[1:] for line in beside_published([result]).splitlines() if line.strip()}
    assert lines["car"] == ["100.0", "75.2", "+24.8"] and lines["road"] == ["–", "79.3", "–"]
    assert lines["mIoU"] == ["100.0", "38.1", "+61.9"]
    nobody = beside_published([result, {**result, "name": "rain"}], "g-r50", None)
    assert "no row for this method" in nobody
    assert nobody.splitlines()[-1].split() == ["mIoU", "100.0", "–", "–", "100.0", "–", "–"]
    assert_frame_equal(PUBLISHED, tidy(MIOU + ADAPTED, TABLE1, FTA1))

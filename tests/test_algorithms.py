"""Every method on every network: three steps, finite losses, what should learn moved and what should not did not."""
import numpy as np
import pytest
import torch

from helpers import complaint
from pinmem.algorithms import MLDG, Aggregation, PinTheMemory, start_memory
from pinmem.losses import Objective
from pinmem.normalisation import build_network, instance_norms
from pinmem.plan import ALGORITHMS
from pinmem.settings import choices
from pinmem.training import fit
from pinmem.variants import weigh_classes

SMALL = dict(weights=None, channels=16, rates=(1, 2, 3), context_width=8, fine=8, width=16)
NETWORKS = [(encoder, head) for encoder in ("tf_efficientnet_lite0", "test_resnet")
            for head in ("deeplabv3plus", "deeplabv2", "fcn8s")]
SPLITS = {"mldg", "mldg-first", "episodic-memory", "pinmem", "pinmem+", "pinmem+norm", "tsmldg"}
MEMORY = {"aggregation-memory", "episodic-memory", "pinmem", "pinmem+", "pinmem+norm", "self-training-memory"}
ADAPT = {method for method, cls in ALGORITHMS.items() if cls.unlabelled}  # these are also given images without labels
CASES = [(method, encoder, head) for method, cls in ALGORITHMS.items() for encoder, head in NETWORKS
         if method not in ADAPT or (encoder, head) == ("test_resnet", "deeplabv3plus")]


def batches(seed, domains=3, size=(32, 64)):
    "One (x, y) for each domain, a part of the labels ignored."
    g = torch.Generator().manual_seed(seed)
    one = lambda: (torch.randn(2, 3, *size, generator=g), torch.randint(0, 19, (2, *size), generator=g))
    made = [one() for _ in range(domains)]
    for _, y in made: y[:, :4] = 255
    return made


def make(method, network={}, **keywords):
    torch.manual_seed(0)
    cls = ALGORITHMS[method]
    if method == "robustnet": keywords = {"start": 1, "measure": 1, **keywords}
    small = SMALL if "head" not in cls.network else dict(weights=None, rates=(1, 2, 3))  # f is the last map itself
    model = build_network(**{**cls.network, **small, "encoder": "test_resnet", **network})
    return cls(model, weight_decay=0.0, **keywords)


def step(algorithm, seed):
    more = [torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(seed))] if algorithm.unlabelled else []
    return algorithm.update(batches(seed), *more)


def changed(before, after):
    return {name for name in after if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("method, encoder, head", CASES, ids=["-".join(case) for case in CASES])
def test_every_method_on_every_network(method, encoder, head):
    own = ALGORITHMS[method].network.get("head", head)
    wide = encoder == "tf_efficientnet_lite0" and method != "pinmem"  # the other methods on a quarter of the cells, for time
    stride = {"output_stride": 16} if wide else {}
    algorithm = make(method, dict(encoder=encoder, head=own, aux=encoder == "test_resnet", **stride))
    model = algorithm.model
    before = algorithm.state_dict()["model"]
    log = [step(algorithm, s) for s in range(3)]
    after = algorithm.state_dict()["model"]
    moved = changed(before, after)
    assert {n for n, _ in model.named_parameters()} <= moved, "a parameter did not learn"
    memory = method in MEMORY or method in ADAPT and "memory" not in ALGORITHMS[method].network
    assert ("mem" in moved) == memory == (model.mem is not None)
    for name, tensor in after.items():
        assert tensor.isfinite().all(), name
        if name.endswith("num_batches_tracked"): assert tensor in ((3, 6) if method in ADAPT else (3,)), (
            f"{name}: statistics move once a step, and once more for images without labels")
    assert all(np.isfinite(v) for row in log for v in row.values())
    assert all(row.keys() == log[0].keys() for row in log), "a log needs the same columns in every row"
    assert ("test_seg" in log[0]) == (method in SPLITS) and ("loss_div_pairs" in log[0]) == memory
    assert algorithm.steps == 3
    if memory: torch.testing.assert_close(model.mem.norm(dim=1), torch.ones(19))
    x = batches(9)[0][0]
    logits = algorithm.predict(x)
    assert logits.shape == (2, 19, 32, 64) and not logits.requires_grad and logits.isfinite().all()
    assert algorithm.predict(x[:1]).shape == (1, 19, 32, 64)
    assert not changed(after, model.state_dict()), "prediction moved something"


@pytest.mark.parametrize("method", ALGORITHMS)
def test_classes_say_what_they_are(method):
    cls = ALGORITHMS[method]
    assert cls.splits == (method in SPLITS) and bool(cls.network.get("memory")) == (method in MEMORY)
    fields = cls.Switches.model_fields
    assert cls.__doc__ and "seed" not in fields and set(cls.fixed) <= set(fields)
    assert all(field.description for field in fields.values()), "a switch without a word of help"
    assert ("lam1" in fields) == (method in MEMORY | ADAPT) and ("alpha" in fields) == cls.splits


@pytest.mark.parametrize("method", ["aggregation", "pinmem", "mldg", "aggregation-memory"])
def test_frozen_statistics_stay(method):
    algorithm = make(method, dict(frozen_stats=True))
    before = algorithm.state_dict()["model"]
    algorithm.update(batches(0))
    moved = {n for n in changed(before, algorithm.model.state_dict()) if "running_" in n}
    assert moved and not any(n.startswith("encoder.backbone.") for n in moved)


def test_plus_starts_as_the_network_without_memory():
    "At first the memory adds nothing to the feature; in the faithful network it takes its place from the start."
    small, x = {**SMALL, "encoder": "test_resnet"}, batches(5)[0][0]
    plain = build_network(memory=False, **small).eval()
    for method, same in (("pinmem+", True), ("pinmem", False)):
        model = build_network(**ALGORITHMS[method].network, **small).eval()
        missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
        about_memory = "updater.", "classifier.", "decoder.fusion.", "mem"
        assert not unexpected and all(n.startswith(about_memory) for n in missing)
        assert torch.equal(model(x), plain(x)) == same
    plus = make("pinmem+")
    plus.update(batches(0))
    assert plus.model.decoder.fusion.bn.weight.abs().min() > 0, "one step, and every channel listens"


def test_warm_steps_are_a_share_of_the_run():
    "Half of five steps: three before the split begins, in one go and in two."
    warm = lambda rows: [not row.get("test_seg") for row in rows]
    whole = make("pinmem", warm=0.5, alpha=0.5)
    assert warm(fit(whole, batches, 5, progress=False)[1]) == [True, True, True, False, False]
    halves = make("pinmem", warm=0.5, alpha=0.5)
    parts = [fit(halves, batches, 5, start=a, stop=b, progress=False)[1] for a, b in ((0, 2), (2, 5))]
    assert [warm(rows) for rows in parts] == [[True, True], [True, False, False]]
    assert not changed(whole.model.state_dict(), halves.model.state_dict())


def test_what_must_not_move():
    "Without L_div nobody asks G anything; without a way through the memory U hears of L_div alone."
    algorithm = make("pinmem", lam2=0.0)
    before = algorithm.state_dict()["model"]
    algorithm.update(batches(0))
    still = {n for n, _ in algorithm.model.named_parameters()} - changed(before, algorithm.model.state_dict())
    assert still == {"classifier.weight", "classifier.bias"}
    algorithm = make("pinmem", objective="outer", order=2, prime="prime_frozen_eu")
    before = algorithm.state_dict()["model"]
    algorithm.update(batches(0))
    assert "updater.conv.weight" in changed(before, algorithm.model.state_dict())


@pytest.mark.parametrize("method", ["aggregation-memory", "episodic-memory", "robustnet", "tsmldg"])
def test_state_put_back_goes_on_as_before(method):
    keywords = dict(start=3, measure=2) if method == "robustnet" else {}
    whole, halves = make(method, **keywords), make(method, **keywords)
    for s in range(5): last = whole.update(batches(s))
    for s in range(2): halves.update(batches(s))
    halves.seconds = 12.5
    state = halves.state_dict()
    other = make(method, **keywords)
    other.load_state_dict(state)
    assert other.seconds == 12.5 and other.steps == 2
    for s in range(2, 5): again = other.update(batches(s))
    assert last == again and not changed(whole.model.state_dict(), other.model.state_dict())


def test_whitening_lowers_the_sensitive_covariances():
    "The same steps with a heavy and with a weightless whitening loss."
    def final(weight):
        algorithm = make("robustnet", weight=weight, lr=0.01, encoder_lr=1.0)
        return [algorithm.update(batches(0))["loss_white"] for _ in range(12)][-1]
    assert final(20.0) < 0.7 * final(0.0)


def test_places_of_instance_norm_are_those_of_table_8():
    "Bare norms add 83,886,080 to the published count of RobustNet at 2048 x 1024, affine ones twice that to IBN-Net's."
    with torch.device("meta"): model = build_network("isw", encoder="resnet50", weights=None, memory=False).eval()
    sizes = []
    for norm in instance_norms(model): norm.register_forward_hook(lambda m, x, out: sizes.append(out.numel()))
    model.encoder.backbone(torch.empty(1, 3, 1024, 2048, device="meta"))
    assert sum(sizes) == 83_886_080
    with torch.device("meta"): ibn = build_network("ibn-b", encoder="resnet50", weights=None, memory=False)
    assert sum(p.numel() for p in ibn.parameters()) == 45_081_542 + 2 * (256 + 512)


@pytest.mark.parametrize("name", ["order", "objective", "prime", "reduction", "optimiser", "schedule"])
def test_every_choice_takes_a_step(name):
    for value in choices(PinTheMemory.Switches.model_fields[name].annotation):
        assert np.isfinite(list(make("pinmem", **{name: value}).update(batches(0)).values())).all(), value


@pytest.mark.parametrize("method, switches, words", [
    ("mldg", dict(order=1.5), "1 or 2"),
    ("mldg", dict(order=True), "1 or 2"),
    ("mldg", dict(alpha=-1), "0 to 10"),
    ("mldg", dict(alfa=1), "did you mean 'alpha'"),
    ("mldg", dict(warm=2), "0 to 1"),
    ("aggregation", dict(alpha=0.1), "unknown switch 'alpha'"),
    ("aggregation", dict(lr=float("nan")), "lr is nan"),
    ("aggregation", dict(schedule="cosine"), "onecycle"),
    ("pinmem", dict(momentum="most"), "0 to 1"),
    ("pinmem", dict(reduction="max"), "'mean' or 'sum'"),
    ("pinmem", dict(prime="frozen"), "prime_frozen_e"),
    ("pinmem", dict(prime="hat", lam2=0), "nothing would teach U"),
    ("pinmem", dict(prime="prime_frozen_eu", objective="outer", order=1), "nothing would teach U"),
    ("mldg-first", dict(order=2), "order=1"),
    ("episodic-memory", dict(alpha=0.1), "alpha=0.0"),
    ("robustnet", dict(measure=0), "1 to"),
    ("robustnet", dict(start=1.5), "a whole number"),
    ("robustnet", dict(weight=True), "0 to 1000"),
])
def test_wrong_switches_are_one_line(method, switches, words):
    complaint(ValueError, lambda: make(method, **switches), words)


@pytest.mark.parametrize("method", ALGORITHMS)
def test_unlabelled_images_are_refused_or_missed_by_name(method):
    algorithm = make(method)
    before = algorithm.state_dict()["model"]
    images = None if algorithm.unlabelled else torch.zeros(2, 3, 32, 64)
    complaint(ValueError, lambda: algorithm.update(batches(0), unlabelled=images), type(algorithm).__name__, "label")
    assert algorithm.steps == 0 and not changed(before, algorithm.model.state_dict())


def test_a_state_of_an_older_version_loads():
    "Before there could be several optimisers, a state held `optimiser`."
    whole, other = make("pinmem", optimiser="sgd"), make("pinmem", optimiser="sgd")
    whole.update(batches(0))
    state = whole.state_dict()
    state["optimiser"] = state.pop("optimisers")["main"]
    other.load_state_dict(state)
    assert whole.update(batches(1)) == other.update(batches(1))
    assert not changed(whole.model.state_dict(), other.model.state_dict())


def test_an_objective_reaches_the_step():
    "Each of its five values changes what is learned, in a warm step too where it can."
    for name, value in dict(momentum=0.3, lam1=1.0, lam2=1.0, lam_aux=1.0, reduction="sum").items():
        first, second = make("pinmem", dict(aux=True)), make("pinmem", dict(aux=True), **{name: value})
        assert second.aim == Objective(**{name: value})
        for algorithm in (first, second): algorithm.update(batches(0))
        assert changed(first.model.state_dict(), second.model.state_dict()), name


def test_weights_that_do_not_learn_stay():
    "A frozen part is left alone by every kind of step, the optimiser's weight decay included."
    for cls in (Aggregation, MLDG):
        network = build_network(memory=False, **{**SMALL, "encoder": "test_resnet"})
        network.encoder.backbone.requires_grad_(False)
        algorithm = cls(network)
        before = algorithm.state_dict()["model"]
        algorithm.update(batches(0))
        moved = {n for n in changed(before, network.state_dict()) if "running_" not in n and "num_batches" not in n}
        assert moved and not any(n.startswith("encoder.backbone.") for n in moved)


class Sorted:
    "A domain whose last three of 24 pictures alone show a train."
    name = "sorted"
    def __len__(self): return 24
    def __getitem__(self, i):
        mask = np.zeros((32, 64), np.uint8)
        if i >= 21: mask[:16] = 16
        return np.full((32, 64, 3), 10 * i, np.uint8), mask


def test_a_sample_is_spread_over_the_domain():
    "What only the end of a sorted set shows is found by a small sample; what nobody shows is named."
    model = build_network(**{**SMALL, "encoder": "test_resnet"})
    absent = [n for n in range(19) if n not in (0, 16)]
    assert start_memory(model, [Sorted()], limit=8) == absent
    assert weigh_classes(model, [Sorted()], limit=8) == absent and model.class_weight[16] > 2 * model.class_weight[0]
    for limit in (24, 100, 0):
        assert start_memory(model, [Sorted()], limit=limit) == absent == weigh_classes(model, [Sorted()], limit=limit)
    assert weigh_classes(model, [Sorted()], gamma=0) == [] and model.class_weight is None

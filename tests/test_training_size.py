"""Training at size: presets of the paper, bf16, recomputation, states, workers, memory that runs out. All on tiny networks."""
import json
import os
import subprocess
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pinmem import at_size, cli
from pinmem.algorithms import sides
from pinmem.at_size import CompiledStep, Forecast, compiled_step, compute_in, recompute_encoder
from pinmem.data import PHOTOMETRIC, DomainBatches, FolderDomain, Photos, in_processes, virtual_domains
from pinmem.meta_step import meta_gradients
from pinmem.model import build_model
from pinmem.normalisation import build_network
from pinmem.plan import ALGORITHMS, PRESETS, plan
from pinmem.runs import make_algorithm, make_batches, open_sources, train
from pinmem.training import NoMemory, board_writer, fit, load_state, out_of_memory, read_log, state_files, to_board

TINY = dict(channels=8, rates=(1, 2, 3), context_width=8, fine=4, width=8, pool_norm=False, aux=True, weights=None)
NETS = {"resnet": "test_resnet", "efficientnet": "test_efficientnet"}
ROWS = "gs-r50", "gsi-r50", "g-r50", "gs-r101"


def net(encoder="test_resnet", dtype=torch.float32, **more):
    torch.manual_seed(0)
    return build_model(encoder, **{**TINY, "aux_dropout": 0.0, **more}).to(dtype).train()


def batches(seed=0, dtype=torch.float32, n=2):
    "One (x, y) a domain, labels in blocks."
    g = torch.Generator().manual_seed(seed)
    block = lambda: torch.randint(0, 19, (2, 2, 4), generator=g).repeat_interleave(16, 1).repeat_interleave(16, 2)
    return [(torch.randn(2, 3, 32, 64, generator=g, dtype=dtype), block()) for _ in range(n)]


def step(model, **more):
    x = batches(dtype=next(model.parameters()).dtype)
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    return meta_gradients(model, params, buffers, model.mem, *x, **{"alpha": 0.1, "objective": "sum", **more})


def flat(grads): return torch.cat([g.flatten() for g in grads.values()])


# ------------------------------------------------------------------------------------------ recomputation

@pytest.mark.parametrize("prime", ["prime_frozen_e", "prime"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("encoder", NETS)
def test_recomputed_gradients_are_the_same(encoder, order, prime):
    usual, saving = (step(f(net(NETS[encoder], torch.float64)), order=order, prime=prime)
                     for f in (lambda m: m, recompute_encoder))
    for part in ("inner", "outer"):
        a, b = flat(getattr(usual, part)), flat(getattr(saving, part))
        assert (a - b).norm() <= 1e-12 * a.norm(), part
    assert all(torch.equal(usual.buffers[n], t) for n, t in saving.buffers.items()), "statistics move once, and alike"
    assert {int(t) for n, t in saving.buffers.items() if n.endswith("tracked")} == {1}
    for name, t in usual.losses.items(): assert_close(saving.losses[name], t, rtol=1e-12, atol=1e-13)
    assert_close(saving.mem_prime, usual.mem_prime, rtol=1e-12, atol=1e-13)


def test_recomputing_in_evaluation_mode_and_switching_back():
    a, b = net(dtype=torch.float64).eval(), recompute_encoder(net(dtype=torch.float64)).eval()
    x = batches(dtype=torch.float64)[0][0]
    grads = [torch.autograd.grad(m(x).square().mean(), list(m.encoder.parameters())) for m in (a, b)]
    for g, h in zip(*grads): assert_close(g, h, rtol=1e-12, atol=1e-14)
    with torch.no_grad(): assert torch.equal(a(x), b(x))
    assert b.state_dict().keys() == a.state_dict().keys(), "names stay as they are"
    recompute_encoder(b, on=False)
    assert not any("forward" in vars(m) for m in b.modules())


def test_what_cannot_be_recomputed_is_refused():
    model = types.SimpleNamespace(encoder=types.SimpleNamespace(backbone=torch.nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="leave checkpoint out"): recompute_encoder(model)
    with pytest.raises(ValueError, match="inside of E"): plan("robustnet", checkpoint=True)


# ------------------------------------------------------------------------------------------ one graph

AS_LISTED = lambda graph, given: graph                                # the list of operations, not compiled


def test_a_step_written_down_is_the_step():
    "Three updates, dropout and bfloat16 included, give the same bits; a new shape gets a graph of its own."
    made = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_network(encoder="test_resnet", **{**TINY, "aux_dropout": 0.5})
        algorithm = ALGORITHMS["pinmem"](compute_in(model, "bf16"))
        if compiled: algorithm.meta_gradients = CompiledStep(AS_LISTED)
        algorithm.set_rate(1.0)
        for t in range(3):
            torch.manual_seed(t)
            algorithm.update(batches(t, n=2 if t < 2 else 3))
        made.append(algorithm)
    assert len(made[1].meta_gradients.graphs) == 2
    usual, listed = (a.model.state_dict() for a in made)
    assert usual.keys() == listed.keys()
    assert all(torch.equal(t, listed[name]) for name, t in usual.items())


def test_wrong_labels_are_found_before_a_graph_is_used():
    model, (a, b) = net(), batches()
    step = CompiledStep(lambda graph, given: pytest.fail("written down"))
    b[1][0, 0, 0] = 77
    with pytest.raises(ValueError, match="77"):
        step(model, dict(model.named_parameters()), dict(model.named_buffers()), model.mem, a, b, alpha=.1)


def test_a_run_is_compiled_or_says_why_not(tmp_path, monkeypatch, capsys):
    small = dict(method="mldg", warm=0.0, sources=["town", "city"], steps=2, scenes=3, exam=2, size=(64, 32), encoder="test_resnet", out=None,
                 quiet=True, workers=0, **{**SMALL, "weights": None})
    def run(name, **more):
        train(**{**small, "out": tmp_path / name, **more})
        return torch.load(tmp_path / name / "state.pt", weights_only=True)["model"], capsys.readouterr().out
    usual, _ = run("usual")
    monkeypatch.setattr(at_size, "inductor", AS_LISTED)
    listed, said = run("listed", compile=True)
    assert "is compiled, for minutes, once" in said and all(torch.equal(t, listed[name]) for name, t in usual.items())
    def broken(graph, given): raise RuntimeError("no g++ here\nand more")
    monkeypatch.setattr(at_size, "inductor", broken)
    without, said = run("without", compile=True)
    assert "compile: no compiler works here (no g++ here); the step is not compiled" in said and compiled_step() is None
    assert all(torch.equal(t, without[name]) for name, t in usual.items())


@pytest.mark.parametrize("switches, word", [(dict(method="aggregation"), "no inner step"), (dict(checkpoint=True), "checkpoint")])
def test_what_cannot_be_compiled_is_refused(switches, word):
    with pytest.raises(ValueError, match=word): plan(**switches, compile=True)


def test_a_shared_step_is_not_compiled(monkeypatch):
    monkeypatch.setattr(at_size, "ranks", lambda: (0, 2))
    with pytest.raises(ValueError, match="several processes"): compiled_step()


# ------------------------------------------------------------------------------------------ bfloat16

@pytest.mark.parametrize("encoder", NETS)
def test_bf16(encoder):
    "E and D in bfloat16: everything that is kept is float32, and the losses are near."
    full, less = step(net(NETS[encoder])), step(compute_in(net(NETS[encoder]), "bf16"))
    for name, loss in full.losses.items():
        assert less.losses[name].dtype == torch.float32, name
        if name.startswith(("loss", "test")): assert_close(less.losses[name], loss, rtol=0.03, atol=0.03)
    assert not torch.equal(less.losses["loss_seg"], full.losses["loss_seg"]), "nothing was computed in bfloat16"
    assert {g.dtype for g in less.grads.values()} == {t.dtype for t in (less.mem_hat, less.mem_prime)} == {torch.float32}
    assert all(g.isfinite().all() and g.norm() > 0 for g in less.grads.values())
    for prefix in ("decoder.classify", "classifier"):
        a, b = (flat({n: g for n, g in s.inner.items() if n.startswith(prefix)}) for s in (full, less))
        assert torch.cosine_similarity(a, b, 0) > 0.98


def test_bf16_inside_and_outside():
    seen, model = {}, compute_in(net(), "bf16")
    for name in ("encoder.backbone.layer2", "decoder.final", "decoder.fusion", "updater"):
        model.get_submodule(name).register_forward_hook(lambda m, args, out, name=name: seen.update({name: out.dtype}))
    (x, y), _ = batches()
    out = model(x, full=True)
    model.write(out["f"], model.labels(y, out["f"]), model.mem)
    assert seen == {"encoder.backbone.layer2": torch.bfloat16, "decoder.final": torch.bfloat16,
                    "decoder.fusion": torch.bfloat16, "updater": torch.float32}
    assert {out[name].dtype for name in ("logits", "f", "s", "w", "aux")} == {torch.float32}
    assert model.eval()(x).dtype == torch.float32
    with pytest.raises(ValueError, match="bf16"): compute_in(model, "fp8")


def test_bf16_recomputed_is_bf16():
    usual, saving = (step(f(compute_in(net(), "bf16"))) for f in (lambda m: m, recompute_encoder))
    assert torch.equal(usual.losses["loss_inner"], saving.losses["loss_inner"])
    assert (flat(usual.inner) - flat(saving.inner)).norm() < 0.02 * flat(usual.inner).norm()


@pytest.mark.parametrize("method", ["aggregation", "pinmem"])
def test_some_steps_in_bf16_recomputed(method):
    cls = ALGORITHMS[method]
    torch.manual_seed(0)
    model = recompute_encoder(compute_in(build_network(**{**TINY, "encoder": "test_resnet", **cls.network}), "bf16"))
    algorithm = cls(model, optimiser="sgd", lr=0.01)
    losses = [algorithm.update(batches())["loss_seg"] for _ in range(4)]
    assert losses[-1] < losses[0] and {t.dtype for t in model.state_dict().values()} <= {torch.float32, torch.int64}


# ------------------------------------------------------------------------------------------ states

class Toy:
    "One number that follows its batches; fails when told to."
    schedule, seed, seconds = "constant", 0, 0.0
    def __init__(self, fail=None): self.a, self.steps, self.fail = torch.zeros(()), 0, fail
    def set_rate(self, factor): pass
    def state_dict(self): return {"a": self.a.clone(), "steps": self.steps, "seconds": self.seconds}
    def load_state_dict(self, state): self.a, self.steps, self.seconds = state["a"].clone(), state["steps"], state["seconds"]
    def update(self, batch):
        self.a = self.a + 0.3 * (batch - self.a) + torch.rand(())    # like dropout: draws from the global generator
        self.steps += 1
        if self.fail and self.steps == 8: raise self.fail
        return {"loss": float(self.a)}


def run(folder, toy=None, **more):
    toy = toy or Toy()
    fit(toy, lambda t: torch.tensor(float(t)), 20, folder, every=2, progress=False, **more)
    return toy


def test_newest_states_are_kept(tmp_path):
    run(tmp_path, keep=3, stop=11)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "state.pt", "state.pt.1", "state.pt.2"]
    assert [torch.load(p, weights_only=True)["step"] for p in state_files(tmp_path, 3)] == [11, 10, 8]
    run(tmp_path / "one", keep=1, stop=11)
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_damaged_newest_state_is_passed_over(tmp_path, capsys):
    whole = run(tmp_path / "whole")
    run(tmp_path / "torn", stop=11)
    data = (tmp_path / "torn/state.pt").read_bytes()
    (tmp_path / "torn/state.pt").write_bytes(data[:len(data) // 2])
    toy = Toy()
    assert load_state(tmp_path / "torn", toy) == 10
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "state.pt: damaged" in said and "going on from state.pt.1, step 10" in said
    run(tmp_path / "torn", toy, start=10)
    assert torch.equal(toy.a, whole.a)
    assert read_log(tmp_path / "torn/log.csv") == read_log(tmp_path / "whole/log.csv")
    for path in state_files(tmp_path / "torn", 2): path.write_bytes(b"")
    with pytest.raises(ValueError, match="without --resume"): load_state(tmp_path / "torn", toy)


def test_interrupted_while_writing(tmp_path, monkeypatch):
    "The disk is full in the middle of a state: the one before stays whole."
    run(tmp_path, stop=4)
    save = torch.save
    def half(state, path):
        save(state, path)
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"): run(tmp_path, start=4)
    assert load_state(tmp_path, Toy()) == 4 and not list(tmp_path.glob(".*"))


def test_resumed_bit_for_bit_with_dropout_and_noise(tmp_path):
    def algorithm():
        torch.manual_seed(0)
        model = build_model("test_resnet", **{**TINY, "aux_dropout": 0.5}, read="gumbel")
        return ALGORITHMS["pinmem"](model, seed=3, optimiser="sgd", lr=0.01, schedule="exp")
    go = lambda a, folder, **more: fit(a, lambda t: batches(t), 4, tmp_path / folder, progress=False, **more)
    whole, half, rest = algorithm(), algorithm(), algorithm()
    go(whole, "whole"); go(half, "halves", stop=2)
    torch.manual_seed(99)
    go(rest, "halves", start=load_state(tmp_path / "halves", rest))
    for name, t in whole.model.state_dict().items(): assert torch.equal(t, rest.model.state_dict()[name]), name
    assert (tmp_path / "whole/log.csv").read_text() == (tmp_path / "halves/log.csv").read_text()


# ------------------------------------------------------------------------------------------ memory runs out

NO_MEMORY = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), MemoryError(),
             RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ...")]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["gpu", "python", "cpu"])
def test_out_of_memory(tmp_path, error):
    toy, six = Toy(error), run(tmp_path / "six", stop=6)
    with pytest.raises(NoMemory) as caught: run(tmp_path / "a", toy)
    text = str(caught.value)
    assert "step 7" in text and "state of step 6 is kept" in text and "\n" not in text
    assert all(word in text for word in ("per_domain", "crop", "checkpoint=True", "precision=bf16"))
    assert torch.equal(toy.a, six.a) and load_state(tmp_path / "a", Toy()) == 6 and len(read_log(tmp_path / "a/log.csv")["step"]) == 6


def test_other_errors_are_not_about_memory(tmp_path):
    assert not out_of_memory(RuntimeError("shapes do not fit")) and not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"): run(tmp_path, Toy(RuntimeError("shapes do not fit")))


# ------------------------------------------------------------------------------------------ TensorBoard, forecast

def test_tensorboard_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert board_writer(tmp_path) is None
    seen = []
    class SummaryWriter:
        def __init__(self, folder, purge_step): seen.append((folder, purge_step))
        def add_scalar(self, name, value, step): seen.append((name, value, step))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    writer = board_writer(tmp_path, 5)
    fit(Toy(), lambda t: torch.tensor(1.0), 7, start=5, progress=False, watch=lambda rows: to_board(writer, rows))
    assert seen[0] == (str(tmp_path / "tensorboard"), 5) and [row[::2] for row in seen[1:]] == [("loss", 5), ("loss", 6)]


def test_forecast():
    said = []
    forecast = Forecast(100, torch.device("cpu"), after=3, say=said.append)
    for _ in range(6): forecast([])
    assert len(said) == 1 and "97 steps to come" in said[0] and "GB resident" in said[0]


def test_forecasts_of_a_warm_start(monkeypatch):
    "Quick warm steps, slow steps after them: each kind gets its own pace; a kind that is too short gets no line."
    cpu, said, now = torch.device("cpu"), [], [0.0]
    monkeypatch.setattr("pinmem.at_size.time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    found = [Forecast(50, cpu, 3, said.append, "warm steps"), Forecast(1000, cpu, 3, said.append, skip=50),
             Forecast(2, cpu, 3, said.append), Forecast(0, cpu, say=said.append)]
    for step in range(60):
        now[0] += .2 if step < 50 else .5
        for forecast in found: forecast([])
    assert len(said) == 2 and said[0].startswith("0.20 s a step, 9 s for the 47 warm steps to come")
    assert said[1].startswith("0.50 s a step, 8 min for the 997 steps to come")


def test_what_is_a_share_of_the_run_follows_the_clock_too(monkeypatch):
    "With a limit of a minute and twenty seconds a step, the third step begins when two thirds are over."
    now, seen = [0.0], []
    monkeypatch.setattr("pinmem.training.time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    class Slow(Toy):
        def update(self, batches): now[0] += 20; seen.append(self.done); return super().update(batches)
    assert fit(Slow(), lambda t: torch.tensor(1.0), 1000, minutes=1, progress=False)[0] == 3
    assert seen == pytest.approx([0, 1 / 3, 2 / 3])
    seen.clear()
    fit(Slow(), lambda t: torch.tensor(1.0), 4, progress=False)
    assert seen == [0, .25, .5, .75]
    seen.clear()
    stopped = Slow()
    fit(stopped, lambda t: torch.tensor(1.0), 1000, stop=2, minutes=1, progress=False)
    now[0] += 500                                                # somebody goes for a walk
    again = Slow()
    again.load_state_dict(stopped.state_dict())
    assert fit(again, lambda t: torch.tensor(1.0), 1000, start=2, minutes=1, progress=False)[0] == 3
    assert seen == pytest.approx([0, 1 / 3, 2 / 3])


# ------------------------------------------------------------------------------------------ batches

@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part in ("images", "labels"): (tmp_path / "mine" / part).mkdir(parents=True)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 80, 3), np.uint8)).save(tmp_path / f"mine/images/{i}.png")
        Image.fromarray(rng.integers(0, 19, (40, 80), np.uint8)).save(tmp_path / f"mine/labels/{i}.png")
    return tmp_path / "mine"


def equal(a, b): return all(torch.equal(p, q) for one, other in zip(a, b) for p, q in zip(one, other))


def test_batches_are_the_same_from_any_number_of_processes(folder):
    domains = virtual_domains(FolderDomain(folder))
    make = lambda n: DomainBatches(domains, 2, (64, 32), seed=4, processes=n)
    state = torch.get_rng_state()
    for n in (1, 2):
        stream = make(n).stream(2)
        for t in (2, 3, 4, 5): assert equal(next(stream), make(0).batch(t)), (n, t)
        stream.close()
        assert len(list(make(n).stream(7, 9))) == 2
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers"


STREAM = """
import functools, resource, sys
from pinmem.data import DomainBatches, FolderDomain
domain = FolderDomain(sys.argv[1])
if sys.argv[2] == "kept": domain.read = functools.cache(domain.read)
batches = DomainBatches([domain], 4, (64, 32), workers=0)
batches.batch(0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64_000_000,) * 2)
print(len([t for t, _ in enumerate(batches.stream(1, 81))]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize("way", ["streamed", "kept"])
def test_a_folder_larger_than_memory_is_streamed(way, tmp_path):
    "A process that may take 64 MB more reads 168 MB of pictures, twice; one that keeps them runs out of memory."
    for part, mode in (("images", "RGB"), ("labels", "L")):
        (tmp_path / part).mkdir()
        for i in range(160): Image.new(mode, (512, 512), 0).save(tmp_path / part / f"{i}.png")
    words = [sys.executable, "-c", STREAM, str(tmp_path), way]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if way == "streamed": assert done.stdout.split() == ["80"], done.stderr
    else: assert done.returncode and not done.stdout and "MemoryError" in done.stderr, "the limit is one"


@pytest.mark.parametrize("workers", [0, 2])
def test_no_picture_and_no_batch_is_kept(workers, folder):
    "Alive at any time: what the threads are busy with and what waits, however long the stream."
    domain, read, given, most = FolderDomain(folder), [], [], 0
    def note(i, once=domain.read):
        pair = once(i)
        read.append(weakref.ref(pair[0]))
        return pair
    domain.read = note
    for (x, y), in DomainBatches([domain], 2, (64, 32), workers=workers).stream(0, 40):
        given.append(weakref.ref(x))
        most = max(most, sum(ref() is not None for ref in read + given))
    assert len(read) == 80 and most <= 2 * workers + 4, most


def test_photos_are_kept_while_there_is_room():
    asked = []
    def reader(i): return str(i), lambda: asked.append(i) or np.full((20, 40, 3), i, np.uint8)
    photos = Photos(map(reader, range(5)), room=2 * 20 * 40 * 3 + 10)
    for _ in range(3): assert [int(photos[i][0][0, 0, 0]) for i in range(5)] == list(range(5))
    assert sorted(photos.kept) == [0, 1] and asked == [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4]


def test_a_broken_file_in_a_process_is_one_line(folder):
    domain = FolderDomain(folder)
    for path in (folder / "images").iterdir(): path.write_bytes(b"broken")
    with pytest.raises(ValueError) as caught: list(DomainBatches([domain], 1, (64, 32), processes=2).stream(0, 3))
    assert "cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_a_killed_process_is_one_line():
    class Dies:
        def __getitem__(self, t): os._exit(1)
    with pytest.raises(OSError, match="--workers 0") as caught: next(in_processes(Dies(), range(3), 1))
    assert "\n" not in str(caught.value)


def test_virtual_domains_draw_independently_in_every_step():
    class One:
        "One picture, the same for ever: what differs are the draws."
        name, n = "one", 1
        def __len__(self): return 1
        def __getitem__(self, i): return np.full((32, 64, 3), (90, 130, 160), np.uint8), np.zeros((32, 64), np.uint8)
    still = dict(crop=(64, 32), scale=(1, 1), flip=0.0, workers=0)
    make = lambda **more: DomainBatches(virtual_domains(One()), 1, **still, **more)
    colours = [[x.mean((0, 2, 3)) for x, _ in make(change=dict(jitter=(.4, .4, .4, .1), p=1.)).batch(t)] for t in range(30)]
    colours = torch.stack([torch.stack(pair) for pair in colours])     # (step, domain, channel)
    assert len({tuple(c.tolist()) for c in colours.flatten(0, 1)}) == 60, "every step and domain its own draw"
    a, b = colours[:, 0].mean(1), colours[:, 1].mean(1)                # brightness
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.5, "one says nothing about the other"
    calm = make(change=lambda t, d: PHOTOMETRIC["none" if d else "paper"])
    for t in range(3): assert torch.equal(calm.batch(t)[0][0], make().batch(t)[0][0]), "nor does it move the other's draws"


# ------------------------------------------------------------------------------------------ presets

SMALL = {**{n: v for n, v in TINY.items() if n != "weights"}, "rates": [1, 2, 3], "crop": [64, 32], "per_domain": 2}
WORDS = [w for n, v in SMALL.items() for w in ([f"--{n}".replace("_", "-") + f"={str(v).lower()}"] if isinstance(v, bool) else
                                               [f"--{n}".replace("_", "-"), *map(str, v if isinstance(v, list) else [v])])]
LITTLE = ["--encoder", "test_resnet", "--weights", "none", "--size", "64", "32", "--scenes", "3", "--exam", "2", "--workers", "0",
          "--threads", "1", "--device", "cpu"]


@pytest.mark.parametrize("preset", ROWS)
def test_what_a_row_fixes(preset):
    sets = [f"{name}:somewhere" for name in PRESETS[preset].sources]
    made = plan("pinmem", preset, sets[::-1], 120_000)
    assert made.data.model_dump() == dict(without=None, per_domain=4, crop=(768, 768), scale=(0.5, 2.0), photometric="paper",
                                          photometric_test="hard", rare=0.0, balance=0.0, unweigh=0.0, settle=0, second_phase=0, memory_images=0,
                                          photos_per_step=4)
    learned = dict(optimiser="sgd", lr=0.01, encoder_lr=1.0, weight_decay=5e-4, schedule="exp", alpha=0.0025, order=2, objective="sum")
    assert {name: made.algorithm[name] for name in learned} == learned and made.algorithm["warm"] == made.algorithm["average"] == 0
    assert list(made.sources) == (sets * 2 if preset == "g-r50" else sets)
    deep, head = preset == "gs-r101", plan("pinmem", preset, sets, head="fcn8s").model
    assert head.head == "fcn8s" and head.output_stride is None, "every head has its own stride"
    assert made.score.classes == (16 if deep else 19) and PRESETS[preset].stop == (70_000 if deep else 30_000)
    with torch.device("meta"): model = build_network(**{**made.model.model_dump(), "weights": None})
    count = sum(p.numel() for p in model.parameters())
    assert count == (66_904_185 if deep else 45_284_057) and model.config["output_stride"] == (8 if deep else 16)
    assert list(plan("aggregation", preset, sets).sources) == sets


@pytest.mark.parametrize("preset", ROWS)
def test_each_row_takes_steps_on_drawn_streets(preset):
    made = plan("pinmem", preset, ["town", "city"], 2, encoder="test_resnet", size=(64, 32), scenes=3, early_stride=False, **SMALL)
    assert made.model.head == ("deeplabv2" if preset == "gs-r101" else "deeplabv3plus")   # the toy has no bottlenecks to move a stride in
    algorithm = make_algorithm(made, torch.device("cpu"), None)
    taken, rows = fit(algorithm, make_batches(made, open_sources(made)).batch, 2, progress=False)
    assert taken == 2 and np.isfinite([v for row in rows for v in row.values()]).all()


def test_harder_colours_go_to_whoever_is_in_meta_test():
    about = dict(sources=["town", "city", "suburb"], scenes=1, size=(64, 32), crop=(64, 32), seed=5, photometric="none")
    made = plan(photometric_test="hard", **about)
    batch = make_batches(made, open_sources(made))
    for t in range(6):
        _, test = sides(3, 5, t)
        assert [d for d in range(3) if batch.change(t, d) is PHOTOMETRIC["hard"]] == sorted(test)
    assert make_batches(plan("aggregation", **about), batch.domains).change == PHOTOMETRIC["none"]


def refused(capsys, *words):
    assert cli.main(list(words)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("pinmem: ") and "\n" not in error
    return error


@pytest.mark.parametrize("words, needed", [
    (["--preset", "gs-r50"], "add gtav:PATH to the sources"),
    (["--preset", "gs-r50", "--sources", "gtav:a"], "add synthia:PATH to the sources"),
    (["--preset", "gsi-r50", "--sources", "gtav:a", "synthia:b"], "idd is missing"),
    (["--preset", "gs-r50", "--sources", "gtav:a", "synthia:b", "idd:c"], "not from idd"),
    (["--preset", "gs-r101", "--sources", "gtav:a", "gtav:b", "synthia:b"], "2 times"),
    (["--preset", "g-r50", "--sources", "town", "camvid:a"], "not from town"),
    (["--preset", "g-r50", "--sources", "gtav:nowhere"], "nowhere"),
    (["--precision", "half"], "'bf16'"), (["--crop", "768"], "--crop"), (["--keep", "0"], "keep"),
    (["--minutes", "0"], "minutes"), (["--minutes", "nan"], "minutes"),
    (["--steps", "1", "--estimate"], "steps=4"),
])
def test_mistakes(words, needed, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert needed in refused(capsys, "train", *words, "--out", "run", *LITTLE, "--quiet")
    assert not list(tmp_path.iterdir())


def test_estimate_prints_the_plan_and_keeps_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--preset", "g-r50", "--sources", "town", "town", "--estimate", "--out", "run", *WORDS, *LITTLE, "--quiet"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for words in ("preset g-r50", "encoder test_resnet", "head deeplabv3plus", "optimiser sgd", "order 2", "lam1 0.02", "crop 64x32",
                  "photometric_test hard", "steps 120000, stop 30000", "precision float32", "classes 19", "s a step", "29,996 steps to come",
                  "GB resident"): assert words in said, words
    assert not list(tmp_path.iterdir())


def test_estimate_of_a_method_that_adapts(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--method", "norm-only", "--photos", "fog", "--sources", "town", "--steps", "100", "--estimate", *LITTLE, "--quiet"]
    assert cli.main(words) == 0
    assert "for the 96 steps to come" in capsys.readouterr().out
    assert "new run" in refused(capsys, *words, "--resume")


def test_estimate_of_a_warm_start(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--sources", "town", "town", "--steps", "100", "--estimate", "--out", "run", *WORDS, *LITTLE, "--quiet"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "for the 71 warm steps to come" in said and "for the 21 steps to come" in said
    capsys.readouterr()
    assert cli.main([*words, "--warm", "0.99"]) == 0
    said = capsys.readouterr().out
    assert "for the 95 warm steps to come" in said and said.count("to come") == 1


def test_a_row_on_miniatures_with_one_command(tmp_path, capsys, monkeypatch):
    "gs-r50 on miniature sets: trained, out of memory once, gone on in another way, scored beside the paper."
    import test_datasets as sets
    sets.gtav(tmp_path / "g"); sets.synthia(tmp_path / "s"); sets.cityscapes(tmp_path / "c")
    update, calls = ALGORITHMS["pinmem"].update, []
    def once(self, batch, unlabelled=None):
        calls.append(self.model.precision)
        if len(calls) == 2: raise torch.OutOfMemoryError("CUDA out of memory")
        return update(self, batch)
    monkeypatch.setattr(ALGORITHMS["pinmem"], "update", once)
    monkeypatch.setattr("pinmem.report.report_run", lambda *args: None)
    words = ["train", "--preset", "gs-r50", "--sources", f"gtav:{tmp_path / 'g'}", f"synthia:{tmp_path / 's'}", "--targets",
             f"cityscapes:{tmp_path / 'c'}", "--steps", "3", "--out", str(tmp_path / "run"), *WORDS, *LITTLE, "--quiet"]
    words[words.index("--workers") + 1] = "1"
    assert "state of step 0 is kept" in refused(capsys, *words)
    capsys.readouterr()
    assert cli.main([*words[:-1], "--resume", "--precision", "bf16", "--checkpoint"]) == 0
    said = capsys.readouterr().out
    assert "precision bf16, checkpoint True" in said and "paper: Pin the Memory, gs-r50" in said and "44.5" in said
    assert calls == ["float32"] * 2 + ["bf16"] * 3
    config, results = (json.loads((tmp_path / "run" / name).read_text()) for name in ("config.json", "results.json"))
    assert config["compute"] == dict(precision="bf16", checkpoint=True, compile=False) and "cityscapes/val" in results
    assert len(read_log(tmp_path / "run/log.csv")["step"]) == 3

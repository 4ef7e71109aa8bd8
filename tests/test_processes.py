"""Many processes: a step of two or three is the step of one, for every method; and what can go wrong between them."""
import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers import complaint, notebook_processes
from pinmem.algorithms import MLDG, Algorithm
from pinmem.cli import main
from pinmem.data import DomainBatches, DrawnDomain
from pinmem.metrics import own, ranks
from pinmem.normalisation import build_network
from pinmem.plan import ALGORITHMS
from pinmem.processes import agree, join, own_device, together
from pinmem.runs import estimate, resume, train
from pinmem.training import check_alike, load_run, read_log, read_state

SMALL = dict(weights=None, channels=8, head="fcn8s", output_stride=16, aux_dropout=0.0)
UNLIKE = {"aggregation", "mldg", "pinmem", "robustnet", "pinmem+norm", "adaptsegnet", "clan+norm", "max-square",
          "self-training-memory"}  # each has sums of its own


def length(method, n):
    "Steps that n processes take: three where something is new, one elsewhere, for time."
    return 3 if method == "pinmem" or n < 3 and method in UNLIKE else 1


DOMAINS, IMAGES, SIZE = 3, 2, (32, 32)


def deal(seed):
    "Two images of each of three domains, for whoever asks; the images lack labels to very different degrees."
    (r, n), g = ranks(), torch.Generator().manual_seed(seed)
    made = []
    for d in range(DOMAINS):
        x = torch.rand(IMAGES, 3, *SIZE, generator=g, dtype=torch.double)
        y = torch.randint(0, 19, (IMAGES, 4, 4), generator=g).repeat_interleave(8, 1).repeat_interleave(8, 2)
        for k in range(IMAGES): y[k][torch.rand(SIZE, generator=g) < (0.9, 0.1, 0.5)[(d + k) % 3]] = 255
        mine = [k for k in range(IMAGES) if (d * IMAGES + k) % n == r]
        made.append((x[mine], y[mine]))
    return made, own(torch.rand(2, 3, *SIZE, generator=g, dtype=torch.double))  # of three processes one has no photograph


def make(method):
    torch.manual_seed(0)
    cls = ALGORITHMS[method]
    special = {"robustnet": dict(start=1, measure=1), "mldg": dict(objective="mean"),
               "max-square": dict(lam_multi=0.1), "self-training-memory": dict(sure=0.06)}
    small = SMALL if "head" not in cls.network else dict(weights=None, rates=(1, 2))
    aux = method in ("adaptsegnet", "max-square")
    model = build_network(**{"encoder": "test_resnet", "aux": aux, **small, **cls.network}).double()
    judge = {"d_width": 4} if "d_width" in cls.Switches.model_fields else {}
    return cls(model, **{"optimiser": "sgd", "lr": 0.01, **judge, **special.get(method, {})})


def take_steps(method, steps=3):
    "-> dict: everything that some steps give, by name."
    algorithm, found, taken, meta = make(method), {}, Algorithm.step_on, MLDG.meta_gradients
    def step_on(self, grads):
        found.update({f"gradient {self.steps} {name}": g.clone() for name, g in grads.items() if g is not None})
        taken(self, grads)
    def meta_gradients(*args, **keywords):
        step = meta(*args, **keywords)
        if step.mem_hat is not None:
            found.update({f"hat {t}": step.mem_hat, f"prime {t}": step.mem_prime})
        return step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Algorithm, "step_on", step_on)
        patch.setattr(MLDG, "meta_gradients", staticmethod(meta_gradients))
        for t in range(steps):
            batches, photos = deal(t)
            log = algorithm.update(batches, *([photos] if algorithm.unlabelled else []))
            found.update({f"log {t} {name}": torch.tensor(v, dtype=torch.double) for name, v in log.items()})
            found.update({f"state {t} {name}": v.clone() for name, v in algorithm.model.state_dict().items()})
    return found


PLAN = dict(method="aggregation-memory", sources=["town", "suburb", "city"], targets=[], encoder="test_resnet", weights=None,
            head="fcn8s", output_stride=16, channels=8, steps=4, scenes=6, size=(64, 32), crop=(32, 32), settle=2,
            memory_images=2, average=0.0)
WORK = dict(workers=0, threads=1, quiet=True, device="cpu")


def start(r, n, port):
    "As torchrun would."
    os.environ.update(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def member(r, n, folder, ports):
    "One process of a group: steps of every method, then a training, in which it may be told to die."
    torch.set_num_threads(1)
    if n > 1: start(r, n, ports[0])
    with together("cpu"):
        for method in ALGORITHMS:
            torch.save(take_steps(method, length(method, n)), f"{folder}/{method} {n} {r}.pt")
        if n == 2: (folder / f"quarrel {r}.json").write_text(json.dumps([*map(said, quarrels(r))]))
    if n == 3: return
    if n > 1: start(r, n, ports[1])
    train(**PLAN, **WORK, out=folder / f"run {n}", stop=2)
    if n == 1: return
    start(r, n, ports[2])
    sys.stderr = open(folder / f"dead {r}.txt", "w")
    taken = Algorithm.taken
    def deadly(self, losses):
        if r == 1 and self.steps == 3: os.kill(os.getpid(), signal.SIGKILL)
        return taken(self, losses)
    Algorithm.taken = deadly
    os._exit(main(["train", *options({**PLAN, "steps": 9}), "--out", str(folder / "dead"), "--workers", "0", "--quiet"]))


def options(plan):
    "Words of a command line."
    for name, value in plan.items():
        yield f"--{name.replace('_', '-')}"
        yield from map(str, value) if isinstance(value, (list, tuple)) else [str(value).lower() if value is None else str(value)]


def said(f):
    "What an error says."
    try: f()
    except (ValueError, OSError) as error: return str(error)


def quarrels(r):
    "What two processes can disagree about."
    facts = {"versions": {"torch": f"2.{6 + r}"}, "seed": 0}
    yield lambda: agree({"seed": 0})
    yield lambda: agree(facts)
    algorithm = make("aggregation")
    with torch.no_grad(): next(algorithm.model.parameters()).add_(r)
    yield lambda: check_alike(algorithm, "step 7")


def free_ports(n):
    "Ports that nobody uses at the moment."
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets: s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets: s.close()
    return ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Groups of one, two and three processes at work."
    folder, processes, ports = tmp_path_factory.mktemp("groups"), notebook_processes(), free_ports(6)
    for n in (1, 2, 3):
        group = [processes.Process(target=member, args=(r, n, folder, ports[n % 2 * 3:])) for r in range(n)]
        for process in group: process.start()
        for process in group: process.join(900)
        assert [process.exitcode for process in group] == {1: [0], 2: [2, -signal.SIGKILL], 3: [0, 0, 0]}[n]
    return folder


@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("n", [2, 3])
def test_a_step_of_many_is_the_step_of_one(method, n, folder):
    "Gradients, log, weights, statistics, memory, in all processes."
    one, cls = torch.load(folder / f"{method} 1 0.pt"), ALGORITHMS[method]
    assert ("hat 0" in one and "prime 0" in one) == (cls.splits and cls.network["memory"])
    for r in range(n):
        many = torch.load(folder / f"{method} {n} {r}.pt")
        last = length(method, n) - 1
        for kind in ("gradient", "log", "state"): assert any(name.startswith(f"{kind} {last}") for name in many)
        assert many.keys() <= one.keys() and (many.keys() == one.keys()) == (length(method, n) == length(method, 1))
        for name in many:
            t = one[name]
            scale = max(1.0, t.double().abs().max().item())
            error = (many[name].double() - t.double()).abs().max().item() / scale
            assert error < 1e-10, f"{name} of process {r}: {error:.1e}"


def test_a_run_of_two_processes_goes_on_with_one(folder):
    "The log of two is that of one, one process takes over from two, and the end is that of a run in one piece."
    logs = [read_log(folder / f"run {n}" / "log.csv") for n in (1, 2)]
    assert logs[0].keys() == logs[1].keys() and len(logs[0]["step"]) == 2
    for name in logs[0]: np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-4, err_msg=name)
    ends = [resume(folder / f"run {n}", **WORK).model.state_dict() for n in (1, 2)]
    for name, t in ends[0].items(): torch.testing.assert_close(ends[1][name], t, rtol=1e-3, atol=1e-3, msg=name)


def test_a_process_that_is_killed_ends_all(folder):
    "One line; what was saved can be gone on with."
    lines = (folder / "dead 0.txt").read_text().splitlines()
    lines = [line for line in lines if line.startswith("pinmem: ")]
    assert len(lines) == 1 and "another process of this run has ended" in lines[0] and "--resume" in lines[0]
    assert not list((folder / "dead").glob(".*part"))
    assert read_state(folder / "dead" / "state.pt")["step"] == 0       # states are kept every 100 steps
    load_run(folder / "dead")
    assert resume(folder / "dead", **WORK, stop=1).log["step"] == [0]


def test_processes_that_differ_are_refused(folder):
    for r in (0, 1):
        agreed, version, weights = json.loads((folder / f"quarrel {r}.json").read_text())
        assert agreed is None
        assert "process 1 was started with versions.torch='2.7', process 0 with '2.6'" in version
        assert "step 7" in weights and "different weights" in weights


def test_crops_are_the_same_whatever_the_number_of_processes():
    domains = [DrawnDomain(style, 4, size=(64, 32)) for style in ("town", "city", "night")]
    deal = lambda share: DomainBatches(domains, 2, (32, 32), workers=0, share=share).batch(5)
    one = [pair for x, y in deal((0, 1)) for pair in zip(x, y)]
    for n in (2, 3, 6):
        for r in range(n):
            many = [pair for x, y in deal((r, n)) for pair in zip(x, y)]
            assert len(many) == len(one[r::n])
            for (x, y), (x1, y1) in zip(many, one[r::n]): assert torch.equal(x, x1) and torch.equal(y, y1)


@pytest.fixture
def alone(monkeypatch):
    "A process that believes it is one of several."
    return lambda r, n, port: [monkeypatch.setenv(name, str(value)) for name, value in
                               dict(RANK=r, LOCAL_RANK=r, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items()]


def test_nobody_answers(alone):
    alone(1, 2, port := free_ports(1)[0])
    complaint(OSError, lambda: join("cpu", 1), f"127.0.0.1:{port}", "nobody answered within 1 s", "start process 0")


def test_somebody_does_not_come(alone):
    alone(0, 2, free_ports(1)[0])
    complaint(OSError, lambda: join("cpu", 1), "process 0 of 2", "fewer than 2 came within 1 s")


def test_port_in_use(alone):
    with socket.create_server(("", 0)) as busy:
        alone(0, 2, busy.getsockname()[1])
        complaint(OSError, lambda: join("cpu", 1), busy.getsockname()[1], "another program uses this port", "--master-port")


def test_more_processes_than_crops(alone):
    alone(0, 7, 1)
    complaint(ValueError, lambda: train(**PLAN, **WORK, out="unused"), "7 processes share the 6 crops", "start fewer")
    alone(2, 3, 1)
    complaint(ValueError, lambda: own_device("mps"), "cannot be shared by 3 processes")
    complaint(ValueError, lambda: own_device("cuda"), "process 2 of this machine has no GPU", "--device cpu")
    complaint(ValueError, lambda: estimate(**PLAN), "without torchrun")


def test_torchrun_starts_the_command_and_one_of_its_processes_speaks(tmp_path):
    words = "train --method aggregation --sources town --targets none --per-domain 1 --out", str(tmp_path / "run")
    launch = "-m torch.distributed.run --standalone --nproc-per-node=2 -m pinmem"
    done = subprocess.run([sys.executable, *launch.split(), *words[0].split(), words[1]], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("pinmem: ")]
    assert done.returncode and len(lines) == 1 and "2 processes share the 1 crops of a step" in lines[0]
    assert not (tmp_path / "run").exists()

"""Many processes: a step of two or three is the step of one, for every method; and what can go wrong between them."""
import numpy as np
import pytest
import torch
import torch.distributed as dist

from helpers import notebook_processes
from pinmem.algorithms import Algorithm
from pinmem.meta_step import meta_gradients
from pinmem.metrics import own, ranks
from pinmem.model import build_model
from pinmem.normalisation import build_network
from pinmem.plan import ALGORITHMS

SMALL = dict(weights=None, channels=8, head="fcn8s", aux_dropout=0.0)
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


def make(method, **keywords):
    torch.manual_seed(0)
    cls = ALGORITHMS[method]
    special = {"robustnet": dict(start=1, measure=1), "mldg": dict(objective="mean"),
               "max-square": dict(lam_multi=0.1), "self-training-memory": dict(sure=0.06)}
    small = SMALL if "head" not in cls.network else dict(weights=None, rates=(1, 2))
    aux = method in ("adaptsegnet", "max-square")
    model = build_network(**{"encoder": "test_resnet", "aux": aux, **small, **cls.network}).double()
    judge = {"d_width": 4} if "d_width" in cls.Switches.model_fields else {}
    return cls(model, **{"optimiser": "sgd", "lr": 0.01, **judge, **special.get(method, {}), **keywords})


def three_steps(method):
    "-> dict: everything that three steps give, by name."
    algorithm, found, taken = make(method), {}, Algorithm.step_on
    def step_on(self, grads):
        found.update({f"gradient {self.steps} {name}": g.clone() for name, g in grads.items() if g is not None})
        taken(self, grads)
    Algorithm.step_on = step_on
    try:
        for t in range(3):
            batches, photos = deal(t)
            log = algorithm.update(batches, *([photos] if algorithm.unlabelled else []))
            found.update({f"log {t} {name}": torch.tensor(v, dtype=torch.double) for name, v in log.items()})
    finally: Algorithm.step_on = taken
    found.update({f"state {name}": t.clone() for name, t in algorithm.model.state_dict().items()})
    return found


def member(r, n, folder):
    "One process of a group."
    torch.set_num_threads(1)
    if n > 1: dist.init_process_group("gloo", init_method=f"file://{folder}/store{n}", rank=r, world_size=n)
    import time
    for method in ALGORITHMS:
        c, w = time.process_time(), time.perf_counter()
        torch.save(three_steps(method), f"{folder}/{method} {n} {r}.pt")
        print(r, n, method, round(time.process_time() - c, 2), round(time.perf_counter() - w, 2), flush=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Groups of one, two and three processes take three steps of every method."
    folder, processes = tmp_path_factory.mktemp("groups"), notebook_processes()
    for n in (1, 2, 3):
        group = [processes.Process(target=member, args=(r, n, folder)) for r in range(n)]
        for process in group: process.start()
        for process in group: process.join()
        assert not any(process.exitcode for process in group)
    return folder


@pytest.mark.parametrize("method", ALGORITHMS)
@pytest.mark.parametrize("n", [2, 3])
def test_a_step_of_many_is_the_step_of_one(method, n, folder):
    one = torch.load(folder / f"{method} 1 0.pt")
    for r in range(n):
        many = torch.load(folder / f"{method} {n} {r}.pt")
        assert many.keys() == one.keys() and any(name.startswith("gradient 2") for name in one)
        for name, t in one.items():
            scale = max(1.0, t.double().abs().max().item())
            error = (many[name].double() - t.double()).abs().max().item() / scale
            assert error < 1e-10, f"{name} of process {r}: {error:.1e}"

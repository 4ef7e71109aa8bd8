"""What several test files use."""
import importlib.util
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "reference"


def load_recipe():
    "The numpy module that makes every input of the reference from its name and a seed."
    spec = importlib.util.spec_from_file_location("recipe", REFERENCE / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORST = {}  # kind of number -> largest error met, shown by `pytest -s`


def same(name, got, want, limit=1e-9):
    "Arrays within `limit` of their largest entry, scalars within a relative 1e-8."
    got = got.detach().numpy() if torch.is_tensor(got) else np.asarray(got)
    want = np.asarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all(), f"{name}: not finite"
    scale = max(np.abs(want).max(), 1e-30)
    error = np.abs(got - want).max() / scale
    kind = name.split(":")[0]
    WORST[kind] = max(WORST.get(kind, 0), error)
    assert error <= (limit if want.ndim else max(limit, 1e-8)), f"{name}: error {error:.2e} of {scale:.3g}"


def tensor(array):
    return torch.from_numpy(np.array(array))


def complaint(kind, f, *words):
    "f() must raise `kind` with one line that holds every word; returns the line."
    with pytest.raises(kind) as caught: f()
    text = str(caught.value)
    assert '\n' not in text and len(text) > 30
    for word in words: assert str(word) in text, f'{word!r} is missing in: {text}'
    return text


def run_notebook(path, output):
    "Run the cells of one notebook in this process; all it prints goes into the file `output`."
    with open(output, "w") as file: os.dup2(file.fileno(), 1); os.dup2(file.fileno(), 2)
    multiprocessing.set_start_method(None, force=True)  # a notebook starts its own processes as any program does
    os.chdir(path.parent)
    os.environ["IN_TEST"] = "1"
    import nbdev.test
    from nbdev.config import get_config
    nbdev.test.CaptureShell = partial(nbdev.test.CaptureShell, mpl_format="png")  # pictures as fine as in JupyterLab, not twice
    ok, _ = nbdev.test.test_nb(path, basepath=get_config().config_path, skip_flags=get_config().tst_flags.split())
    sys.stdout.flush(); sys.stderr.flush()
    os._exit(not ok)


def notebook_processes():
    "A way to start processes in which the slow work is already done: each is forked from one that did nothing but import `warm`."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent)  # where the server looks for modules
        multiprocessing.forkserver.ensure_running()
    return context

"""Recorded numbers of Feature To Adapt and of the methods it stands on: where they lie, and the inputs they belong to.

Inputs are made from a name, a shape and the seed that each file holds; tests/reference_fta/README.md says which
belongs to what. Another folder with files of the same names is read where PINMEM_REFERENCE_FTA is set.
"""
import os
from pathlib import Path

import numpy as np

from helpers import load_recipe

HERE = Path(__file__).resolve().parent / "reference_fta"
FOLDER = Path(os.environ.get("PINMEM_REFERENCE_FTA", HERE))
LOSSES = sorted(FOLDER.glob("fta_losses_*.npz"))
STEPS = sorted(FOLDER.glob("fta_steps_*.npz"))

words = load_recipe()
uniform, gauss, probe, labels = words.uniform, words.gauss, words.probe, words.labels  # name, shape, seed -> float64


class Numbers:
    "One case of a file: `numbers('loss')` is the entry `case/loss`."
    def __init__(self, file, case):
        self.data, self.case = np.load(file), case
        self.seed = int(self.data["seed"])

    def __call__(self, field): return self.data[f"{self.case}/{field}"]

    def __contains__(self, field): return f"{self.case}/{field}" in self.data.files

    def fields(self, prefix=""):
        "Names of this case that begin with `prefix`."
        start = f"{self.case}/{prefix}"
        return [name[len(self.case) + 1:] for name in self.data.files if name.startswith(start)]


# ------------------------------------------------------------------------------------------- weights of networks

def weights(name, shape, seed):
    "A tensor by its published name; discriminators as 'D.…', the two of AdaptSegNet as 'D1.…' and 'D2.…'."
    shape = tuple(int(n) for n in shape)
    norm = ".bn" in "." + name or "downsample.1" in name
    if name.endswith("num_batches_tracked"): return np.zeros(shape, np.int64)
    if name.endswith("running_var"): return 0.5 + uniform(name, shape, seed)
    noise = gauss(name, shape, seed)
    if name.endswith("running_mean"): return 0.1 * noise
    if name.endswith("bias"): return (0.1 if norm else 0.01) * noise
    if len(shape) == 4: return noise * (2.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
    return 1.0 + 0.1 * noise


# ------------------------------------------------------------------------------------------- inputs of single losses

def logits(key, shape, seed, scale=2.0):
    "Class scores from a coarse noise, four pixels a side, and half as much fine noise."
    b, c, h, w = shape
    coarse = gauss(f"{key}:coarse", (b, c, -(-h // 4), -(-w // 4)), seed)
    coarse = np.kron(coarse, np.ones((4, 4)))[:, :, :h, :w]
    return scale * (coarse + 0.5 * gauss(f"{key}:fine", shape, seed))


def features(key, shape, seed):
    "Features behind a ReLU; the first pixel of the first image is zero throughout."
    size = 0.5 + uniform(f"{key}:size", (shape[0], 1, *shape[2:]), seed)
    f = np.maximum(gauss(key, shape, seed) + 0.3, 0.0) * size
    f[0, :, 0, 0] = 0.0
    return f


# ------------------------------------------------------------------------------------------- inputs of whole iterations

SOURCE_LABEL, TARGET_ANSWER = (96, 128), (64, 96)                     # (height, width)
SOURCE_IMAGE = [(96, 128), (76, 102), (105, 140), (96, 128)]          # the released code scales images, not labels
TARGET_IMAGE = [(64, 96), (64, 96), (51, 76), (70, 105)]


def source_batch(seed, t):
    "x (1, 3, h, w) as after the released subtraction of a mean, y (1, H, W) uint8."
    x = 40.0 * gauss(f"source-image:{t}", (1, 3, *SOURCE_IMAGE[t]), seed) + 10.0
    return x, labels(f"source:{t}", (1, *SOURCE_LABEL), seed)


def target_batch(seed, t):
    "x (1, 3, h, w)."
    return 30.0 * gauss(f"target-image:{t}", (1, 3, *TARGET_IMAGE[t]), seed) - 20.0

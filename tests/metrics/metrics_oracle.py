"""The Inception network of 2015 written out as functions over a state dict, and random weights for it.

It shares nothing with `gnfast.metrics.inception` but the names of the weights.
"""

import numpy as np
import torch
import torch.nn.functional as F

# Name, output channels, input channels, kernel: all layers in the order in which pytorch-fid's file has them.
_STEM = """Conv2d_1a_3x3 32 3 3 3|Conv2d_2a_3x3 32 32 3 3|Conv2d_2b_3x3 64 32 3 3|Conv2d_3b_1x1 80 64 1 1
Conv2d_4a_3x3 192 80 3 3"""
_A = """branch1x1 64 {0} 1 1|branch5x5_1 48 {0} 1 1|branch5x5_2 64 48 5 5|branch3x3dbl_1 64 {0} 1 1
branch3x3dbl_2 96 64 3 3|branch3x3dbl_3 96 96 3 3|branch_pool {1} {0} 1 1"""
_B = "branch3x3 384 288 3 3|branch3x3dbl_1 64 288 1 1|branch3x3dbl_2 96 64 3 3|branch3x3dbl_3 96 96 3 3"
_C = """branch1x1 192 768 1 1|branch7x7_1 {0} 768 1 1|branch7x7_2 {0} {0} 1 7|branch7x7_3 192 {0} 7 1
branch7x7dbl_1 {0} 768 1 1|branch7x7dbl_2 {0} {0} 7 1|branch7x7dbl_3 {0} {0} 1 7|branch7x7dbl_4 {0} {0} 7 1
branch7x7dbl_5 192 {0} 1 7|branch_pool 192 768 1 1"""
_D = """branch3x3_1 192 768 1 1|branch3x3_2 320 192 3 3|branch7x7x3_1 192 768 1 1|branch7x7x3_2 192 192 1 7
branch7x7x3_3 192 192 7 1|branch7x7x3_4 192 192 3 3"""
_E = """branch1x1 320 {0} 1 1|branch3x3_1 384 {0} 1 1|branch3x3_2a 384 384 1 3|branch3x3_2b 384 384 3 1
branch3x3dbl_1 448 {0} 1 1|branch3x3dbl_2 384 448 3 3|branch3x3dbl_3a 384 384 1 3|branch3x3dbl_3b 384 384 3 1
branch_pool 192 {0} 1 1"""
_BLOCKS = {
    "5b": _A.format(192, 32),
    "5c": _A.format(256, 64),
    "5d": _A.format(288, 64),
    "6a": _B,
    "6b": _C.format(128),
    "6c": _C.format(160),
    "6d": _C.format(160),
    "6e": _C.format(192),
    "7a": _D,
    "7b": _E.format(1280),
    "7c": _E.format(2048),
}
LAYERS = [
    *_STEM.replace("\n", "|").split("|"),
    *(f"Mixed_{at}.{layer}" for at, block in _BLOCKS.items() for layer in block.replace("\n", "|").split("|")),
]


def random_weights(seed=0):
    """A state dict like pytorch-fid's, whose activations keep their size through the network."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    state = {}
    for line in LAYERS:
        name, *sizes = line.split()
        out, channels, high, wide = map(int, sizes)
        state[f"{name}.conv.weight"] = normal(out, channels, high, wide) * (2 / (channels * high * wide)) ** 0.5
        state[f"{name}.bn.weight"] = torch.rand(out, generator=generator) + 0.5
        state[f"{name}.bn.bias"] = 0.1 * normal(out)
        state[f"{name}.bn.running_mean"] = 0.1 * normal(out)
        state[f"{name}.bn.running_var"] = torch.rand(out, generator=generator) + 0.5
    state["fc.weight"] = normal(1008, 2048) / 2048**0.5
    state["fc.bias"] = normal(1008)
    return state


def inception(state, x):
    """All stages of the network by name, in the dtype of `x`; the last two are "features" and "logits"."""

    def unit(name, x, stride=1, padding=0):
        part = {key: state[f"{name}.{key}"].to(x.dtype) for key in ("conv.weight", *(f"bn.{n}" for n in BN))}
        x = F.conv2d(x, part["conv.weight"], None, stride, padding)
        mean, var, weight, bias = (part[f"bn.{n}"] for n in BN)
        return F.relu(F.batch_norm(x, mean, var, weight, bias, False, 0, 0.001))

    def average(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def a(at, x):
        five = unit(f"{at}.branch5x5_2", unit(f"{at}.branch5x5_1", x), padding=2)
        three = unit(f"{at}.branch3x3dbl_2", unit(f"{at}.branch3x3dbl_1", x), padding=1)
        three = unit(f"{at}.branch3x3dbl_3", three, padding=1)
        return torch.cat([unit(f"{at}.branch1x1", x), five, three, unit(f"{at}.branch_pool", average(x))], 1)

    def b(at, x):
        three = unit(f"{at}.branch3x3dbl_2", unit(f"{at}.branch3x3dbl_1", x), padding=1)
        three = unit(f"{at}.branch3x3dbl_3", three, 2)
        return torch.cat([unit(f"{at}.branch3x3", x, 2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(at, x):
        seven = unit(f"{at}.branch7x7_2", unit(f"{at}.branch7x7_1", x), padding=(0, 3))
        seven = unit(f"{at}.branch7x7_3", seven, padding=(3, 0))
        double = unit(f"{at}.branch7x7dbl_1", x)
        for i in (2, 3, 4, 5):
            double = unit(f"{at}.branch7x7dbl_{i}", double, padding=(3, 0) if i in (2, 4) else (0, 3))
        return torch.cat([unit(f"{at}.branch1x1", x), seven, double, unit(f"{at}.branch_pool", average(x))], 1)

    def d(at, x):
        three = unit(f"{at}.branch3x3_2", unit(f"{at}.branch3x3_1", x), 2)
        seven = unit(f"{at}.branch7x7x3_2", unit(f"{at}.branch7x7x3_1", x), padding=(0, 3))
        seven = unit(f"{at}.branch7x7x3_4", unit(f"{at}.branch7x7x3_3", seven, padding=(3, 0)), 2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(at, x, pooled):
        three = unit(f"{at}.branch3x3_1", x)
        double = unit(f"{at}.branch3x3dbl_2", unit(f"{at}.branch3x3dbl_1", x), padding=1)
        return torch.cat(
            [
                unit(f"{at}.branch1x1", x),
                unit(f"{at}.branch3x3_2a", three, padding=(0, 1)),
                unit(f"{at}.branch3x3_2b", three, padding=(1, 0)),
                unit(f"{at}.branch3x3dbl_3a", double, padding=(0, 1)),
                unit(f"{at}.branch3x3dbl_3b", double, padding=(1, 0)),
                unit(f"{at}.branch_pool", pooled),
            ],
            1,
        )

    stages = {}
    stages["Conv2d_1a_3x3"] = x = unit("Conv2d_1a_3x3", x, 2)
    stages["Conv2d_2a_3x3"] = x = unit("Conv2d_2a_3x3", x)
    stages["Conv2d_2b_3x3"] = x = unit("Conv2d_2b_3x3", x, padding=1)
    stages["Conv2d_3b_1x1"] = x = unit("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2))
    stages["Conv2d_4a_3x3"] = x = unit("Conv2d_4a_3x3", x)
    x = F.max_pool2d(x, 3, 2)
    for block, names in ((a, "5b 5c 5d"), (b, "6a"), (c, "6b 6c 6d 6e"), (d, "7a")):
        for name in names.split():
            stages[f"Mixed_{name}"] = x = block(f"Mixed_{name}", x)
    stages["Mixed_7b"] = x = e("Mixed_7b", x, average(x))
    # The graph's last pooling is a maximum, which looks like a mistake but is what the scores are defined by.
    stages["Mixed_7c"] = x = e("Mixed_7c", x, F.max_pool2d(x, 3, 1, 1))
    stages["features"] = features = x.mean((2, 3))
    stages["logits"] = features @ state["fc.weight"].to(x.dtype).T
    return stages


BN = ("running_mean", "running_var", "weight", "bias")


def inception_score(logits, splits=10):
    """Mean and deviation over the parts, by the formula."""
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    parts = [p[i * len(p) // splits : (i + 1) * len(p) // splits] for i in range(splits)]
    scores = [np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()) for part in parts]
    return np.mean(scores), np.std(scores)

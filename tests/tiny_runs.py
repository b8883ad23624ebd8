"""Training runs of seconds: tiny networks on eight-pixel digits."""

import torch

from gnfast.train import Config, train


def tiny(folder, **changes):
    """Settings of a run in `folder`; batches are odd, so that nothing fits by chance."""
    settings = {
        "data": "digits",
        "resolution": 8,
        "channels": 1,
        "model": "small",
        "width": 0.1,
        "z_dim": 5,
        "batch_d": 7,
        "batch_g": 6,
        "device": "cpu",
        "tensorboard": False,
        "run_dir": str(folder),
    }
    return Config(**(settings | changes))


def quiet(preset, config):
    """The outcome of a run, and the lines that it would have shown."""
    lines = []
    return train(preset, config, progress=False, echo=lines.append), lines


def equal(a, b):
    """Whether two checkpoints, or parts of them, hold the same, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

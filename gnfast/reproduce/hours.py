"""What a run would take on one GPU, from its products: an estimate that says how long a table is, not a measurement.

A forward pass of a network is counted on the device `meta`. A critic update costs three forwards of the critic over its
images (forward, input gradient, weight gradient), four with a normaliser that needs the input gradient's own gradient,
four more over the points of a gradient penalty, and a forward of the generator; a generator update three forwards of
the generator and two of the critic, whose weights rest. `docs/papers.md` gives the reasons for the numbers below.
"""

import functools
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnfast.config.config import Config
from gnfast.runs.sweep_file import Case
from gnfast.train.networks import outlines

# Of an H100's dense rates a half, without structured sparsity: TF32, and bfloat16 (which `auto` is) or float16.
FLOP_PER_S = {"tf32": 0.5 * 495e12} | dict.fromkeys(("auto", "bfloat16", "float16"), 0.5 * 990e12)
OTHERS = 0.5 * 67e12
# What an update takes however small the network is: about 150 kernels, replayed as a graph.
LEAST_UPDATE_S = 4e-4
# Inception's forward pass of one image, at half of float32's rate.
SCORED_IMAGE_S = 11.4e9 / OTHERS


def gpu_hours(cases: Iterable[Case]) -> float:
    """Of all runs, one after another on one GPU."""
    return sum(run_seconds(case.config()) for case in cases) / 3600


def run_seconds(config: Config) -> float:
    """Training and scoring of one run."""
    shape = (config.model, config.resolution, config.channels, config.z_dim, config.classes)
    generator, critic = forward_flops(*shape, config.width * config.width_g, config.width * config.width_d)
    rate = FLOP_PER_S.get(config.precision, OTHERS)
    points = config.batch_d * (4 if config.penalty != "none" else 0)
    images = config.batch_d * (2 + (config.consistency > 0))
    critic_update = critic * (images * (3 if config.method == "none" else 4) + points) + generator * config.batch_d
    generator_update = config.batch_g * (3 * generator + 2 * critic)
    step = config.n_dis * max(critic_update / rate, LEAST_UPDATE_S) + max(generator_update / rate, LEAST_UPDATE_S)
    scorings = 2 + (config.steps // config.eval_every if config.eval_every else 0)
    scored = 0 if config.extractor == "none" else 2 * scorings * config.n_fake * SCORED_IMAGE_S
    return config.steps * step + scored


@functools.cache
def forward_flops(
    model: str, resolution: int, channels: int, z_dim: int, classes: int, width_g: float, width_d: float
) -> tuple[float, float]:
    """Floating-point operations of one image's forward pass, of the generator and of the critic."""
    config = Config(
        data="",
        resolution=resolution,
        channels=channels,
        model=model,
        z_dim=z_dim,
        classes=classes,
        width_g=width_g,
        width_d=width_d,
    )
    generator, critic = outlines(config)
    labels = [torch.zeros(2, dtype=torch.long, device="meta")] if classes else []
    z = torch.zeros(2, z_dim, device="meta")
    images = torch.zeros(2, channels, resolution, resolution, device="meta")
    return _flops(generator, z, *labels) / 2, _flops(critic, images, *labels) / 2


def _flops(net: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*inputs)
    return counter.get_total_flops()

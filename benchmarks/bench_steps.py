"""Critic and generator steps of the shipped critics, four ways: `make bench`, or `pytest benchmarks/bench_steps.py`.

Results are checked against double backward before they are timed. `extra_info` has the FLOPs.
"""

import pytest
import torch
from measure import count_flops, synchronize, typical_error
from steps import (
    critic_step,
    double_backward,
    four_passes,
    generator_step,
    make_critic,
    make_images,
    plain,
    without_rewrites,
)

BATCH = 64
WAYS = {
    "four passes": four_passes,
    "without rewrites": without_rewrites,
    "double backward": double_backward,
    "no normalisation": plain,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [critic_step, generator_step], ids=lambda step: step.__name__)
@pytest.mark.parametrize("critic", ["CNN 32", "ResNet 32"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def bench_step(benchmark, device, critic, step, way):
    net = make_critic(critic, torch.float32, torch.channels_last, device)
    x = make_images(critic, BATCH, torch.float32, torch.channels_last, device)
    if WAYS[way] is not plain:
        assert typical_error(step(WAYS[way], net, x), step(double_backward, net, x)) < 1e-4

    def timed():
        step(WAYS[way], net, x)
        if device == "cuda":
            synchronize()

    benchmark.group = f"{step.__name__}, {critic}, batch {BATCH}, {device}"
    benchmark.extra_info["GFLOP"] = round(count_flops(timed) / 1e9, 2)
    benchmark.pedantic(timed, rounds=5, warmup_rounds=1)

"""Critic and generator steps of the shipped critics, four ways: `make bench`, or `pytest benchmarks/bench_steps.py`.

Results are checked against double backward before they are timed. `extra_info` has the FLOPs.
"""

import pytest
import torch

from gnfast.bench.agree import typical_error
from gnfast.bench.clock import synchronize
from gnfast.bench.count import count_flops
from gnfast.bench.networks import shipped
from gnfast.bench.steps import critic_step, generator_step
from gnfast.bench.ways import double_backward, four_passes, plain, without_rewrites

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
    network = shipped(critic)
    net = network.critic(torch.float32, torch.channels_last, device)
    x = network.images(BATCH, torch.float32, torch.channels_last, device)
    if WAYS[way] is not plain:
        assert typical_error(step(WAYS[way], net, x).values, step(double_backward, net, x).values) < 1e-4

    def timed():
        step(WAYS[way], net, x)
        synchronize()

    benchmark.group = f"{step.__name__}, {critic}, batch {BATCH}, {device}"
    benchmark.extra_info["GFLOP"] = round(count_flops(timed) / 1e9, 2)
    benchmark.pedantic(timed, rounds=5, warmup_rounds=1)

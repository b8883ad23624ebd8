"""The minutes of a run, predicted from what its iteration launches."""

import dataclasses

import pytest
import torch

import gnfast
from gnfast.bench import cost
from gnfast.bench.count import Launch, Work
from gnfast.bench.critics import Z_DIM, shipped
from gnfast.bench.iteration import iteration_cost
from gnfast.bench.run_time import Rates, iteration_work, run_time
from gnfast.config.presets import PRESETS

NHWC = torch.channels_last


@pytest.mark.parametrize(
    ("preset", "network", "minutes"), [("gngan-cifar10-cnn", "CNN 32", 5), ("gngan-cifar10-resnet", "ResNet 32", 30)]
)
def test_a_papers_run_is_counted_to_take_minutes(preset, network, minutes):
    config, found = PRESETS[preset].config, iteration_work(preset)
    assert run_time(found, config.steps).total <= minutes
    # The same products as those that the critic's Plan and the generator's run tell.
    net = shipped(network)
    plan = gnfast.trace(net.critic(torch.float32, NHWC), net.images(2, torch.float32, NHWC))
    generator = gnfast.rewrite(net.generator(torch.float32, NHWC))
    expected = iteration_cost(config, plan, *cost.generator(generator, Z_DIM)).flops
    assert found.flops == pytest.approx(expected, rel=0.01)


def test_parts_of_a_run_follow_each_other():
    launched = [Launch("convolution", "", 60, 40), Launch("elementwise", "", 30, 10)]
    rates = Rates(flop_per_s=10.0, bytes_per_s=5.0, gap_s=0.5)
    found = run_time(Work(100, 20, launched), 60, rates)
    assert dataclasses.astuple(found) == (10, 8, 1) and found.total == 19
    assert run_time(Work(100, 200, launched), 60, rates).products == 40

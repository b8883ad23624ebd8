"""A whole training iteration of GN-GAN (Algorithm 1): gnfast's against the papers' way, by the program that trains.

The papers' way is the same program with double backward in both steps, generated images detached in the critic's, and
the critic's weights frozen in the generator's, as the official code has it (basiclab/GNGAN-PyTorch, train.py).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import gnfast
from gnfast.bench import cases, cost
from gnfast.bench.cost import Cost
from gnfast.bench.mode import PAPERS, Mode
from gnfast.bench.networks import SHIPPED, Z_DIM, Network
from gnfast.bench.steps import Result
from gnfast.data.dataset import ImageDataset
from gnfast.train.config import Config
from gnfast.train.state import State

PAPERS_WAY: dict[str, Any] = {"impl": "reference", "rewrite": False}
# variant: what it changes in the settings, beside the memory format that its mode names.
SETTINGS: dict[str, dict[str, Any]] = {
    cases.OURS: {},
    "gnfast, no rewrites": {"rewrite": False},
    cases.A: PAPERS_WAY,
    cases.B: PAPERS_WAY,
}


def settings(network: Network, batch: int) -> Config:
    """GN-GAN's settings for a shipped network; the generator's batch is twice the critic's."""
    family, resolution = SHIPPED[network.name]
    residual = family == "resnet"
    return Config(
        data="noise",
        resolution=resolution,
        model=family,
        width=network.width,
        z_dim=Z_DIM,
        loss="hinge" if residual else "non-saturating",
        n_dis=5 if residual else 1,
        batch_d=batch,
        batch_g=2 * batch,
        lr_d=4e-4 if residual else 2e-4,
        lr_decay="linear" if residual else "none",
    )


def iteration_case(network: Network, setup: "cases.Setup") -> "cases.Case":
    """The comparison for one network; `setup.batch` is the number of real images in a critic update."""
    config = settings(network, setup.batch)
    variants = {
        name: cases.Variant(
            partial(_prepared, network, dataclasses.replace(config, **changes), mode, setup.device),
            mode,
            # Adam's first steps are the gradients' signs: only in float32 do losses stay together over n_dis updates.
            cases.B if setup.precision == "float32" else None,
        )
        for name, changes in SETTINGS.items()
        for mode in [PAPERS if name == cases.A else setup.tuned]
    }
    name = f"iteration, n_dis {config.n_dis}, batch {config.batch_d}/{config.batch_g}"
    least = iteration_cost(network, config, setup)
    return cases.Case(name, network.name, network.shape, setup, variants, None, least)


def iteration_cost(network: Network, config: Config, setup: "cases.Setup") -> Cost:
    """What an iteration costs at least: n_dis · (G forward + critic step) + G forward and backward + critic's part."""
    device, mode = setup.device, setup.tuned
    with mode.active(device):
        critic = network.critic(torch.float32, mode.layout, device)
        plan = gnfast.trace(critic, network.images(2, torch.float32, mode.layout, device))
        forward, both = cost.generator(gnfast.rewrite(network.generator(torch.float32, mode.layout, device)), Z_DIM)
    update = forward * config.batch_d + cost.critic_step(plan, 2 * config.batch_d)
    return update * config.n_dis + both * config.batch_g + cost.generator_step(plan, config.batch_g)


def noise(network: Network, count: int) -> ImageDataset:
    """Images without content, the same ones every time: what they show makes no difference to the time."""
    generator = torch.Generator().manual_seed(3)
    return ImageDataset("noise", torch.randint(256, (count, *network.shape), dtype=torch.uint8, generator=generator))


def _prepared(network: Network, config: Config, mode: Mode, device: torch.device) -> Callable[[], Result]:
    """A step that is one iteration; the first returns its losses, which are those of every other variant's first."""
    layout = "channels_last" if mode.layout == torch.channels_last else "contiguous"
    state = State(dataclasses.replace(config, memory_format=layout), noise(network, 4 * config.batch_d), device)
    checked = False

    def step() -> Result:
        nonlocal checked
        state.update()
        if checked:
            # Reading losses at every step would make a GPU wait for Python.
            return Result(None)
        checked = True
        return Result(torch.tensor([list(state.take_losses().values())]))

    return step

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
from gnfast.bench import cost
from gnfast.bench.baselines import repair
from gnfast.bench.case import CAPTURED, EAGER, NO_REWRITES, A, B, Case, Setup, Variant, remembered
from gnfast.bench.cost import Cost
from gnfast.bench.critic_steps import Result
from gnfast.bench.critics import SHIPPED, Z_DIM, Network
from gnfast.bench.mode import PAPERS, Mode
from gnfast.config.config import Config
from gnfast.config.presets import PRESETS
from gnfast.data.dataset import ImageDataset
from gnfast.train.state import State

PAPERS_WAY: dict[str, Any] = {"impl": "reference", "rewrite": False, "cuda_graph": False}


def settings(network: Network, batch: int) -> Config:
    """GN-GAN's settings for a shipped network; the generator's batch is twice the critic's."""
    family, resolution = SHIPPED[network.name]
    published = PRESETS["gngan-cifar10-resnet" if family == "resnet" else "gngan-cifar10-cnn"].config
    own = {"data": "noise", "resolution": resolution, "width": network.width, "z_dim": Z_DIM}
    return dataclasses.replace(published, **own, batch_d=batch, batch_g=2 * batch)


def iteration_case(network: Network, setup: Setup) -> Case:
    """The comparison for one network; `setup.batch` is the number of real images in a critic update.

    Precision is the program's own, as `gnfast train` has it: an autocast around the optimiser would go on using the
    casts of weights that the optimiser has changed.
    """
    config = settings(network, setup.batch)
    images = noise(network, 4 * config.batch_d)
    device, tuned = setup.device, setup.tuned
    searched = dataclasses.replace(tuned, search=not network.large)
    # Running double backward once more, as the yardstick, takes long where images are large.
    yardstick = None if network.large else B
    variant = partial(iteration_variant, config, images, device)
    variants = {
        CAPTURED: variant(tuned, yardstick),
        A: variant(PAPERS, None, **PAPERS_WAY),
        B: variant(searched, B, **PAPERS_WAY),
        EAGER: variant(tuned, yardstick, cuda_graph=False),
        NO_REWRITES: variant(tuned, yardstick, cuda_graph=False, rewrite=False),
    }
    name = f"iteration, n_dis {config.n_dis}, batch {config.batch_d}/{config.batch_g}"
    truth = partial(first_losses, config, images, device)
    known = partial(remembered, (name, network, setup.batch, device), truth)
    with tuned.active(device):
        critic = network.critic(torch.float32, tuned.layout, device)
        plan = gnfast.trace(critic, network.images(2, torch.float32, tuned.layout, device))
        generator = gnfast.rewrite(network.generator(torch.float32, tuned.layout, device))
        least = iteration_cost(config, plan, *cost.generator(generator, Z_DIM))
    return Case(name, network.name, network.shape, setup, setup.chosen(variants), known, least, trains=True)


def iteration_variant(
    config: Config,
    images: ImageDataset,
    device: torch.device,
    mode: Mode,
    budget: str | None,
    *,
    repaired: bool = False,
    **changes: Any,
) -> Variant:
    """A variant of a case whose step is one iteration of a training.

    Args:
        config, images: what is trained, on which images.
        device: where.
        mode, budget: as for `Variant`.
        repaired: with double backward, repair its convolutions and make the images of all updates ahead, as gnfast
            does on a GPU: all that makes it faster.
        changes: settings that replace those of `config`.
    """
    chosen = dataclasses.replace(config, **changes)
    make = partial(_prepared, images, chosen, mode, device, repaired=repaired)
    return Variant(make, mode, budget, captured=chosen.cuda_graph, own_precision=True)


def first_losses(config: Config, images: ImageDataset, device: torch.device) -> Result:
    """The truth about an iteration: the losses of the first by repaired double backward in float32."""
    exact = Mode(conv_tf32=False)
    with exact.active(device):
        return _first(program(images, dataclasses.replace(config, **PAPERS_WAY), exact, device, repaired=True))


def iteration_cost(config: Config, plan: gnfast.Plan, forward: Cost, both: Cost) -> Cost:
    """What an iteration costs at least: n_dis · (G forward + critic step) + G forward and backward + critic's part.

    `forward` and `both` are of the generator per image, as `cost.generator` gives them.
    """
    update = forward * config.batch_d + cost.critic_step(plan, 2 * config.batch_d)
    return update * config.n_dis + both * config.batch_g + cost.generator_step(plan, config.batch_g)


def noise(network: Network, count: int) -> ImageDataset:
    """Images without content, the same ones every time: what they show makes no difference to the time."""
    generator = torch.Generator().manual_seed(3)
    return ImageDataset("noise", torch.randint(256, (count, *network.shape), dtype=torch.uint8, generator=generator))


def program(images: ImageDataset, config: Config, mode: Mode, device: torch.device, *, repaired: bool = False) -> State:
    """The training program, in a mode's layout and precision; to be run in that mode without its autocast.

    With double backward it makes the images of each update by themselves, as the papers' code does, unless that is
    `repaired` (see `iteration_variant`).
    """
    layout = "channels_last" if mode.layout == torch.channels_last else "contiguous"
    precision = "bfloat16" if mode.autocast is not None else "tf32" if mode.matmul_tf32 else "float32"
    config = dataclasses.replace(config, memory_format=layout, precision=precision)
    state = State(config, images, device)
    if repaired:
        state.normalized = repair(state.normalized)
    else:
        state.generates_ahead &= config.impl != "reference"
    return state


def _prepared(
    images: ImageDataset, config: Config, mode: Mode, device: torch.device, *, repaired: bool
) -> Callable[[], Result]:
    """A step that is one iteration; what it returns is the losses of the first, which are those of every variant's."""
    state = program(images, config, mode, device, repaired=repaired)
    first = _first(state)
    if config.cuda_graph and device.type == "cuda":
        for _ in range(state.captured.warmup if state.captured else 0):
            state.update()
        if state.captured is None:
            raise RuntimeError("the program goes on without a CUDA graph")

    def step() -> Result:
        state.update()
        return first

    return step


def _first(state: State) -> Result:
    """The losses of the next iteration."""
    state.update()
    return Result(torch.tensor([list(state.take_losses().values())]))

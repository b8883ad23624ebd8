"""How long a training run would take at given rates: its iteration is counted on any machine, nothing is measured."""

import dataclasses
from dataclasses import dataclass

import torch

from gnfast.bench.count import Work, work
from gnfast.bench.gpu_ways import gpu_ways, nothing_computed
from gnfast.bench.launches import bytes_besides_products
from gnfast.bench.program import as_on_a_gpu
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset
from gnfast.train.state import State


@dataclass(frozen=True)
class Rates:
    """What is assumed of a GPU: of products, of memory, and of the time from one kernel of a graph to the next."""

    flop_per_s: float = 700e12
    bytes_per_s: float = 3.0e12
    gap_s: float = 1.5e-6


@dataclass(frozen=True)
class RunTime:
    """Minutes of a run, part by part; they follow each other.

    Attributes:
        products: arithmetic of convolutions and matrix products, or their bytes where these take longer.
        rest: the bytes of all other kernels.
        gaps: between kernels.
    """

    products: float
    rest: float
    gaps: float

    @property
    def total(self) -> float:
        return self.products + self.rest + self.gaps


def iteration_work(preset: str, precision: str = "bfloat16", width: float = 1.0) -> Work:
    """What a preset's iteration launches on a GPU, its draws, optimisers and moving average included."""
    config = PRESETS[preset].config
    config = dataclasses.replace(config, precision=precision, width=width * config.width, device="cpu")
    shape = 4 * config.batch_d, config.channels, config.resolution, config.resolution
    images = ImageDataset("nothing", torch.zeros(shape, dtype=torch.uint8))
    with as_on_a_gpu(), gpu_ways(), nothing_computed():
        state = State(config, images, torch.device("cpu"))
        state.generates_ahead = config.n_dis > 1
        return work(state.update)


def run_time(found: Work, steps: int, rates: Rates = Rates()) -> RunTime:
    """Of `steps` iterations, each of this work."""
    seconds = (
        max(found.flops / rates.flop_per_s, found.product_bytes / rates.bytes_per_s),
        bytes_besides_products(found) / rates.bytes_per_s,
        found.launches * rates.gap_s,
    )
    return RunTime(*(steps * s / 60 for s in seconds))

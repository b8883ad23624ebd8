"""What bfloat16 does to a critic update: the error of its gradient, beside what another batch changes.

python benchmarks/precision.py DATA [PRESET …] [--width 0.25]
"""

import argparse
import dataclasses
import itertools

import torch
from torch import Tensor

from gnfast.config.config import Config
from gnfast.config.presets import PRESETS
from gnfast.data import ImageDataset, load
from gnfast.train.state import State
from gnfast.train.step import critic_update

USUAL = ["gngan-cifar10-cnn", "gngan-cifar10-resnet"]


def first_gradients(config: Config, images: ImageDataset, precision: str, batches: int = 1) -> list[Tensor]:
    """Of the critic's losses on the first batches, each with the weights that the run begins with."""
    found = []
    for index in range(batches):
        state = State(dataclasses.replace(config, precision=precision), images, torch.device("cpu"))
        critic_update(state, next(itertools.islice(state.draws(), index, None)))
        found.append(torch.cat([p.grad.flatten().double() for p in state.critic.parameters() if p.grad is not None]))
    return found


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set by name, a folder or an archive of images")
    parser.add_argument("presets", nargs="*", default=USUAL)
    parser.add_argument("--width", type=float, default=0.25)
    options = parser.parse_args()
    for name in options.presets:
        # So that the draws of a step are several batches of the critic's.
        config = dataclasses.replace(PRESETS[name].config, width=options.width, n_dis=2)
        images = load(options.data, split=config.split, resolution=config.resolution, channels=config.channels)
        exact, other = first_gradients(config, images, "float64", batches=2)
        low, full = (relative(*first_gradients(config, images, p), exact) for p in ("bfloat16", "float32"))
        print(
            f"{name}, width {options.width:g}, {2 * config.batch_d} images: the critic's gradient is off by {low:.2%} "
            f"in bfloat16 and {full:.1e} in float32; that of another batch differs by {relative(other, exact):.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()

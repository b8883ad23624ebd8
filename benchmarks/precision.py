"""What bfloat16 does to an update's gradient: the error of its rounding, beside what another batch changes.

python benchmarks/precision.py DATA [PRESET …] [--width 0.25]
"""

import argparse
import copy
import dataclasses

import torch
from torch import Tensor, nn

import gnfast
from gnfast.config.presets import PRESETS
from gnfast.data import load, to_float
from gnfast.losses import LOSSES
from gnfast.train.networks import build_networks, sample

USUAL = ["gngan-cifar10-cnn", "gngan-cifar10-resnet"]


def critic_gradient(critic: nn.Module, images: Tensor, loss: str, low: bool) -> tuple[Tensor, Tensor]:
    """f̂ of the images, real ones first, and the gradient of the critic's loss; `low` under bfloat16 autocast."""
    critic.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        scores = gnfast.normalize_gradient(critic, images).to(images.dtype)
    LOSSES[loss].critic_terms(scores, len(images) // 2).sum().backward()
    return scores.detach().double(), torch.cat([p.grad.flatten().double() for p in critic.parameters()])


def relative(found: Tensor, exact: Tensor) -> float:
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a data set by name, a folder or an archive of images")
    parser.add_argument("presets", nargs="*", default=USUAL)
    parser.add_argument("--width", type=float, default=0.25)
    options = parser.parse_args()
    for name in options.presets:
        c = dataclasses.replace(PRESETS[name].config, width=options.width)
        images = load(options.data, split=c.split, resolution=c.resolution, channels=c.channels).images
        generator, critic = (net.to(memory_format=torch.channels_last) for net in build_networks(c))

        def batch(index: int, c=c, images=images, generator=generator) -> Tensor:
            real = to_float(images[index * c.batch_d : (index + 1) * c.batch_d], torch.device("cpu"))
            z = torch.randn(c.batch_d, c.z_dim, generator=torch.Generator().manual_seed(index))
            return torch.cat([real, sample(generator, z)]).contiguous(memory_format=torch.channels_last)

        first, second = batch(0), batch(1)
        exact = critic_gradient(copy.deepcopy(critic).double(), first.double(), c.loss, low=False)
        low, full = (critic_gradient(critic, first, c.loss, low=low) for low in (True, False))
        other = critic_gradient(critic, second, c.loss, low=False)
        print(
            f"{name}, width {options.width:g}, {2 * c.batch_d} images: f̂ off by {relative(low[0], exact[0]):.2%}, the "
            f"gradient by {relative(low[1], exact[1]):.2%} in bfloat16, {relative(full[1], exact[1]):.1e} in float32; "
            f"that of another batch differs by {relative(other[1], exact[1]):.0%}"
        )


if __name__ == "__main__":
    main()

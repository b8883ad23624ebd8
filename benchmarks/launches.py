"""What the critic's part of a step launches on a GPU, by kind: counted, on any machine that has Triton.

python benchmarks/launches.py [critic ...] [--precision bfloat16] [--each]
"""

import argparse
from functools import partial

import torch

from gnfast.bench.count import Work, work
from gnfast.bench.critic_steps import critic_step, four_passes, generator_step
from gnfast.bench.critics import SHIPPED, shipped
from gnfast.bench.gpu_ways import gpu_ways, nothing_computed
from gnfast.bench.mode import PRECISIONS, tuned

STEPS = {"critic": critic_step, "generator": generator_step}
CPU = torch.device("cpu")


def launched(name: str, step: str, precision: str, width: float = 1.0, batch: int = 128) -> Work:
    """The work of one of `STEPS` with a shipped critic."""
    network, mode = shipped(name, width), tuned(precision)
    net, x = network.critic(torch.float32, mode.layout), network.images(batch, torch.float32, mode.layout)
    with mode.active(CPU), gpu_ways(), nothing_computed():
        return work(partial(STEPS[step], four_passes, net, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critics", nargs="*", default=["CNN 32", "ResNet 32"], help=", ".join(SHIPPED))
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--each", action="store_true", help="list each launch as well")
    options = parser.parse_args()
    for name in options.critics:
        for step in STEPS:
            found = launched(name, step, options.precision)
            print(f"{name}, {step} step, 128 images, {options.precision}: {found.launches} launches")
            for kind, (count, moved) in found.by_kind().items():
                print(f"{count:6}  {kind:32} {moved / 1e6:10.2f} MB")
            for launch in found.launched if options.each else ():
                print(f"        {launch.kind:32} {launch.name:32} {launch.read:12} {launch.written:12}")


if __name__ == "__main__":
    main()

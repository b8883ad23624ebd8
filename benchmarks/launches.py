"""What the critic's part of a step launches on a GPU, by kind, and the bytes that this moves.

    python benchmarks/launches.py [critic ...] [--precision bfloat16] [--triton-convolutions] [--each]

Counted, on any machine that has Triton; nothing is computed.
"""

import argparse
import math
from functools import partial

import torch

from gnfast.bench.count import Work, work
from gnfast.bench.critic_steps import critic_step, four_passes, generator_step
from gnfast.bench.critics import SHIPPED, shipped
from gnfast.bench.gpu_ways import IN_TRITON, gpu_ways, nothing_computed
from gnfast.bench.mode import PRECISIONS, tuned
from gnfast.engine.operands import made_of, prepare
from gnfast.plan.plan import readers
from gnfast.plan.trace import record

NOT_FUSIBLE = ("convolution", "product")
STEPS = {"critic": critic_step, "generator": generator_step}
CPU = torch.device("cpu")


def launched(
    name: str,
    step: str,
    precision: str,
    width: float = 1.0,
    batch: int = 128,
    triton: tuple[str, ...] = IN_TRITON,
) -> Work:
    """The work of one of `STEPS` with a shipped critic, of which Triton does these operations."""
    network, mode = shipped(name, width), tuned(precision)
    net, x = network.critic(torch.float32, mode.layout), network.images(batch, torch.float32, mode.layout)
    with mode.active(CPU), gpu_ways(triton), nothing_computed():
        return work(partial(STEPS[step], four_passes, net, x))


def bytes_besides_products(found: Work) -> int:
    """What all launches move that could be one kernel with their neighbours."""
    return sum(n.read + n.written for n in found.launched if n.kind not in NOT_FUSIBLE)


def least_bytes(name: str, precision: str, batch: int = 128, width: float = 1.0) -> float:
    """What a critic's step moves besides its products at least, if all between two of them is one kernel in each pass.

    Then a kernel reads what products and other branches hand it and writes what the next ones read, each tensor once,
    and the signs of activations. Weights are read and written once each way; so are x and its conversion, ∇ₓf (read
    twice) and c₀.
    """
    network, mode = shipped(name, width), tuned(precision)
    net, x = network.critic(torch.float32, mode.layout), network.images(batch, torch.float32, mode.layout)
    with mode.active(CPU), gpu_ways():
        plan, recorded = record(net, x, (), {})
        made = made_of(plan, recorded, channels_last=True)
    counts, total = readers(plan.nodes, plan.output), 0.0
    for node, pushes in zip(plan.nodes, plan.pushes_forward, strict=True):
        size = batch * math.prod(node.output_shape) * node.itemsize
        if node.op.mask_bits:
            terms = len(node.inputs)
            through = terms + len(node.outputs) + node.op.mask_bits / 8 / node.itemsize
            back = sum(counts[value] for value in node.outputs) + 1 + node.op.mask_bits / 8 / node.itemsize
            total += size * (through * (1 + pushes) + back)
        elif not node.flops:
            total += size * (1 + pushes)
    new = prepare(made, recorded)
    pairs = [(t, recorded[origin]) for t, (_, origin, _) in zip(new, made, strict=True)]
    weights = sum(t.nbytes + source.nbytes for t, source in pairs if t is not source)
    low = x.numel() * (torch.finfo(plan.entry or x.dtype).bits // 8)
    converted = 0 if plan.entry is None else x.nbytes + low
    return total + 2 * weights + converted + x.nbytes + 3 * low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critics", nargs="*", default=["CNN 32", "ResNet 32"], help=", ".join(SHIPPED))
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--triton-convolutions", action="store_true", help="what the tuner may choose, for all of them")
    parser.add_argument("--each", action="store_true", help="list each launch as well")
    options = parser.parse_args()
    triton = (*IN_TRITON, "conv") if options.triton_convolutions else IN_TRITON
    for name in options.critics:
        for step in STEPS:
            found = launched(name, step, options.precision, triton=triton)
            print(f"{name}, {step} step, 128 images, {options.precision}: {found.launches} launches")
            for kind, (count, moved) in found.by_kind().items():
                print(f"{count:6}  {kind:32} {moved / 1e6:10.2f} MB")
            if step == "critic" and triton is IN_TRITON:
                moved, least = bytes_besides_products(found) / 1e6, least_bytes(name, options.precision) / 1e6
                print(f"        besides products {moved:.1f} MB, at least {least:.1f} MB: {moved / least:.2f}")
            for launch in found.launched if options.each else ():
                print(f"        {launch.kind:32} {launch.name:32} {launch.read:12} {launch.written:12}")


if __name__ == "__main__":
    main()

"""What a step's parts launch on a GPU, the critic's and the generator's, and the bytes that this moves: counted."""

import math
from functools import partial

import torch

from gnfast import grouped_batch_norm, rewrite
from gnfast.bench.count import Work, work
from gnfast.bench.critic_steps import critic_step, four_passes, generator_step
from gnfast.bench.critics import Z_DIM, shipped
from gnfast.bench.gpu_ways import IN_TRITON, gpu_ways, nothing_computed
from gnfast.bench.iteration import settings
from gnfast.bench.mode import tuned
from gnfast.engine.operands import made_of, prepare
from gnfast.plan.plan import readers
from gnfast.plan.tracing import record

NOT_FUSIBLE = ("convolution", "product")
GENERATOR_STEPS = ("forward", "forward and backward")
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


def generated(
    name: str,
    step: str,
    precision: str,
    width: float = 1.0,
    batch: int = 64,
    triton: tuple[str, ...] = IN_TRITON,
) -> Work:
    """The work of a shipped network's generator, of which Triton does these operations; without any, PyTorch all.

    Args:
        step: of `GENERATOR_STEPS`: the images for all critic updates of an iteration, without gradients; or, for its
            own update, the images, and from their gradients all others.
        batch: images of a critic update; the generator's own has twice as many.
    """
    network, mode = shipped(name, width), tuned(precision)
    generator = network.generator(torch.float32, mode.layout)
    merged, groups = rewrite(generator), settings(network, batch).n_dis if step == "forward" else 1
    z = torch.zeros(groups * batch if step == "forward" else 2 * batch, Z_DIM)

    def forward() -> torch.Tensor:
        # Casts of weights are kept while autocast is on.
        with mode.active(CPU), grouped_batch_norm(merged, groups):
            return merged(z)

    def run() -> object:
        if step == "forward":
            with torch.no_grad():
                return forward()
        images = forward()
        return torch.autograd.grad(images, list(generator.parameters()), images.detach())

    with gpu_ways(triton), nothing_computed():
        return work(run)


def bytes_besides_products(found: Work) -> int:
    """What all launches move that could be one kernel with their neighbours."""
    return sum(n.read + n.written for n in found.launched if n.kind not in NOT_FUSIBLE)


def least_bytes(name: str, precision: str, batch: int = 128, width: float = 1.0) -> float:
    """What a critic's step moves besides its products at least, if all between two of them is one kernel in each pass.

    Then a kernel reads what products and other branches hand it and writes what the next ones read, each tensor once,
    and the signs of activations. Weights are read and written once each way; so are x and its conversion, ∇ₓf (read
    twice) and c₀. That the last layer's weight serves as a cotangent saves as many bytes as its gradient takes, which
    is a sum and no product.
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
    _, new = prepare(plan, made, x, recorded)
    pairs = [(t, recorded[origin]) for t, (_, origin, _) in zip(new, made, strict=True)]
    weights = sum(t.nbytes + source.nbytes for t, source in pairs if t is not source)
    low = x.numel() * (torch.finfo(plan.entry or x.dtype).bits // 8)
    converted = 0 if plan.entry is None else x.nbytes + low
    return total + 2 * weights + converted + x.nbytes + 3 * low

"""Gradients averaged over the processes of a run, in buckets that are on their way while the backward goes on.

Averaging is linear, and weights are the same in all processes, so that contributions to a gradient may be averaged
one by one: those that the critic's tangent pass hands out, first layer first (`gnfast.engine.handout`), and those that
autograd leaves in `.grad`, of the generator last layer first. Of a weight that gets both kinds, or is in two calls,
each is sent by itself.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gnfast.engine.handout import handing_out
from gnfast.train.parallel import Group

BUCKET_BYTES = 1 << 20
"""Small enough for several buckets of a critic for 32 pixels, 4 MB; larger layers make buckets of their own."""


def bucket_bytes(world: int) -> int:
    """How many bytes a bucket holds at least: all gradients on many nodes, where the links' latency costs most.

    By the model of docs/scaling.md, whose nodes have 8 GPUs, buckets of this size hide most where images are large,
    and where they are small lose less than 0.05 ms against one.
    """
    return BUCKET_BYTES * max(1, world // 8) ** 2


@contextlib.contextmanager
def averaged(group: Group, parameters: Iterable[nn.Parameter], early: bool = True) -> Iterator[None]:
    """At the end of the block, gradients that backwards in it gave the parameters are their means over the processes.

    All processes must come by the same gradients in the same order.

    Args:
        group: the processes.
        parameters: their `.grad` None or to be averaged too.
        early: send gradients as soon as they are found; False: at the end, where several backwards add to them.
    """
    if group.world == 1:
        yield
        return
    buckets, hooks = Buckets(group, parameters), []
    try:
        if early:
            hooks = [parameter.register_post_accumulate_grad_hook(buckets.drain) for parameter in buckets.parameters]
        with handing_out(buckets) if early else contextlib.nullcontext():
            yield
    finally:
        for hook in hooks:
            hook.remove()
    buckets.finish()


class Buckets:
    """Takes the gradients of parameters and brings back their means, once: a `gnfast.engine.handout.Receiver`."""

    def __init__(self, group: Group, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.bucket_bytes = bucket_bytes(group.world)
        self._world, self._own = group.world, {id(parameter) for parameter in self.parameters}
        self._filling: list[tuple[Tensor, Tensor]] = []
        self._sent: list[tuple[dist.Work, Tensor, list[Tensor], list[Tensor]]] = []

    def takes(self, operand: Tensor) -> bool:
        return id(operand) in self._own

    def drain(self, parameter: Tensor) -> None:
        """Takes what autograd has left in `.grad`, which is None from now on until the end."""
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            self.take([(parameter, gradient)])

    @torch.no_grad()
    def take(self, gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._filling += gradients
        if sum(gradient.nbytes for _, gradient in self._filling) >= self.bucket_bytes:
            self._send()

    @torch.no_grad()
    def finish(self) -> None:
        """Waits for the means and puts them into `.grad`, views of what was sent."""
        for parameter in self.parameters:
            self.drain(parameter)
        if self._filling:
            self._send()
        # A backward that comes too late keeps its gradients.
        self._own.clear()
        for work, flat, parameters, _ in self._sent:
            # On a GPU only its stream waits.
            work.wait()
            for parameter, mean in zip(parameters, _views(flat.div_(self._world), parameters), strict=True):
                parameter.grad = mean if parameter.grad is None else parameter.grad + mean

    def _send(self) -> None:
        filled, self._filling = self._filling, []
        for dtype in dict.fromkeys(gradient.dtype for _, gradient in filled):
            parameters, gradients = map(list, zip(*(pair for pair in filled if pair[1].dtype == dtype), strict=True))
            flat = gradients[0].new_empty(sum(map(_room, parameters)))
            torch._foreach_copy_(_views(flat, parameters), gradients)
            # Gradients are kept: the stream that copies them need not be the one that made them, which could use their
            # memory.
            self._sent.append((dist.all_reduce(flat, async_op=True), flat, parameters, gradients))


def _room(parameter: Tensor) -> int:
    """Entries that it takes in a bucket: optimisers' kernels read gradients in fours."""
    return -(-parameter.numel() // 4) * 4


def _views(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Parts of `flat`, one after the other, each with the shape and the layout of its parameter, without its gaps."""
    starts = accumulate(map(_room, parameters[:-1]), initial=0)
    # Made like a parameter that has gaps or overlaps, a tensor has none.
    strides = (p.stride() if p.is_contiguous() else torch.empty_like(p, device="meta").stride() for p in parameters)
    return [flat.as_strided(p.shape, s, start) for p, s, start in zip(parameters, strides, starts, strict=True)]

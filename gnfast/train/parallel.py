"""Data parallelism: one process per device, started by torchrun, training the same networks on parts of each batch.

Every process has its part of the random numbers of a whole batch, so that a run means the same on any number of
processes. `buckets.py` averages the gradients.
"""

import contextlib
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gnfast.runs import torchrun
from gnfast.runs.checkpoint import LostError
from gnfast.runs.signals import fatal_stops
from gnfast.steps.captured import CapturedStep, CaptureError, Step

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes of a run, and this one's place among them; one process alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch (B, ...), B a multiple of `world`."""
        return batch.chunk(self.world)[self.rank] if self.world > 1 else batch

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.world == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.world == 1:
            return flag
        # A CPU tensor: it goes over gloo and does not make a GPU wait.
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags)
        return bool(flags.item())

    @property
    def processes(self) -> dist.ProcessGroup | None:
        """As functions take them that share work among processes; None for one alone."""
        return dist.group.WORLD if self.world > 1 else None

    def require_same(self, what: str, value: str | None) -> None:
        """Raises RuntimeError where a value is another one in another process."""
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
            if len(set(values)) > 1:
                raise RuntimeError(f"{what}: the processes of the run have different ones, wanted the same in all")

    def of_leader(self, content: T) -> T:
        """What the leader has: plain values and tensors on the CPU, in nests."""
        if self.world == 1:
            return content
        found = [content]
        dist.broadcast_object_list(found, 0)
        return found[0]

    def as_leads(self, net: nn.Module) -> nn.Module:
        """A network with the leader's buffers, such as the statistics of batch norm that is not synchronised."""
        if self.world > 1:
            net = copy.deepcopy(net)
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)
        return net

    @contextlib.contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leader runs the block before the others do, so that they find what it leaves on disk.

        It goes on when all have: they must not find what it writes next.
        """
        if not self.leads:
            dist.barrier()
        yield
        for _ in range(2 if self.leads else 1):
            if self.world > 1:
                dist.barrier()


ALONE = Group()


class CapturedTogether(CapturedStep):
    """A `CapturedStep` of several processes: either all of them replay a graph, or in each the call raises.

    One that went on without a graph would wait in other all-reduces than those that replay theirs.

    Args:
        step, device: as for `CapturedStep`.
        group: the processes.
    """

    def __init__(self, step: Step, device: torch.device, group: Group) -> None:
        super().__init__(step, device)
        self._group = group

    def _capture(self, args: tuple[Any, ...]) -> None:
        failure = None
        try:
            super()._capture(args)
        except CaptureError as error:
            failure = error
        # Recording sends nothing, so that all come here, whoever fails.
        if self._group.any(failure is not None):
            self.reset()
            raise failure or CaptureError("another process of the run could not capture its step")


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group that torchrun's environment variables describe, or one process alone without them."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with torchrun.while_parent_lives() if torchrun.serves() else contextlib.nullcontext():
        with fatal_stops():
            _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        try:
            yield Group(dist.get_rank(), world)
            # Who is done first must not hang up while another still waits for the last answer.
            dist.barrier()
        finally:
            dist.destroy_process_group()


def _meet(backend: str) -> None:
    if torchrun.serves() and torchrun.is_gone():
        raise LostError("the torchrun that has started this process has ended")
    # Others wait while the leader prepares data or evaluates; a process that is lost is noticed at once all the same.
    dist.init_process_group(backend, timeout=timedelta(hours=12))


class _Mean(torch.autograd.Function):
    """The mean of a tensor over the processes; its gradient is the mean of theirs."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        values = values.contiguous().clone()
        dist.all_reduce(values)
        return values / dist.get_world_size()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _Mean.apply(grad)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with the statistics of all processes' batches, on any device and in any number of dimensions.

    PyTorch's own runs on GPUs only. Parts of the batch are of equal size.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        over, shape = [0, *range(2, input.dim())], (-1, *[1] * (input.dim() - 2))
        mean = _Mean.apply(wide.mean(over))
        centred = wide - mean.view(shape)
        var = _Mean.apply(centred.square().mean(over))
        self._follow(mean, var, wide.numel() // wide.shape[1] * dist.get_world_size())
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normal = centred * scale.view(shape)
        return (normal + self.bias.view(shape) if self.affine else normal).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Running averages, if there are any, go on."""
        if self.running_mean is not None:
            self.num_batches_tracked += 1
            # Without a momentum all batches count the same.
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean), momentum)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var), momentum)


def synchronise_batch_norm(net: nn.Module, device: torch.device) -> nn.Module:
    """The network with batch norms that use the statistics of all processes; parameters, buffers and keys stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for module in net.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = SyncBatchNorm
    return net

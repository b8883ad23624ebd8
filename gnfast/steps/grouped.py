"""Several batches through a generator at once, each with its own batch statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from gnfast.errors import InputError
from gnfast.kernels.batch_norm import Running
from gnfast.steps.batch_norm import Measured, More, Normalise, fits, is_ordinary, measured


@contextmanager
def grouped_batch_norm(module: nn.Module, groups: int) -> Iterator[None]:
    """While it is open, a forward of `groups` batches in one equals as many forwards, one after the other.

    Batch normalisation in training takes the statistics of each of the `groups` equal parts of the batch for that part,
    and updates running statistics and counters part by part, in order. So the images for all of an iteration's critic
    steps come out of one forward with larger, faster convolutions:

        with torch.no_grad(), gnfast.grouped_batch_norm(generator, n_dis):
            fakes = generator(z).chunk(n_dis)  # z (n_dis · B, ...)

    Two things differ in their order: dropout's random numbers, and the running statistics of a norm that a forward
    calls twice. Differentiable as the module is, but for parts under `torch.utils.checkpoint`, which a backward runs
    again without this. On GPUs each batch norm is one pair of passes for all batches.

    Args:
        module: the one that runs inside; `gnfast.rewrite`'s too. It is not modified otherwise.
        groups: how many batches a forward has; every batch norm's input is (groups · B, C, ...).

    Raises:
        InputError: something in `module` counts forwards in another way (spectral norm in training, SyncBatchNorm), or,
            in the forward, a batch that cannot be divided.
    """
    if groups < 1:
        raise InputError(f"groups: got {groups}, wanted at least 1")
    for name, child in module.named_modules():
        if child.training and (reason := _counts_forwards(child)):
            raise InputError(f"module: {name or type(child).__name__} {reason}; wanted one without, or in eval mode")
    with _Grouped(module, groups):
        yield


class _Grouped(TorchFunctionMode):
    def __init__(self, module: nn.Module, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self, input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
    ) -> Tensor:
        if not training or self.groups == 1:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if len(input) % self.groups:
            raise InputError(f"groups: a batch norm got a batch of {len(input)}, wanted a multiple of {self.groups}")
        found = statistics(input, running_mean, running_var, weight, bias, momentum, eps, innermost=self)
        if found is not None:
            _, mean, rstd = found
            return Normalise.apply(input, weight, bias, mean, rstd, eps, False)
        cumulative = self.counted(running_mean)
        results = []
        for part in input.chunk(self.groups):
            results.append(F.batch_norm(part, running_mean, running_var, weight, bias, training, momentum, eps))
            if cumulative and momentum:
                # The plain mean over all batches so far: 1/t is followed by 1/(t + 1).
                momentum = momentum / (1 + momentum)
        return torch.cat(results)

    def counted(self, running_mean: Tensor | None) -> bool:
        """Counts all batches of a norm whose module has counted one; whether it averages over all so far."""
        # Asked of the modules now: `torch.func.functional_call` gives them other buffers for one forward.
        norms = (m for m in self.norms if running_mean is not None and m.running_mean is running_mean)
        norm = next(norms, None)
        if norm is not None and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(self.groups - 1)
        return norm is not None and norm.momentum is None


def statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    more: More | None = None,
    innermost: _Grouped | None = None,
) -> Measured | None:
    """What `F.batch_norm` in training normalises, and its means and 1/σ, (groups, C), as groupings around this ask for.

    All that it writes to is written, for `gnfast.steps.batch_norm.Normalise` to go on. None, and nothing is written,
    where that does not serve.

    Args:
        input, running_mean, running_var, weight, bias, momentum, eps: those of `F.batch_norm`.
        more: is added to its input before.
        innermost: a grouping that calls this, inside of all that are found to be open.
    """
    if torch.compiler.is_compiling():
        return None
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, _Grouped)]
    modes = [mode for mode in (*modes, innermost) if mode is not None and mode.groups > 1]
    groups = modes[0].groups if modes else 1
    # What PyTorch refuses, it is to refuse in its own words.
    numbers = isinstance(momentum, int | float) and isinstance(eps, int | float) and eps > 0
    ordinary = numbers and (more is None or is_ordinary(more.term))
    if len(modes) > 1 or not ordinary or not fits(input, running_mean, running_var, weight, bias, groups):
        return None
    running = None
    if running_mean is not None:
        running = Running(running_mean, running_var, momentum, any(mode.counted(running_mean) for mode in modes))
    return measured(input, more, groups, eps, running)


def _counts_forwards(module: nn.Module) -> str | None:
    """Why one forward of a module in training is not several, batch norm aside."""
    if isinstance(module, nn.SyncBatchNorm):
        return "takes statistics over processes"
    legacy = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    if legacy or isinstance(module, _SpectralNorm):
        return "iterates once per forward"
    return None

"""Many tensors copied in few launches."""

from collections.abc import Sequence

import torch
from torch import Tensor


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source to its target, of the same shape and dtype, without gradients.

    A launch for each dtype where PyTorch has one: of lists with several dtypes, as batch norm's counters make them, it
    would copy one tensor after the other.
    """
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        of_kind = kinds.setdefault(target.dtype, ([], []))
        of_kind[0].append(target)
        of_kind[1].append(source)
    with torch.no_grad():
        for of_kind in kinds.values():
            torch._foreach_copy_(*of_kind)

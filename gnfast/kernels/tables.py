"""What the Triton kernels that take the tensors of all layers at once are told of each: a table on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

_TABLES: dict[tuple[object, ...], Tensor] = {}


def table(device: torch.device, programs: Sequence[int], rows: Sequence[Sequence[int]]) -> Tensor | None:
    """Which item each program works on, then per item a row: its first program, and what `rows` say of it.

    Kept for good, as a CUDA graph may read it at any time; small, and one for each set of shapes. None where it would
    have to be copied to the device while a graph is captured.

    Args:
        programs: how many each item takes, in order.

    Returns:
        int32 (Σ programs + items · (1 + fields),).
    """
    key = device, tuple(programs), tuple(map(tuple, rows))
    if key not in _TABLES:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        items = [item for item, count in enumerate(programs) for _ in range(count)]
        firsts = [sum(programs[:item]) for item in range(len(programs))]
        fields = [field for first, row in zip(firsts, rows, strict=True) for field in (first, *row)]
        _TABLES[key] = torch.tensor([*items, *fields], dtype=torch.int32, device=device)
    return _TABLES[key]

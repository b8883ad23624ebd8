"""Normalisers that have fused kernels: what the kernels compile in, and where they run.

`gnfast.heads` has the formulas in plain PyTorch."""

import functools
from types import ModuleType
from typing import NamedTuple

from gnfast.kernels.backend import choose


class Formula(NamedTuple):
    """One of the formulas φ(u, m) that the kernels know, m = ‖g − centre‖₂."""

    kind: str
    """gn: u / (m + |u|); gn0: u / m; gn1: u / (m + 1); gran: u m / (τ (m² + ε))."""
    complement: bool = False
    """u is 1 − f instead of f."""
    centre: float = 0.0
    tau: float = 1.0
    eps: float = 0.1


@functools.cache
def head_kernels(device_type: str) -> ModuleType | None:
    """The module with `normalize` and `pull` for that device; None where plain PyTorch does it."""
    if choose("head", device_type) != "triton":
        return None
    from gnfast.kernels.head import triton as heads_triton

    return heads_triton

"""Normalisers that have fused kernels: what these are told of them. `gnfast.heads` has the formulas in plain PyTorch.

`implementation("head", device_type)` has `normalize` and `pull`, or is None where plain PyTorch does it.
"""

from typing import NamedTuple


class Formula(NamedTuple):
    """One of the formulas φ(u, m) that the kernels know, m = ‖g − centre‖₂."""

    kind: str
    """gn: u / (m + |u|); gn0: u / m; shift: u / (τ (m + ε)); gran: u m / (τ (m² + ε))."""
    complement: bool = False
    """u is 1 − f instead of f."""
    centre: float = 0.0
    tau: float = 1.0
    eps: float = 0.1

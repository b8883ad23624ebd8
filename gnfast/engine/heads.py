"""The papers' normalisers, by name. Adding one begins with an entry of `METHODS`; CONTRIBUTING.md has the rest."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gnfast.engine.head import Head as Head
from gnfast.engine.head import Partials as Partials
from gnfast.engine.head import Value as Value
from gnfast.engine.head import apply_head as apply_head
from gnfast.engine.head import grad_norm as grad_norm
from gnfast.engine.head import normalize as normalize
from gnfast.engine.head import normalized_grad_norm as normalized_grad_norm
from gnfast.engine.head import plain as plain
from gnfast.engine.head import pull as pull
from gnfast.engine.head import safe_divisor
from gnfast.errors import InputError
from gnfast.kernels.head import Formula


def _gn_partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    # Two divisions: the square of a small float32 total would underflow.
    total = safe_divisor(n + f.abs())
    return n / total / total, -f / total / total


GN = Head("gn", lambda f, n: f / safe_divisor(n + f.abs()), _gn_partials, formula=Formula("gn"))
"""f̂ = f / (n + |f|) (GN-GAN, Wu et al., ICCV 2021, eq. 11): sign(f) where n = 0, and 0 where f is 0 as well."""


def _gn0_partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    alive, safe = n != 0, safe_divisor(n)
    return alive / safe, -(alive * f) / safe / safe


def _gn0(f: Tensor, n: Tensor) -> Tensor:
    at_zero = torch.where(f == 0, 0, f.detach() * torch.inf)
    return torch.where(n == 0, at_zero, f / safe_divisor(n))


GN0 = Head("gn0", _gn0, _gn0_partials, formula=Formula("gn0"))
"""f̂ = f / n (GN-GAN's ablation ζ = 0): ±∞ with zero gradient where n = 0, and 0 where f is 0 as well."""


def _check_positive(**options: float) -> None:
    for name, given in options.items():
        if not given > 0:
            raise InputError(f"{name}: got {given!r}, wanted a positive number")


@functools.lru_cache
def gran(tau: float = 1.0, eps: float = 0.1) -> Head:
    """f̂ = f n / (τ (n² + ε)) (GraN-GAN, Bhaskara et al., WACV 2022, eq. 20): Lipschitz constant ≤ 1/τ; 0 at n = 0.

    Args:
        tau: positive; the paper writes K = 1/τ and uses K = 0.83 on CIFAR-10.
        eps: positive; the smoothing of small gradients.
    """
    _check_positive(tau=tau, eps=eps)

    # 1 / (n + ε/n) is n / (n² + ε) without n², which overflows and underflows where n does not.
    def inverse(n: Tensor) -> Tensor:
        safe = safe_divisor(n)
        return 1 / (safe + eps / safe)

    def partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        # ∂/∂n of n / (n² + ε), from whichever of n²/ε and ε/n² is at most 1.
        small, large = (n / eps**0.5).clamp(max=1).square(), (eps**0.5 / safe_divisor(n)).clamp(max=1).square()
        of_small = (1 - small) / (1 + small).square() / eps
        of_large = (large - 1) / (1 + large).square() / safe_divisor(n) / safe_divisor(n)
        by_n = torch.where(n <= eps**0.5, of_small, of_large)
        return inverse(n) / tau, f / tau * by_n

    formula = Formula("gran", tau=float(tau), eps=float(eps))
    return Head("gran", lambda f, n: f * inverse(n) / tau, partials, formula=formula)


@functools.lru_cache
def gran_shift(tau: float = 1.0, eps: float = 0.1) -> Head:
    """f̂ = f / (τ (n + ε)) (GraN-GAN, after eq. 16: R(n) = 1 / (n + ε)): Lipschitz constant < 1/τ; f / (τ ε) at n = 0.

    Args:
        tau, eps: positive, as in `gran`.
    """
    _check_positive(tau=tau, eps=eps)

    def partials(f: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        return 1 / (n + eps) / tau, -f / (n + eps) / (n + eps) / tau

    formula = Formula("shift", tau=float(tau), eps=float(eps))
    return Head("gran-shift", lambda f, n: f / (n + eps) / tau, partials, formula=formula)


GN1 = dataclasses.replace(gran_shift(tau=1.0, eps=1.0), name="gn1")
"""f̂ = f / (n + 1) (GN-GAN's ablation ζ = 1)."""


def _of_complement(head: Head, name: str, centre: float) -> Head:
    """The head of 1 − f."""

    def partials(f: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        by_f, by_m = head.partials(1 - f, m)
        return -by_f, by_m

    formula = head.formula._replace(complement=True, centre=centre)
    return Head(name, lambda f, m: head.value(1 - f, m), partials, centre, formula=formula)


PGN = _of_complement(GN, "pgn", centre=1.0)
"""f̂ = (1 − f) / (‖1 − ∇f‖ + |1 − f|), 1 an image of ones (PGN-GAN, Xia 2023: its code and Algorithm 1)."""

PGN_TABLE = _of_complement(GN, "pgn-table", centre=0.0)
"""f̂ = (1 − f) / (‖∇f‖ + |1 − f|) (PGN-GAN, Xia 2023: Table I and eqs. 11–14)."""

METHODS: dict[str, Callable[..., Head]] = {
    "gn": lambda: GN,
    "gn0": lambda: GN0,
    "gn1": lambda: GN1,
    "gran": gran,
    "gran-shift": gran_shift,
    "pgn": lambda: PGN,
    "pgn-table": lambda: PGN_TABLE,
}
"""Name of a method: the head for the options that it takes."""

Name = Literal["gn", "gn0", "gn1", "gran", "gran-shift", "pgn", "pgn-table"]
"""The keys of `METHODS`, for type checkers."""

Method = Name | Head | Value


def find(method: Method, **options: float | None) -> Head:
    """The head that `method` names, is, or computes; options that are None are left at the method's default.

    Raises:
        InputError: an unknown name, or an option that the method does not take.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(method, str):
        if method not in METHODS:
            raise InputError(f"method: got {method!r}, wanted one of {', '.join(METHODS)}, a gnfast.Head or a function")
        if given and (unknown := sorted(given.keys() - inspect.signature(METHODS[method]).parameters.keys())):
            raise InputError(f"{unknown[0]}: method {method!r} does not take it")
        return METHODS[method](**given)
    if given:
        raise InputError(f"{next(iter(given))}: only named methods take options")
    if isinstance(method, Head):
        return method
    if callable(method):
        return Head(getattr(method, "__name__", type(method).__name__), method)
    raise InputError(f"method: got a {type(method).__name__}, wanted a name, a gnfast.Head or a function of (f, n)")

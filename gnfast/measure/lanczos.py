"""The largest singular value of a linear map that is given by its action and its adjoint's."""

from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
CHECK_EVERY = 5


@torch.no_grad()
def largest_singular_value(
    apply: Map, adjoint: Map, start: Tensor, *, tol: float = 1e-10, steps: int = 300
) -> tuple[float, float]:
    """σ of a linear map by Golub–Kahan bidiagonalisation: power iteration that keeps all its directions.

    Power iteration needs many steps where singular values lie close, as those of a convolution on a large map do; the
    best combination of all its iterates needs few. The directions are kept orthogonal explicitly.

    Source: Golub and Kahan, "Calculating the singular values and pseudo-inverse of a matrix" (1965).

    Args:
        apply: the map, from tensors of `start`'s shape.
        adjoint: its adjoint.
        start: a first direction, any shape, floating point, not 0; draw it at random.
        tol: stop once the residual is this fraction of σ.
        steps: stop after as many applications of both at the latest.

    Returns:
        σ, never above the largest singular value beyond rounding, and the residual: some singular value is at most
        that far from σ, and the error of σ falls with the residual's square.

    Raises:
        ValueError: `start` is 0 or not finite.
    """
    right = start / start.norm()
    if not torch.isfinite(right).all():
        raise ValueError("start: got a direction that is 0 or not finite, wanted any other")
    rights, lefts = [right], []
    diagonal: list[float] = []
    above: list[float] = []
    last = min(steps, start.numel())
    rounding = torch.finfo(start.dtype).eps
    for step in range(1, last + 1):
        left = _orthogonal(apply(rights[-1]), lefts)
        diagonal.append(float(left.norm()))
        exhausted = diagonal[-1] <= rounding * max(diagonal)
        if not exhausted:
            lefts.append(left / diagonal[-1])
            right = _orthogonal(adjoint(lefts[-1]), rights)
            beta = float(right.norm())
            exhausted = beta <= rounding * max(diagonal)
        if exhausted:
            return _of_bidiagonal(diagonal, above)[0], 0.0
        if step % CHECK_EVERY == 0 or step == last:
            sigma, weight = _of_bidiagonal(diagonal, above)
            if beta * weight <= tol * sigma:
                break
        above.append(beta)
        rights.append(right / beta)
    return sigma, beta * weight


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    """The part of a vector that is orthogonal to a basis; taken twice, for the first leaves rounding errors behind."""
    if not basis:
        return vector
    rows = torch.stack(basis).flatten(1)
    for _ in range(2):
        vector = vector - (rows.T @ (rows @ vector.flatten())).reshape(vector.shape)
    return vector


def _of_bidiagonal(diagonal: list[float], above: list[float]) -> tuple[float, float]:
    """σ of the upper bidiagonal matrix, and the size of the last entry of its left singular vector."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if above:
        matrix += torch.diag(torch.tensor(above, dtype=torch.float64), 1)
    left, values, _ = torch.linalg.svd(matrix)
    return float(values[0]), abs(float(left[-1, 0]))

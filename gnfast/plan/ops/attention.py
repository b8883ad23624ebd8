"""Scaled dot-product attention, of which only queries, keys and values are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import accumulator
from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context, Shape, records

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention(Curved):
    """y = P v with P = softmax(S), S = scale · q kᵀ + mask, along the last axis.

    q (..., L, E), k (..., S, E) and v (..., S, E'); the operand, if there is one, is a mask that is broadcast to
    (..., L, S), of truth values or added. A row without any key is 0. P is computed again by every pass, which works in
    float32 at least.
    """

    scale: float
    causal: bool
    autocasts: bool
    # Five products of two matrices for the forward's two, and twelve.
    products: ClassVar[tuple[float, ...]] = (1, 2.5, 2.5, 6, 0)

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        q, k, v = map(_wide, inputs)
        return (self._weights(ctx, q, k) @ v).to(inputs[0].dtype), None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        q, k, v, cotangent = map(_wide, (*ctx.inputs, cotangent))
        weights = self._weights(ctx, q, k)
        by_scores = _moved(weights, cotangent @ v.mT).mul_(self.scale)
        return _narrow((by_scores @ k, by_scores.mT @ q, weights.mT @ cotangent), ctx.inputs)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        q, k, v, of_q, of_k, of_v = map(_wide, (*ctx.inputs, *tangents))
        weights = self._weights(ctx, q, k)
        moved = _moved(weights, (of_q @ k.mT).add_(q @ of_k.mT).mul_(self.scale))
        return (moved @ v).add_(weights @ of_v).to(ctx.inputs[0].dtype)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        q, k, v, of_q, of_k, of_v, cotangent = map(_wide, (*ctx.inputs, *tangents, cotangent))
        weights = self._weights(ctx, q, k)
        of_scores = (of_q @ k.mT).add_(q @ of_k.mT).mul_(self.scale)
        by_moved = cotangent @ v.mT
        # P' = P (S' - ΣPS') and its adjoint are what softmax has; P itself is in y, in P' and in P v'.
        along = (by_moved * weights).sum(-1, keepdim=True)
        centred = of_scores - (of_scores * weights).sum(-1, keepdim=True)
        by_weights = (cotangent @ of_v.mT).addcmul_(by_moved, centred).addcmul_(of_scores, along, value=-1)
        by_v = centred.mul_(weights).mT @ cotangent
        if adjoint is not None:
            adjoint = _wide(adjoint)
            by_weights += adjoint @ v.mT
            by_v += weights.mT @ adjoint
        by_scores, by_tangent = _moved(weights, by_weights), _moved(weights, by_moved).mul_(self.scale)
        needs_mask = any(ctx.needs)
        by_operands = [by_scores.sum_to_size(ctx.operands[0].shape)] if needs_mask else [None] * len(ctx.operands)
        by_scores = by_scores * self.scale
        by_q = (by_scores @ k).add_(by_tangent @ of_k)
        by_k = (by_scores.mT @ q).add_(by_tangent.mT @ of_q)
        return _narrow((by_q, by_k, by_v), ctx.inputs), by_operands

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        q, k, v = input_shapes
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def label(self) -> str:
        return "attention" + " causal" * self.causal

    def _weights(self, ctx: Context, q: Tensor, k: Tensor) -> Tensor:
        """P."""
        scores = (q @ k.mT).mul_(self.scale)
        mask = ctx.operands[0] if ctx.operands else None
        if self.causal:
            mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril_()
        if mask is not None:
            scores = scores.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else scores.add_(mask)
        return aten._safe_softmax(scores, -1)


def _moved(weights: Tensor, u: Tensor) -> Tensor:
    """P (u - Σ P u): softmax's derivative along u, and its adjoint."""
    return aten._softmax_backward_data(u, weights, -1, weights.dtype)


def _wide(t: Tensor) -> Tensor:
    return t.to(accumulator(t.dtype))


def _narrow(results: Sequence[Tensor], likes: Sequence[Tensor]) -> list[Tensor]:
    return [result.to(like.dtype) for result, like in zip(results, likes, strict=True)]


@records(F.scaled_dot_product_attention)
def _attention(trace, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    low = trace.runs_low(F.scaled_dot_product_attention, query, key, value)
    leading = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, key, value)))
    given = [t if t.shape[:-2] == leading else t.expand(*leading, *t.shape[-2:]) for t in (query, key, value)]
    if dropout_p == 0 and all(map(trace.depends_on_x, given)) and not trace.depends_on_x(attn_mask):
        return trace.emit(Attention(scale, is_causal, low), given, [] if attn_mask is None else [attn_mask])
    query, key, value = given
    scores = query @ key.mT * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=trace.device).tril()
    if attn_mask is not None:
        is_choice = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_choice else scores + attn_mask
    return F.dropout(F.softmax(scores, -1), dropout_p) @ value

"""Scaled dot-product attention, of which queries, keys and values are kept, and the weights if they are no larger."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    (..., L, S), of truth values or added. A row without any key is 0. Passes work in float32 at least, and compute P
    again where it has no `mask_bits`.
    """

    scale: float
    causal: bool
    autocasts: bool
    mask_bits: float = 0

    @property
    def products(self) -> tuple[float, ...]:
        """For two products of matrices in the forward, five and twelve; one less in each pass that finds P."""
        kept = 0.5 * bool(self.mask_bits)
        return 1, 2.5 - kept, 2.5 - kept, 6 - kept, 0

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        q, k, v = self._matrices(inputs)
        weights = self._weights(ctx, q, k, inputs[0].shape)
        y = (weights @ v).view(*inputs[0].shape[:-1], v.shape[-1]).to(inputs[0].dtype)
        return y, weights if self.mask_bits else None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        q, k, v = self._matrices(ctx.inputs)
        (cotangent,) = self._matrices([cotangent])
        weights = self._weights(ctx, q, k)
        by_scores = _moved(weights, cotangent @ v.mT)
        grads = self._scaled(by_scores, k), self._scaled(by_scores.mT, q), weights.mT @ cotangent
        return self._as_inputs(ctx, *grads)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        q, k, v = self._matrices(ctx.inputs)
        of_q, of_k, of_v = self._matrices(tangents)
        weights = self._weights(ctx, q, k)
        moved = _moved(weights, self._scaled(of_q, k.mT, q, of_k.mT))
        y = torch.baddbmm(moved @ v, weights, of_v)
        return y.view(*ctx.inputs[0].shape[:-1], v.shape[-1]).to(ctx.inputs[0].dtype)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        q, k, v = self._matrices(ctx.inputs)
        of_q, of_k, of_v = self._matrices(tangents)
        (cotangent,) = self._matrices([cotangent])
        weights = self._weights(ctx, q, k)
        of_scores, by_moved = self._scaled(of_q, k.mT, q, of_k.mT), cotangent @ v.mT
        # P' = P (S' - ΣPS') and its adjoint are what softmax has; P itself is in y, in P' and in P v'.
        along = (by_moved * weights).sum(-1, keepdim=True)
        centred = of_scores - (of_scores * weights).sum(-1, keepdim=True)
        by_weights = (cotangent @ of_v.mT).addcmul_(by_moved, centred).addcmul_(of_scores, along, value=-1)
        by_v = centred.mul_(weights).mT @ cotangent
        if adjoint is not None:
            (adjoint,) = self._matrices([adjoint])
            torch.baddbmm(by_weights, adjoint, v.mT, out=by_weights)
            torch.baddbmm(by_v, weights.mT, adjoint, out=by_v)
        by_scores, by_tangent = _moved(weights, by_weights), _moved(weights, by_moved)
        by_operands: list[Tensor | None] = [None] * len(ctx.operands)
        if any(ctx.needs):
            shape = (*ctx.inputs[0].shape[:-1], k.shape[-2])
            by_operands = [by_scores.view(shape).sum_to_size(ctx.operands[0].shape)]
        by_q, by_k = self._scaled(by_scores, k, by_tangent, of_k), self._scaled(by_scores.mT, q, by_tangent.mT, of_q)
        return self._as_inputs(ctx, by_q, by_k, by_v), by_operands

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        q, k, v = input_shapes
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def label(self) -> str:
        return "attention" + " causal" * self.causal

    def _matrices(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each as (N, rows, columns), in float32 at least."""
        return [t.to(accumulator(t.dtype)).reshape(math.prod(t.shape[:-2]), *t.shape[-2:]) for t in tensors]

    def _scaled(self, *factors: Tensor) -> Tensor:
        """The scale times the product of two factors, or the sum of two such products."""
        a, b, *further = factors
        if further:
            return torch.baddbmm(a @ b, *further, beta=self.scale, alpha=self.scale)
        return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=self.scale)

    def _as_inputs(self, ctx: Context, *cotangents: Tensor) -> list[Tensor]:
        """Those of q, k and v, as the inputs are."""
        return [t.view(like.shape).to(like.dtype) for t, like in zip(cotangents, ctx.inputs, strict=True)]

    def _weights(self, ctx: Context, q: Tensor, k: Tensor, shape: Shape | None = None) -> Tensor:
        """P (N, L, S); `shape` is that of the first input, in the forward, which finds P."""
        if self.mask_bits and shape is None:
            return ctx.saved
        scores = self._scaled(q, k.mT)
        if self.causal:
            later = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
            return scores.masked_fill_(later, -math.inf).softmax(-1)
        if not ctx.operands:
            return scores.softmax(-1)
        (mask,), leading = ctx.operands, (shape or ctx.inputs[0].shape)[:-2]
        by_sample = scores.view(*leading, *scores.shape[-2:])
        # Of rows without any key too.
        masked = by_sample.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else by_sample.add_(mask)
        return aten._safe_softmax(masked.view_as(scores), -1)


@dataclass(frozen=True)
class PackedAttention(Attention):
    """Attention of the three parts of one tensor, of which each sample's (shape, strides, offset) are `views`."""

    views: tuple[tuple[Shape, Shape, int], ...] = ()

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        return super().forward(ctx, *self._parts(inputs[0]))

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self._whole(ctx.inputs[0], super().pullback(self._in_parts(ctx), cotangent)),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return super().pushforward(self._in_parts(ctx), *self._parts(tangents[0]))

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        by_parts, by_operands = super().second(self._in_parts(ctx), cotangent, self._parts(tangents[0]), adjoint)
        return [self._whole(ctx.inputs[0], by_parts)], by_operands

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        return super().flops([shape for shape, *_ in self.views], operand_shapes, output_shape)

    def _in_parts(self, ctx: Context) -> Context:
        return ctx._replace(inputs=self._parts(ctx.inputs[0]))

    def _parts(self, whole: Tensor) -> list[Tensor]:
        whole = whole.contiguous()
        batch, per_sample, offset = whole.shape[0], whole.stride(0), whole.storage_offset()
        return [
            whole.as_strided((batch, *shape), (per_sample, *strides), offset + at) for shape, strides, at in self.views
        ]

    def _whole(self, like: Tensor, parts: Grads) -> Tensor:
        whole = torch.empty_like(like, memory_format=torch.contiguous_format)
        for place, part in zip(self._parts(whole), parts, strict=True):
            place.copy_(part)
        return whole


def attention(values: Shape, itemsize: int, scale: float, causal: bool = False, low: bool = False) -> Attention:
    """The op for values (..., S, E') of that size, which keeps P where that is no larger than y."""
    length, width = values[-2:]
    return Attention(scale, causal, low, 8 * max(itemsize, 4) * length / width if 0 < length <= width else 0)


def _moved(weights: Tensor, u: Tensor) -> Tensor:
    """P (u - Σ P u): softmax's derivative along u, and its adjoint."""
    return aten._softmax_backward_data(u, weights, -1, weights.dtype)


@records(F.scaled_dot_product_attention)
def _attention(trace, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    low = trace.runs_low(F.scaled_dot_product_attention, query, key, value)
    leading = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, key, value)))
    given = [t if t.shape[:-2] == leading else t.expand(*leading, *t.shape[-2:]) for t in (query, key, value)]
    if dropout_p == 0 and all(map(trace.depends_on_x, given)) and not trace.depends_on_x(attn_mask):
        op = attention(value.shape, value.scalar.itemsize, scale, is_causal, low)
        return trace.emit(op, given, [] if attn_mask is None else [attn_mask])
    query, key, value = given
    scores = query @ key.mT * scale
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=trace.device).tril()
    if attn_mask is not None:
        is_choice = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if is_choice else scores + attn_mask
    return F.dropout(F.softmax(scores, -1), dropout_p) @ value

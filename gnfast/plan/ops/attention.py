"""Scaled dot-product attention, of which queries, keys and values are kept, and the weights if they are no larger."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.kernels.layout import accumulator
from gnfast.plan.curved import Curved, Grads
from gnfast.plan.op import Context, Shape
from gnfast.plan.records import records

aten = torch.ops.aten
# Of (N, L, S) matrices at once, in a cache or so that they fill a GPU. One pass has ten of them, and queries are few.
_ENTRIES = {True: 1 << 20, False: 1 << 25}


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
        q, k, v = _matrices(inputs)
        known = self._masked(ctx, inputs[0].shape, q, k)
        if self.mask_bits and known is None:
            known = self._weights(q, k, None)
        (y,) = _few_at_a_time(lambda q, k, v, known: [self._weights(q, k, known) @ v], q, k, v, known)
        return y.view(*inputs[0].shape[:-1], v.shape[-1]).to(inputs[0].dtype), known if self.mask_bits else None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return _as_inputs(ctx, _few_at_a_time(self._pulled, *self._given(ctx), *_matrices([cotangent])))

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        (y,) = _few_at_a_time(self._pushed, *self._given(ctx), *_matrices(tangents))
        return y.view(*ctx.inputs[0].shape[:-1], y.shape[-1]).to(ctx.inputs[0].dtype)

    def second(
        self, ctx: Context, cotangent: Tensor, tangents: Sequence[Tensor], adjoint: Tensor | None
    ) -> tuple[Grads, Grads]:
        further = _matrices([*tangents, cotangent]) + ([None] if adjoint is None else _matrices([adjoint]))
        *grads, by_scores = _few_at_a_time(partial(self._bent, any(ctx.needs)), *self._given(ctx), *further)
        by_operands: list[Tensor | None] = [None] * len(ctx.operands)
        if any(ctx.needs):
            shape = (*ctx.inputs[0].shape[:-1], by_scores.shape[-1])
            by_operands = [by_scores.view(shape).sum_to_size(ctx.operands[0].shape)]
        return _as_inputs(ctx, grads), by_operands

    def _pulled(self, q: Tensor, k: Tensor, v: Tensor, known: Tensor | None, cotangent: Tensor) -> Sequence[Tensor]:
        """Of matrices (N, rows, columns), as `_pushed` and `_bent`."""
        weights = self._weights(q, k, known)
        by_scores = _moved(weights, cotangent @ v.mT)
        return self._scaled(by_scores, k), self._scaled(by_scores.mT, q), weights.mT @ cotangent

    def _pushed(self, q: Tensor, k: Tensor, v: Tensor, known: Tensor | None, *tangents: Tensor) -> Sequence[Tensor]:
        of_q, of_k, of_v = tangents
        weights = self._weights(q, k, known)
        moved = _moved(weights, self._scaled(of_q, k.mT, q, of_k.mT))
        return (torch.baddbmm(moved @ v, weights, of_v),)

    def _bent(
        self, masked: bool, q: Tensor, k: Tensor, v: Tensor, known: Tensor | None, *cotangents: Tensor | None
    ) -> Grads:
        """The gradients of q, k and v, and that of the scores for a mask's."""
        of_q, of_k, of_v, cotangent, adjoint = cotangents
        weights = self._weights(q, k, known)
        of_scores, by_moved = self._scaled(of_q, k.mT, q, of_k.mT), cotangent @ v.mT
        # P' = P (S' - ΣPS') and its adjoint are what softmax has; P itself is in y, in P' and in P v'.
        along = (by_moved * weights).sum(-1, keepdim=True)
        centred = of_scores - (of_scores * weights).sum(-1, keepdim=True)
        by_weights = (cotangent @ of_v.mT).addcmul_(by_moved, centred).addcmul_(of_scores, along, value=-1)
        by_v = centred.mul_(weights).mT @ cotangent
        if adjoint is not None:
            torch.baddbmm(by_weights, adjoint, v.mT, out=by_weights)
            torch.baddbmm(by_v, weights.mT, adjoint, out=by_v)
        by_scores, by_tangent = _moved(weights, by_weights), _moved(weights, by_moved)
        by_q, by_k = self._scaled(by_scores, k, by_tangent, of_k), self._scaled(by_scores.mT, q, by_tangent.mT, of_q)
        return by_q, by_k, by_v, by_scores if masked else None

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        q, k, v = input_shapes
        return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])

    def label(self) -> str:
        return "attention" + " causal" * self.causal

    def _scaled(self, *factors: Tensor) -> Tensor:
        """The scale times the product of two factors, or the sum of two such products."""
        a, b, *further = factors
        if further:
            return torch.baddbmm(a @ b, *further, beta=self.scale, alpha=self.scale)
        return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=self.scale)

    def _given(self, ctx: Context) -> list[Tensor | None]:
        """q, k and v, and P where it was kept or has a mask."""
        q, k, v = _matrices(ctx.inputs)
        return [q, k, v, ctx.saved if self.mask_bits else self._masked(ctx, ctx.inputs[0].shape, q, k)]

    def _masked(self, ctx: Context, shape: Shape, q: Tensor, k: Tensor) -> Tensor | None:
        """P (N, L, S) if there is a mask; `shape` is that of the first input."""
        if not ctx.operands:
            return None
        (mask,), scores = ctx.operands, self._scaled(q, k.mT)
        by_sample = scores.view(*shape[:-2], *scores.shape[-2:])
        # Of rows without any key too.
        masked = by_sample.masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else by_sample.add_(mask)
        return aten._safe_softmax(masked.view_as(scores), -1)

    def _weights(self, q: Tensor, k: Tensor, known: Tensor | None) -> Tensor:
        """P (N, L, S)."""
        if known is not None:
            return known
        scores = self._scaled(q, k.mT)
        if self.causal:
            scores.masked_fill_(scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu_(1), -math.inf)
        return scores.softmax(-1)


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


def _matrices(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each as (N, rows, columns), in float32 at least."""
    return [t.to(accumulator(t.dtype)).reshape(math.prod(t.shape[:-2]), *t.shape[-2:]) for t in tensors]


def _as_inputs(ctx: Context, cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Those of q, k and v, as the inputs are."""
    return [t.view(like.shape).to(like.dtype) for t, like in zip(cotangents, ctx.inputs, strict=True)]


def _few_at_a_time(function: Callable[..., Grads], q: Tensor, k: Tensor, *others: Tensor | None) -> Grads:
    """What the function has of matrices (N, rows, columns), never all of which have their (L, S) ones at once."""
    count = max(1, _ENTRIES[q.device.type == "cpu"] // max(1, q.shape[1] * k.shape[1]))
    if len(q) <= count:
        return function(q, k, *others)
    given = [None if t is None else t.split(count) for t in (q, k, *others)]
    parts = [function(*(t and t[i] for t in given)) for i in range(-(-len(q) // count))]
    return [None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)]


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

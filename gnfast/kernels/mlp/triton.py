"""Small critics in two launches: a chain of linear layers and (leaky) ReLUs with everything that belongs to it.

One program takes `ROWS` samples through the layers, back down to the input gradient and on to its norm and f̂. In the
backward, one program per layer runs the merged tangent up to that layer for all samples, in order, and adds up its
weight gradient: no atomics, so that results repeat. Weights stay in registers and shared memory while they are used;
products are float32 on the tensor cores (three TF32 products each), sums float32.

    forward: a_k = W_k h_{k-1} + b_k,  h_k = mask a_k;  δ_{k-1} = W_kᵀ δ_k,  g;  m, f̂ and its partial derivatives
    backward: c_0 = s x + ∂L/∂g,  c_k = mask (W_k c_{k-1} + s b_k);  ∂W_k = Σ δ_k c_{k-1}ᵀ,  ∂b_k = Σ s δ_k

`gnfast.kernels.mlp` says which Plans. Imported when it is chosen, as Triton may be missing.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.head import Formula
from gnfast.kernels.head.triton import KINDS, value_and_partials
from gnfast.kernels.jit import masked, rectified
from gnfast.kernels.layout import filled

ROWS = 16
NUM_WARPS = 8
# One block of 256 threads per multiprocessor is all there is to run.
REGISTER_BUDGET = 255


@triton.jit
def _pick(i: tl.constexpr, first, second, third, fourth):
    """Triton kernels take no lists of pointers."""
    if i == 0:
        chosen = first
    elif i == 1:
        chosen = second
    elif i == 2:
        chosen = third
    else:
        chosen = fourth
    return chosen


@triton.jit
def _weight(pointer, rows, columns, P: tl.constexpr):
    """W (rows, columns) in a (P, P) tile, zero outside."""
    r, c = tl.arange(0, P)[:, None], tl.arange(0, P)[None, :]
    return tl.load(pointer + r * columns + c, mask=(r < rows) & (c < columns), other=0).to(tl.float32)


@triton.jit
def _times(left, right):
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _mlp_forward_kernel(
    x, w_1, w_2, w_3, w_4, b_1, b_2, b_3, b_4, w_out, b_out, f_hat, g, partials, masks, deltas, batch,
    d_0: tl.constexpr, d_1: tl.constexpr, d_2: tl.constexpr, d_3: tl.constexpr, d_4: tl.constexpr,
    HIDDEN: tl.constexpr, SLOPE: tl.constexpr, BIASED: tl.constexpr, BIASED_OUT: tl.constexpr, KEEP: tl.constexpr,
    KIND: tl.constexpr, COMPLEMENT: tl.constexpr, CENTRE: tl.constexpr, TAU: tl.constexpr, EPS: tl.constexpr,
    P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """f̂, g, the partial derivatives; masks and, with KEEP, cotangents for the backward, (HIDDEN, B, P) each."""
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    e = tl.arange(0, P)
    present = (sample < batch)[:, None]
    place = sample[:, None] * P + e[None, :]
    plane = batch * P
    h = tl.load(x + sample[:, None] * d_0 + e[None, :], mask=present & (e < d_0)[None, :], other=0).to(tl.float32)
    for k in tl.static_range(HIDDEN):
        columns, rows = _pick(k, d_0, d_1, d_2, d_3), _pick(k, d_1, d_2, d_3, d_4)
        w = _weight(_pick(k, w_1, w_2, w_3, w_4), rows, columns, P)
        a = _times(h, tl.trans(w))
        if (BIASED >> k) & 1:
            a += tl.load(_pick(k, b_1, b_2, b_3, b_4) + e, mask=e < rows, other=0).to(tl.float32)[None, :]
        positive = a > 0
        tl.store(masks + k * plane + place, positive.to(tl.int8), mask=present)
        h = rectified(a, positive, SLOPE)
    width = _pick(HIDDEN - 1, d_1, d_2, d_3, d_4)
    last = tl.load(w_out + e, mask=e < width, other=0).to(tl.float32)
    f = tl.sum(h * last[None, :], axis=1)
    if BIASED_OUT:
        f += tl.load(b_out).to(tl.float32)

    # The masks that this program wrote are read by other threads of it.
    tl.debug_barrier()
    delta = tl.zeros((ROWS, P), tl.float32) + last[None, :]
    for k in tl.static_range(HIDDEN - 1, -1, -1):
        positive = tl.load(masks + k * plane + place, mask=present, other=0) != 0
        delta = masked(delta, positive, SLOPE)
        if KEEP:
            tl.store(deltas + k * plane + place, delta, mask=present)
        columns, rows = _pick(k, d_0, d_1, d_2, d_3), _pick(k, d_1, d_2, d_3, d_4)
        delta = _times(delta, _weight(_pick(k, w_1, w_2, w_3, w_4), rows, columns, P))
    inside = present & (e < d_0)[None, :]
    tl.store(g + sample[:, None] * d_0 + e[None, :], delta.to(g.dtype.element_ty), mask=inside)

    entry = tl.where(inside, delta - CENTRE, 0.0).to(tl.float64)
    m = tl.sqrt(tl.sum(entry * entry, axis=1)).to(tl.float32)
    u = 1 - f if COMPLEMENT else f
    value, by_u, by_m = value_and_partials(u, m, KIND, TAU, EPS)
    tl.store(f_hat + sample, value.to(f_hat.dtype.element_ty), mask=sample < batch)
    tl.store(partials + sample, -by_u if COMPLEMENT else by_u, mask=sample < batch)
    tl.store(partials + batch + sample, by_m, mask=sample < batch)
    tl.store(partials + 2 * batch + sample, tl.where(m == 0, 1.0, m), mask=sample < batch)


@triton.jit
def _mlp_backward_kernel(
    upstream, partials, x, g, masks, deltas, w_1, w_2, w_3, w_4, b_1, b_2, b_3, b_4, grad_x, grads, batch,
    d_0: tl.constexpr, d_1: tl.constexpr, d_2: tl.constexpr, d_3: tl.constexpr, d_4: tl.constexpr,
    HIDDEN: tl.constexpr, SLOPE: tl.constexpr, BIASED: tl.constexpr, WANTS_GRAD_X: tl.constexpr,
    WANTS_WEIGHTS: tl.constexpr, CENTRE: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program k: the gradients of layer k's weight and bias, in `grads` one after the other, the output's layer last.
    Program 0 writes ∂L/∂x as well."""
    layer = tl.program_id(0)
    e = tl.arange(0, P)
    plane = batch * P
    weight_grad = tl.zeros((P, P), tl.float32)
    bias_grad = tl.zeros((P,), tl.float32)
    for start in range(0, batch, ROWS):
        sample = start + tl.arange(0, ROWS)
        there = sample < batch
        place = sample[:, None] * P + e[None, :]
        above = tl.load(upstream + sample, mask=there, other=0).to(tl.float32)
        s = above * tl.load(partials + sample, mask=there, other=0)
        along = above * tl.load(partials + batch + sample, mask=there, other=0)
        m = tl.load(partials + 2 * batch + sample, mask=there, other=1)
        inside = there[:, None] & (e < d_0)[None, :]
        entries = sample[:, None] * d_0 + e[None, :]
        gradient = tl.load(g + entries, mask=inside, other=CENTRE).to(tl.float32)
        if WANTS_GRAD_X:
            product = s[:, None] * gradient
            mine = inside & (sample < tl.where(layer == 0, batch, 0))[:, None]
            tl.store(grad_x + entries, product.to(grad_x.dtype.element_ty), mask=mine)
        if WANTS_WEIGHTS:
            c = s[:, None] * tl.load(x + entries, mask=inside, other=0).to(tl.float32)
            c += along[:, None] * ((gradient - CENTRE) / m[:, None])
            for k in tl.static_range(HIDDEN):
                if k < layer:
                    columns, rows = _pick(k, d_0, d_1, d_2, d_3), _pick(k, d_1, d_2, d_3, d_4)
                    c = _times(c, tl.trans(_weight(_pick(k, w_1, w_2, w_3, w_4), rows, columns, P)))
                    if (BIASED >> k) & 1:
                        bias = tl.load(_pick(k, b_1, b_2, b_3, b_4) + e, mask=e < rows, other=0).to(tl.float32)
                        c += s[:, None] * bias[None, :]
                    positive = tl.load(masks + k * plane + place, mask=there[:, None], other=0) != 0
                    c = masked(c, positive, SLOPE)
            # The cotangent of the output is 1: its layer's gradient is a sum over samples, in row 0.
            limit = tl.where(layer < HIDDEN, batch, 0)
            delta = tl.load(deltas + layer * plane + place, mask=(sample < limit)[:, None], other=0)
            delta += ((there & (sample >= limit))[:, None] & (e == 0)[None, :]).to(tl.float32)
            weight_grad += _times(tl.trans(delta), c)
            bias_grad += tl.sum(delta * s[:, None], axis=0)
    if WANTS_WEIGHTS:
        rows = tl.where(layer == HIDDEN, 1, 0)
        columns, begin = rows * 0, rows * 0
        for k in tl.static_range(HIDDEN + 1):
            its_columns = d_4 if k == 4 else _pick(k, d_0, d_1, d_2, d_3)
            its_rows = 1 if k == HIDDEN else _pick(k, d_1, d_2, d_3, d_4)
            rows = tl.where(layer == k, its_rows, rows)
            columns = tl.where(layer == k, its_columns, columns)
            begin += tl.where(layer > k, its_rows * (its_columns + 1), 0)
        r = tl.arange(0, P)
        tile = begin + r[:, None] * columns + e[None, :]
        tl.store(grads + tile, weight_grad, mask=(r < rows)[:, None] & (e < columns)[None, :])
        tl.store(grads + begin + rows * columns + r, bias_grad, mask=r < rows)


def forward(
    formula: Formula,
    slope: float,
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """f̂ (B,), g of x's shape, partial derivatives (3, B), masks and, with `keep`, cotangents.

    Args:
        slope: of the activation after each hidden layer; 0 is ReLU.
        x: (B, d_0).
        weights, biases: of the hidden layers and the output's (1, d).
    """
    x = x.contiguous()
    batch, p, hidden = len(x), tile(weights), len(weights) - 1
    f_hat, g = x.new_empty((batch,)), torch.empty_like(x)
    partials = x.new_empty((3, batch), dtype=torch.float32)
    masks = x.new_empty((hidden, batch, p), dtype=torch.int8)
    deltas = x.new_empty((hidden, batch, p), dtype=torch.float32) if keep else None
    if batch:
        with torch.cuda.device_of(x):
            _mlp_forward_kernel[(triton.cdiv(batch, ROWS),)](
                x, *_four(weights[:-1], x), *_four(biases[:-1], x), weights[-1].contiguous(),
                x if biases[-1] is None else biases[-1], f_hat, g, partials, masks,
                partials if deltas is None else deltas, batch, *_widths(weights), HIDDEN=hidden,
                SLOPE=slope, BIASED=_present(biases[:-1]), BIASED_OUT=biases[-1] is not None, KEEP=keep,
                KIND=KINDS[formula.kind], COMPLEMENT=formula.complement, CENTRE=formula.centre, TAU=formula.tau,
                EPS=formula.eps, P=p, ROWS=ROWS, num_warps=NUM_WARPS,
            )  # fmt: skip
    return f_hat, g, partials, masks, deltas


def backward(
    formula: Formula,
    slope: float,
    upstream: Tensor,
    x: Tensor,
    g: Tensor,
    partials: Tensor,
    masks: Tensor,
    deltas: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    wants_grad_x: bool,
    wants_weights: bool,
) -> tuple[Tensor | None, list[Tensor] | None, list[Tensor] | None]:
    """∂L/∂x, and the float32 gradients of all weights and of all biases, there or not, where they are wanted.

    Args:
        upstream: ∂L/∂f̂ (B,).
        the rest: as `forward` took and returned it.
    """
    x, upstream = x.contiguous(), upstream.contiguous()
    batch, p, hidden = len(x), tile(weights), len(weights) - 1
    sizes = [size for weight in weights for size in (weight.numel(), len(weight))]
    grad_x = torch.empty_like(x) if wants_grad_x else None
    grads = (partials.new_empty if batch else partials.new_zeros)((sum(sizes),)) if wants_weights else None
    if batch:
        with torch.cuda.device_of(x):
            _mlp_backward_kernel[(len(weights) if wants_weights else 1,)](
                upstream, partials, x, g, masks, partials if deltas is None else deltas, *_four(weights[:-1], x),
                *_four(biases[:-1], x), x if grad_x is None else grad_x, partials if grads is None else grads, batch,
                *_widths(weights), HIDDEN=hidden, SLOPE=slope, BIASED=_present(biases[:-1]),
                WANTS_GRAD_X=wants_grad_x, WANTS_WEIGHTS=wants_weights, CENTRE=formula.centre, P=p, ROWS=ROWS,
                num_warps=NUM_WARPS,
            )  # fmt: skip
    if grads is None:
        return grad_x, None, None
    parts = grads.split(sizes)
    return grad_x, [part.view_as(w) for part, w in zip(parts[::2], weights, strict=True)], list(parts[1::2])


def tile(weights: Sequence[Tensor]) -> int:
    """Side of the square tile that holds every hidden layer's weight."""
    return max(16, *(triton.next_power_of_2(size) for weight in weights for size in weight.shape))


def _four(tensors: Sequence[Tensor | None], filler: Tensor) -> list[Tensor]:
    return filled([filler if t is None else t.contiguous() for t in tensors], 4, filler)


def _widths(weights: Sequence[Tensor]) -> list[int]:
    widths = [weight.shape[1] for weight in weights]
    return widths + [1] * (5 - len(widths))


def _present(biases: Sequence[Tensor | None]) -> int:
    """A bit for each layer that has a bias."""
    return sum(1 << k for k, bias in enumerate(biases) if bias is not None)

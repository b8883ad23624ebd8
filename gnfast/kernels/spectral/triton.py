"""Spectral normalisation in Triton: what runs on a GPU where the CUDA library was not built.

Layer by layer, with the steps of csrc/spectral/cuda.cu. Imported when it is chosen, as Triton may be missing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gnfast.kernels.jit import acc_type
from gnfast.kernels.layout import accumulator, with_strides

BLOCK_ROWS = 8
BLOCK_COLUMNS = 256
BLOCK_ELEMENTS = 2048
NUM_WARPS = 8
REGISTER_BUDGET = {"fp32": 96, "fp64": 168}
# Layers differ in these: kernels that do not depend on them are compiled once for many layers.
_SIZES = ("num_shares", "num_products", "rows", "cols", "major", "minor")
_VECTORS = ("u", "v", "used_u", "used_v", "sigma")


@triton.jit
def _at_least(value, bound):
    # Not the maximum, which would drop a NaN.
    return tl.where(value < bound, bound, value)


@triton.jit
def _entries(w, r, p, rows, cols, inner, ACC: tl.constexpr):
    """W[r, position p] as (r, p); zero outside."""
    offset = (p // inner).to(tl.int64)[None, :] * rows + r[:, None]
    offset = offset * inner + (p % inner)[None, :]
    return tl.load(w + offset, mask=(r < rows)[:, None] & (p < cols)[None, :], other=0).to(ACC)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def _spectral_norm_products_kernel(
    w, v, wv, shares, rows, cols, inner, major, minor,
    ITERATE: tl.constexpr, ACC: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Wv for a block of rows, and the block's share of Wᵀ(Wv)."""
    block = tl.program_id(0)
    r = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    products = tl.zeros((BLOCK_ROWS,), ACC)
    for start in range(0, cols, BLOCK_COLUMNS):
        p = start + tl.arange(0, BLOCK_COLUMNS)
        x = tl.load(v + p % minor * major + p // minor, mask=p < cols, other=0).to(ACC)
        products += tl.sum(_entries(w, r, p, rows, cols, inner, ACC) * x[None, :], axis=1)
    tl.store(wv + r, products, mask=r < rows)
    if ITERATE:
        for start in range(0, cols, BLOCK_COLUMNS):
            p = start + tl.arange(0, BLOCK_COLUMNS)
            share = tl.sum(_entries(w, r, p, rows, cols, inner, ACC) * products[:, None], axis=0)
            tl.store(shares + block.to(tl.int64) * cols + p, share, mask=p < cols)


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def _spectral_norm_finish_kernel(
    wv, shares, num_shares, u, v, used_u, used_v, sigma, rows, cols, major, minor,
    EPS: tl.constexpr, ITERATE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """u = Wv / max(|Wv|, eps), v = Wᵀu / max(|Wᵀu|, eps) and sigma = (Wᵀu)ᵀv; without iterating sigma = uᵀWv."""
    eps = tl.full((), EPS, ACC)
    sums = tl.zeros((BLOCK,), ACC)
    for start in range(0, rows, BLOCK):
        r = start + tl.arange(0, BLOCK)
        product = tl.load(wv + r, mask=r < rows, other=0)
        if ITERATE:
            sums += product * product
        else:
            left = tl.load(u + r, mask=r < rows, other=0).to(ACC)
            tl.store(used_u + r, left, mask=r < rows)
            sums += left * product
    if ITERATE:
        norm = _at_least(tl.sqrt(tl.sum(sums, axis=0)), eps)
        for start in range(0, rows, BLOCK):
            r = start + tl.arange(0, BLOCK)
            left = tl.load(wv + r, mask=r < rows, other=0) / norm
            tl.store(used_u + r, left, mask=r < rows)
            tl.store(u + r, left.to(u.dtype.element_ty), mask=r < rows)
        squares = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            p = start + tl.arange(0, BLOCK)
            right = tl.zeros((BLOCK,), ACC)
            share = shares + p
            for _ in range(num_shares):
                right += tl.load(share, mask=p < cols, other=0)
                share += cols
            right = right / norm
            tl.store(shares + p, right, mask=p < cols)
            squares += right * right
        tl.debug_barrier()
        total = tl.sum(squares, axis=0)
        norm = _at_least(tl.sqrt(total), eps)
        tl.store(sigma, total / norm)
        for start in range(0, cols, BLOCK):
            p = start + tl.arange(0, BLOCK)
            column = p % minor * major + p // minor
            right = tl.load(shares + p, mask=p < cols, other=0) / norm
            tl.store(used_v + column, right, mask=p < cols)
            tl.store(v + column, right.to(v.dtype.element_ty), mask=p < cols)
    else:
        tl.store(sigma, tl.sum(sums, axis=0))
        for start in range(0, cols, BLOCK):
            p = start + tl.arange(0, BLOCK)
            tl.store(used_v + p, tl.load(v + p, mask=p < cols, other=0).to(ACC), mask=p < cols)


@triton.jit(do_not_specialize_on_alignment=_VECTORS)
def _spectral_norm_scale_kernel(w, out, sigma, size, COEFF: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """W̄ = coeff / sigma * W."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.full((), COEFF, ACC) / tl.load(sigma)
    values = tl.load(w + e, mask=e < size, other=0).to(ACC) * factor
    tl.store(out + e, values.to(out.dtype.element_ty), mask=e < size)


@triton.jit
def _spectral_norm_inner_product_kernel(g, w, products, size, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """A block's share of <G, W>."""
    block = tl.program_id(0)
    e = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(g + e, mask=e < size, other=0).to(ACC)
    right = tl.load(w + e, mask=e < size, other=0).to(ACC)
    tl.store(products + block, tl.sum(left * right, axis=0))


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VECTORS)
def _spectral_norm_project_kernel(
    g, out, products, num_products, u, v, sigma, size, rows, inner, major, minor,
    COEFF: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """coeff / sigma * (G - <G, W> / sigma * u vᵀ)."""
    sums = tl.zeros((BLOCK,), ACC)
    for start in range(0, num_products, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(products + i, mask=i < num_products, other=0)
    divisor = tl.load(sigma)
    factor = tl.full((), COEFF, ACC) / divisor
    amount = factor * (tl.sum(sums, axis=0) / divisor)

    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    line = e // inner
    p = line // rows * inner + e % inner
    left = tl.load(u + line % rows, mask=e < size, other=0)
    right = tl.load(v + p % minor * major + p // minor, mask=e < size, other=0)
    values = tl.load(g + e, mask=e < size, other=0).to(ACC) * factor - amount * left * right
    tl.store(out + e, values.to(out.dtype.element_ty), mask=e < size)


class Layout(NamedTuple):
    """As in csrc/spectral/layout.h: [outer, rows, inner] in memory; `major` and `minor` give the columns' order."""

    rows: int
    cols: int
    inner: int
    major: int
    minor: int


def layout_of(weight: Tensor, dim: int) -> Layout | None:
    """Where the matrix's entries lie; None for gaps, and where columns in memory are not a rotation of their order."""
    dimensions = [d for d in range(weight.dim()) if weight.shape[d] != 1]
    columns = [d for d in dimensions if d != dim]
    in_memory = sorted(dimensions, key=lambda d: -weight.stride(d))
    dense_stride = 1
    for d in reversed(in_memory):
        if weight.stride(d) != dense_stride:
            return None
        dense_stride *= weight.shape[d]
    rows = weight.shape[dim]
    cols = weight.numel() // rows
    after_rows = in_memory[in_memory.index(dim) + 1 :] if dim in in_memory else in_memory
    inner = math.prod(weight.shape[d] for d in after_rows)
    in_memory = [d for d in in_memory if d != dim]
    start = columns.index(in_memory[0]) if columns else 0
    if columns[start:] + columns[:start] != in_memory:
        return None
    minor = math.prod(weight.shape[d] for d in columns[:start])
    return Layout(rows, cols, inner, cols // minor, minor)


def _matrix(weight: Tensor, dim: int) -> tuple[Tensor, Layout]:
    layout = layout_of(weight, dim)
    if layout is None:
        weight = weight.contiguous()
        layout = layout_of(weight, dim)
    return weight, layout


def iterate(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    dims: Sequence[int],
    iterations: Sequence[int],
    eps: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """`spectral_norm_iterate`."""
    dtype = accumulator(weights[0].dtype)
    acc = acc_type(dtype)
    sizes = [n for w, dim in zip(weights, dims, strict=True) for n in (w.shape[dim], w.numel() // w.shape[dim])]
    vectors = weights[0].new_empty((sum(sizes),), dtype=dtype)
    sigma = weights[0].new_empty((len(weights),), dtype=dtype)
    used = vectors.split(sizes)
    with torch.cuda.device_of(weights[0]):
        for i, (weight, dim, count) in enumerate(zip(weights, dims, iterations, strict=True)):
            matrix, (rows, cols, inner, major, minor) = _matrix(weight, dim)
            blocks = triton.cdiv(rows, BLOCK_ROWS)
            wv = vectors.new_empty((rows,))
            shares = vectors.new_empty((blocks, cols) if count else (1,))
            source = v[i]
            for _ in range(max(count, 1)):
                _spectral_norm_products_kernel[(blocks,)](
                    matrix, source, wv, shares, rows, cols, inner, major, minor,
                    ITERATE=count > 0, ACC=acc, BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS,
                )  # fmt: skip
                _spectral_norm_finish_kernel[(1,)](
                    wv, shares, blocks, u[i], v[i], used[2 * i], used[2 * i + 1], sigma[i:], rows, cols, major, minor,
                    EPS=eps[i], ITERATE=count > 0, ACC=acc, BLOCK=BLOCK_ELEMENTS, num_warps=NUM_WARPS,
                )  # fmt: skip
                source = used[2 * i + 1]
    return vectors, sigma


def scale(weights: Sequence[Tensor], sigma: Tensor, coeffs: Sequence[float]) -> list[Tensor]:
    """`spectral_norm_scale`."""
    results = []
    with torch.cuda.device_of(weights[0]):
        for i, (weight, coeff) in enumerate(zip(weights, coeffs, strict=True)):
            out = torch.empty_like(weight)
            size = weight.numel()
            _spectral_norm_scale_kernel[(triton.cdiv(size, BLOCK_ELEMENTS),)](
                with_strides(weight, out.stride()), out, sigma[i:], size,
                COEFF=coeff, ACC=acc_type(sigma.dtype), BLOCK=BLOCK_ELEMENTS,
            )  # fmt: skip
            results.append(out)
    return results


def backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Tensor,
    sigma: Tensor,
    dims: Sequence[int],
    coeffs: Sequence[float],
) -> list[Tensor]:
    """`spectral_norm_backward`."""
    acc = acc_type(sigma.dtype)
    results, start = [], 0
    with torch.cuda.device_of(weights[0]):
        for i, (grad, weight, dim, coeff) in enumerate(zip(grads, weights, dims, coeffs, strict=True)):
            matrix, (rows, cols, inner, major, minor) = _matrix(weight, dim)
            grad = with_strides(grad, matrix.stride())
            left, right = vectors[start : start + rows], vectors[start + rows : start + rows + cols]
            start += rows + cols
            blocks = triton.cdiv(rows * cols, BLOCK_ELEMENTS)
            products = vectors.new_empty((blocks,))
            _spectral_norm_inner_product_kernel[(blocks,)](
                grad, matrix, products, rows * cols, ACC=acc, BLOCK=BLOCK_ELEMENTS
            )
            out = torch.empty_like(matrix)
            _spectral_norm_project_kernel[(blocks,)](
                grad, out, products, blocks, left, right, sigma[i:], rows * cols, rows, inner, major, minor,
                COEFF=coeff, ACC=acc, BLOCK=BLOCK_ELEMENTS, num_warps=NUM_WARPS,
            )  # fmt: skip
            results.append(out if matrix is weight else with_strides(out, torch.empty_like(weight).stride()))
    return results

"""The rules of merges.py for calls in eager PyTorch. `RULES` has, for each function, what to do instead.

Convolutions, nearest upsamplings and sums of such are put off, and those who can, merge with them. What is computed in
the end is Winograd's algorithm where that serves (winograd.py). A rule has the signature of its function. It returns a
tensor, which may be a `Deferred`, or NotImplemented for what is stated.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnfast.rewriting import norms
from gnfast.rewriting.deferred import Deferred, as_here, can_merge, claim, put_off, real
from gnfast.rewriting.folding import fold_kernel
from gnfast.rewriting.merges import AvgPool, Conv, Fold, Operation, Sum, Upsample, merge, sizes, whole_factor
from gnfast.rewriting.winograd import convolution, output_shape


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    operands = [input, weight] if bias is None else [input, weight, bias]
    if not _plain(*operands):
        return NotImplemented
    if sizes(stride, 2) + sizes(dilation, 2) != (1, 1, 1, 1):
        return _unmerged(real(input), weight, bias, stride, padding, dilation, groups)
    kernel = tuple(weight.shape[2:])
    if padding == "same" and all(k % 2 for k in kernel):
        padding = tuple(k // 2 for k in kernel)
    elif padding == "valid":
        padding = 0
    if isinstance(padding, str):
        return NotImplemented
    padding = sizes(padding, 2)
    arguments = (1, 1), padding, (1, 1), False, (0, 0), groups
    shape = output_shape(input, weight, bias, arguments)
    dtypes = {t.dtype for t in operands}
    casts = torch.is_autocast_enabled(input.device.type) and torch.float64 not in dtypes
    if shape is None or (len(dtypes) > 1 and not casts):
        # PyTorch has its own words for what is wrong.
        return NotImplemented
    conv = Conv(kernel, padding, (1, 1), groups)
    upsample = _operation(input)
    merged = merge(upsample, conv)
    if isinstance(merged, Fold):
        return _folded(merged, *claim(input), weight, bias, groups)
    if merged == "swap":
        y = F.conv2d(*claim(input), weight, bias, groups=groups)
        # In the dtype that it has, as the convolution would give it, whatever autocast prefers for upsamplings.
        with torch.autocast(y.device.type, enabled=False):
            result = _put_off_upsampling(y, upsample)
        return as_here(result)
    x = real(input)

    def stated():
        y = convolution(x, weight, bias, arguments)
        return F.conv2d(x, weight, bias, 1, padding, 1, groups) if y is None else y

    return put_off(conv, [x, weight, bias], shape, stated)


def _conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    if not _plain(input, weight, *([] if bias is None else [bias])):
        return NotImplemented
    return _unmerged(real(input), weight, bias, stride, padding, dilation, groups, True, output_padding)


def _interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, **rest):
    if not _plain(input) or input.dim() != 4 or 0 in input.shape or mode != "nearest":
        return NotImplemented
    if (size is None) == (scale_factor is None) or align_corners is not None or rest.get("antialias"):
        return NotImplemented
    factor = whole_factor(input.shape[2:], size, scale_factor)
    if factor is None or max(factor) == 1:
        return NotImplemented
    return _put_off_upsampling(real(input), Upsample(factor))


def _avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    if sizes(padding, 2) != (0, 0) or ceil_mode or divisor_override is not None:
        return NotImplemented
    pool = AvgPool(sizes(kernel_size, 2), sizes(stride or kernel_size, 2))
    return _pooled(input, pool) if merge(_operation(input), pool) else NotImplemented


def _add(input, other, *rest, alpha=1, out=None):
    if not rest and out is None and alpha == 1 and (shifted := norms.shifted(input, other)) is not None:
        return shifted
    operations = [_operation(t) for t in (input, other)]
    if rest or out is not None or alpha != 1 or not any(isinstance(operation, Conv | Sum) for operation in operations):
        return NotImplemented
    a, b = (t if operation else real(t) for t, operation in zip((input, other), operations, strict=True))
    if not _plain(a, b) or (a.shape, a.dtype) != (b.shape, b.dtype):
        return NotImplemented
    return put_off(Sum(tuple(operations)), [a, b], a.shape, lambda: a + b)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.conv2d: _conv2d,
    F.conv_transpose2d: _conv_transpose2d,
    F.interpolate: _interpolate,
    F.avg_pool2d: _avg_pool2d,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
    **norms.RULES,
}


def _put_off_upsampling(x: Tensor, upsample: Upsample) -> Tensor:
    shape = *x.shape[:2], *(n * m for n, m in zip(x.shape[2:], upsample.factor, strict=True))
    factor = [float(m) for m in upsample.factor]
    return put_off(upsample, [x], shape, lambda: F.interpolate(x, scale_factor=factor))


def _pooled(term: Tensor, pool: AvgPool) -> Tensor:
    """The average pooling of `term`, merged with what it is the result of where that can be."""
    merged = merge(_operation(term), pool)
    if merged is None:
        return F.avg_pool2d(real(term), pool.window, pool.stride)
    if merged == "term by term":
        a, b = (_pooled(part, pool) for part in claim(term))
        return a + b
    groups = term.statement.operation.groups
    x, weight, bias = claim(term)
    if isinstance(merged, Fold):
        return _folded(merged, x, weight, bias, groups)
    return F.conv2d(F.avg_pool2d(x, pool.window, pool.stride), weight, bias, groups=groups)


def _folded(merged: Fold, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """One convolution, or a transposed one, that is there to be computed."""
    weight = fold_kernel(weight, merged.kernel)
    y = convolution(x, weight, bias, (merged.stride, merged.padding, (1, 1), merged.transposed, (0, 0), groups))
    if y is not None:
        return y
    function = F.conv_transpose2d if merged.transposed else F.conv2d
    return function(x, weight, bias, merged.stride, merged.padding, groups=groups)


def _unmerged(x, weight, bias, stride, padding, dilation, groups, transposed=False, output_padding=0):
    """The convolution that these arguments state, where Winograd's algorithm serves."""
    if isinstance(padding, str):
        return NotImplemented
    stride, padding, dilation, output_padding = (sizes(v, 2) for v in (stride, padding, dilation, output_padding))
    y = convolution(x, weight, bias, (stride, padding, dilation, transposed, output_padding, groups))
    return NotImplemented if y is None else y


def _operation(tensor: Any) -> Operation | None:
    """What a tensor is the result of, where its consumer may merge with that."""
    if not can_merge(tensor):
        return None
    statement = tensor.statement
    if isinstance(statement.operation, Sum):
        return Sum(tuple(map(_operation, statement.parts)))
    return statement.operation if isinstance(statement.operation, Operation) else None


def _plain(*tensors: Any) -> bool:
    """Whether all are ordinary floating-point tensors on one device, computed or not."""
    return all(
        type(t) in (Tensor, nn.Parameter, Deferred)
        and t.is_floating_point()
        and t.layout is torch.strided
        and t.device == tensors[0].device
        and torch.amp.is_autocast_available(t.device.type)
        for t in tensors
    )

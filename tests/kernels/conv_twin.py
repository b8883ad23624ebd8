"""A plain PyTorch twin of `gnfast.kernels.conv.triton` in any dtype, which notes how it was called.

Like the kernels, it rounds to a half-width dtype once, at the end."""

from collections import Counter

import torch

from gnfast.kernels.sign_bits.plain import from_words, to_words

LAST = torch.channels_last


class ConvTwin:
    """Stands for the module; `calls` counts (function, number of terms, ...), `fault` may spoil results."""

    def __init__(self, configurations=("first", "second"), fault=lambda name, configuration, result: result):
        self.CONFIGURATIONS = dict.fromkeys(configurations, ())
        self.calls = Counter()
        self.fault = fault

    @property
    def functions(self):
        """How often each function was called."""
        total = Counter()
        for (name, *_), count in self.calls.items():
            total[name] += count
        return dict(total)

    def supports(self, dtype, weight, arguments):
        _, _, dilation, transposed, _, groups = arguments
        return dtype == weight.dtype and tuple(dilation) == (1, 1) and not transposed and groups == 1

    def promising(self, positions, channels):
        assert positions >= 1 and channels >= 1
        return list(self.CONFIGURATIONS)

    def supports_join(self, channels):
        return channels != 5

    def conv2d(self, x, weight, bias, arguments, configuration):
        y = convolved(x, weight, arguments) + along_channels(() if bias is None else (bias,))
        return self._done("conv2d", (bias is not None,), configuration, x.dtype, y)

    def conv2d_input_grad(self, cotangent, shape, weight, arguments, configuration):
        grad = pulled(cotangent, shape, weight, arguments)
        return self._done("conv2d_input_grad", (), configuration, cotangent.dtype, grad)

    def conv2d_input_grad_squares(self, cotangent, shape, weight, arguments, centre, configuration):
        grad = pulled(cotangent, shape, weight, arguments)
        squares = (grad.double() - centre).square().sum((1, 2, 3))
        # Three parts, of which none is the whole.
        parts = torch.stack([share * squares for share in (0.5, 0.2, 0.3)], 1)
        return self._done("conv2d_input_grad_squares", (), configuration, cotangent.dtype, grad, parts)

    def conv_join_forward(self, x, weight, arguments, terms, biases, slope, keep_sum, configuration):
        assert len(terms) <= 1 and len(biases) <= 2
        total = convolved(x, weight, arguments) + along_channels(biases) + added(terms)
        y, bits = masked(total, total > 0, slope), to_words(total.contiguous(memory_format=LAST) > 0)
        variant = len(terms), len(biases), keep_sum
        return self._done("conv_join_forward", variant, configuration, x.dtype, y, total if keep_sum else None, bits)

    def conv_join_pushforward(self, x, weight, arguments, terms, biases, scale, bits, slope, keep_sum, configuration):
        assert len(terms) <= 1 and len(biases) <= 2 and (scale is not None or not biases)
        total = convolved(x, weight, arguments) + added(terms)
        if biases:
            total = total + scale.to(total.dtype)[:, None, None, None] * along_channels(biases)
        y = masked(total, from_words(bits, total.contiguous(memory_format=LAST)), slope)
        variant = len(terms), len(biases), keep_sum
        return self._done("conv_join_pushforward", variant, configuration, x.dtype, y, total if keep_sum else None)

    def conv_input_grad_join(self, cotangent, shape, weight, arguments, before, after, bits, slope, configuration):
        assert len(before) <= 1 and len(after) <= 2
        grad = pulled(cotangent, shape, weight, arguments) + added(before)
        grad = masked(grad, from_words(bits, grad.contiguous(memory_format=LAST)), slope) + added(after)
        return self._done("conv_input_grad_join", (len(before), len(after)), configuration, cotangent.dtype, grad)

    def _done(self, name, variant, configuration, dtype, *results):
        """The results in dtype and layout of the kernels', but for what is no feature map."""
        assert configuration in self.CONFIGURATIONS
        self.calls[name, *variant] += 1
        maps = [t.to(dtype, memory_format=LAST) if t is not None and t.dim() == 4 else t for t in results]
        return self.fault(name, configuration, maps[0] if len(maps) == 1 else tuple(maps))


def given(t):
    """An argument, which the kernels want in channels_last, as wide as its sums are."""
    assert t.is_contiguous(memory_format=LAST)
    return wide(t)


def wide(t):
    return t.to(torch.promote_types(t.dtype, torch.float32))


def convolved(x, weight, arguments):
    return torch.convolution(given(x), wide(weight), None, *arguments)


def pulled(cotangent, shape, weight, arguments):
    cotangent = given(cotangent)
    x = torch.zeros(shape, dtype=cotangent.dtype).requires_grad_()
    with torch.enable_grad():
        y = torch.convolution(x, wide(weight).detach(), None, *arguments)
    return torch.autograd.grad(y, x, cotangent)[0]


def added(terms):
    return sum(map(given, terms))


def along_channels(biases):
    return sum(map(wide, biases))[:, None, None] if biases else 0


def masked(t, positive, slope):
    return torch.where(positive, t, slope * t if slope else 0)

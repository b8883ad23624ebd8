"""A plain PyTorch twin of `gnfast.kernels.conv_triton` in any dtype, which notes how it was called."""

from collections import Counter

import torch

from gnfast.kernels.sign_bits import _pack, _unpack

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

    def supports_join(self, channels):
        return channels != 5

    def conv2d(self, x, weight, bias, arguments, configuration):
        y = last(torch.convolution(given(x), weight, bias, *arguments))
        return self._done("conv2d", (bias is not None,), configuration, y)

    def conv2d_input_grad(self, cotangent, shape, weight, arguments, configuration):
        return self._done("conv2d_input_grad", (), configuration, pulled(cotangent, shape, weight, arguments))

    def conv2d_input_grad_squares(self, cotangent, shape, weight, arguments, centre, configuration):
        grad = pulled(cotangent, shape, weight, arguments)
        # Three parts, of which none is the whole.
        parts = (grad.double() - centre).square().flatten(1).sum(1, keepdim=True) * grad.new_tensor(
            [0.5, 0.2, 0.3], dtype=torch.float64
        )
        return self._done("conv2d_input_grad_squares", (), configuration, (grad, parts))

    def conv_join_forward(self, x, weight, arguments, terms, biases, slope, keep_sum, configuration):
        assert len(terms) <= 1 and len(biases) <= 2
        total = torch.convolution(given(x), weight, None, *arguments)
        total = last(sum((given(t) for t in terms), total) + along_channels(biases))
        y = last(torch.where(total > 0, total, slope * total if slope else total.new_zeros(())))
        result = y, total if keep_sum else None, _pack(total > 0)
        return self._done("conv_join_forward", (len(terms), len(biases), keep_sum), configuration, result)

    def conv_join_pushforward(self, x, weight, arguments, terms, biases, scale, bits, slope, keep_sum, configuration):
        assert len(terms) <= 1 and len(biases) <= 2 and (scale is not None or not biases)
        total = torch.convolution(given(x), weight, None, *arguments)
        total = sum((given(t) for t in terms), total)
        if biases:
            total = total + scale.to(total.dtype)[:, None, None, None] * along_channels(biases)
        result = masked(last(total), bits, slope), total if keep_sum else None
        return self._done("conv_join_pushforward", (len(terms), len(biases), keep_sum), configuration, result)

    def conv_input_grad_join(self, cotangent, shape, weight, arguments, before, after, bits, slope, configuration):
        assert len(before) <= 1 and len(after) <= 2
        grad = sum((given(t) for t in before), pulled(cotangent, shape, weight, arguments))
        result = sum((given(t) for t in after), masked(last(grad), bits, slope))
        return self._done("conv_input_grad_join", (len(before), len(after)), configuration, result)

    def _done(self, name, variant, configuration, result):
        assert configuration in self.CONFIGURATIONS
        self.calls[name, *variant] += 1
        return self.fault(name, configuration, result)


def last(t):
    """A result in the layout that the kernels give it."""
    return t.contiguous(memory_format=LAST)


def given(t):
    """An argument, in the layout that the kernels want."""
    assert t.is_contiguous(memory_format=LAST)
    return t


def pulled(cotangent, shape, weight, arguments):
    x = torch.zeros(shape, dtype=cotangent.dtype).requires_grad_()
    with torch.enable_grad():
        y = torch.convolution(x, weight.detach(), None, *arguments)
    return last(torch.autograd.grad(y, x, given(cotangent))[0])


def along_channels(biases):
    return sum(b.double() for b in biases)[:, None, None].to(biases[0].dtype) if biases else 0


def masked(t, bits, slope):
    return last(torch.where(_unpack(bits, t), t, slope * t if slope else t.new_zeros(())))

"""Each operation of a Plan on its own: adjoint, linearity, affinity and parameter gradients, on odd sizes."""

import pytest
import torch
from torch import nn

from gnfast.plan.ops.activation import LeakyReLU
from gnfast.plan.ops.conv import Conv2d
from gnfast.plan.ops.conv_pool import ConvAvgPool2d
from gnfast.plan.ops.elementwise import Add, Scale, Shift
from gnfast.plan.ops.linear import Linear
from gnfast.plan.ops.pool import AdaptiveAvgPool2d, AvgPool2d
from gnfast.plan.ops.reduce import Sum
from gnfast.plan.ops.shape import Reshape

B = 3
IMAGE = (B, 6, 7, 9)

# name: op, input shapes, operand shapes
CASES = {
    "conv2d": (Conv2d((1, 1), (1, 1), (1, 1), 1), [IMAGE], [(5, 6, 3, 3), (5,)]),
    "conv2d without bias": (Conv2d((1, 1), (0, 0), (1, 1), 1), [IMAGE], [(5, 6, 1, 1), None]),
    "conv2d strided": (Conv2d((2, 3), (1, 2), (1, 1), 1), [IMAGE], [(5, 6, 4, 3), (5,)]),
    "conv2d dilated grouped": (Conv2d((1, 2), (2, 1), (2, 1), 3), [IMAGE], [(9, 2, 3, 3), (9,)]),
    "conv2d then avg_pool2d": (ConvAvgPool2d((1, 1), 1, (2, 2)), [IMAGE], [(5, 6, 3, 3), (5,)]),
    "conv2d then avg_pool2d 3x2 grouped": (ConvAvgPool2d((0, 2), 3, (3, 2)), [IMAGE], [(9, 2, 2, 5), None]),
    "linear": (Linear(), [(B, 7)], [(5, 7), (5,)]),
    "linear without bias": (Linear(), [(B, 7)], [(5, 7), None]),
    "linear on sequences": (Linear(), [(B, 4, 7)], [(5, 7), (5,)]),
    "relu": (LeakyReLU(0.0), [IMAGE], []),
    "leaky relu": (LeakyReLU(0.1), [IMAGE], []),
    "leaky relu negative slope": (LeakyReLU(-0.5), [IMAGE], []),
    "avg_pool2d": (AvgPool2d((2, 2), (2, 2), (0, 0), False, True, None), [IMAGE], []),
    "avg_pool2d tiling": (AvgPool2d((1, 3), (1, 3), (0, 0), False, True, None), [IMAGE], []),
    "avg_pool2d tiling divisor": (AvgPool2d((7, 3), (7, 3), (0, 0), False, True, 2), [IMAGE], []),
    "avg_pool2d ceil padded": (AvgPool2d((3, 2), (2, 2), (1, 1), True, False, None), [IMAGE], []),
    "avg_pool2d divisor": (AvgPool2d((3, 3), (1, 2), (1, 0), False, True, 5), [IMAGE], []),
    "adaptive_avg_pool2d": (AdaptiveAvgPool2d((3, 2)), [IMAGE], []),
    "adaptive_avg_pool2d global": (AdaptiveAvgPool2d((1, 1)), [IMAGE], []),
    "sum": (Sum((2, 3), False, False), [IMAGE], []),
    "mean keepdim": (Sum((1, 3), True, True), [IMAGE], []),
    "add": (Add(1), [IMAGE, IMAGE], []),
    "subtract broadcast": (Add(-1.5), [IMAGE, (B, 6, 1, 1)], []),
    "shift": (Shift(-0.7), [IMAGE], []),
    "shift by tensor": (Shift(None), [IMAGE], [(6, 1, 1)]),
    "shift widening": (Shift(None), [(B, 6, 1, 1)], [(6, 4, 5)]),
    "scale": (Scale(-0.7), [IMAGE], []),
    "scale by tensor": (Scale(None), [IMAGE], [(1, 9)]),
    "scale by batch": (Scale(None), [IMAGE], [(B, 6, 1, 1)]),
    "reshape": (Reshape((14, 27)), [IMAGE], []),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    op, input_shapes, operand_shapes = CASES[request.param]
    layouts = [torch.contiguous_format, torch.channels_last]
    inputs = [
        torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layouts[len(shape) == 4])
        for shape in input_shapes
    ]
    operands = [None if shape is None else torch.randn(shape, dtype=torch.float64) for shape in operand_shapes]
    return op, inputs, operands


def tangents_of(inputs):
    return [torch.randn_like(tensor) for tensor in inputs]


def inner(left, right):
    return sum((a * b).sum() for a, b in zip(left, right, strict=True))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_pullback_is_the_adjoint_of_pushforward(case):
    op, inputs, operands = case
    y, saved = op.forward(inputs, operands, overwrite=False)
    tangents, cotangent = tangents_of(inputs), torch.randn_like(y)
    pushed = op.pushforward(tangents, operands, saved, None, overwrite=False)
    pulled = op.pullback(cotangent, operands, saved, [t.shape for t in inputs], overwrite=False)
    assert [t.shape for t in pulled] == [t.shape for t in inputs]
    assert_close(inner([cotangent], [pushed]), inner(pulled, tangents))


def test_pushforward_is_linear(case):
    op, inputs, operands = case
    _, saved = op.forward(inputs, operands, overwrite=False)
    first, second = tangents_of(inputs), tangents_of(inputs)

    def push(tangents):
        return op.pushforward(tangents, operands, saved, None, overwrite=False)

    combined = push([2 * a - 3 * b for a, b in zip(first, second, strict=True)])
    assert_close(combined, 2 * push(first) - 3 * push(second))


def test_pushforward_of_the_input_with_scale_one_is_forward(case):
    op, inputs, operands = case
    y, saved = op.forward(inputs, operands, overwrite=False)
    assert_close(op.pushforward(inputs, operands, saved, inputs[0].new_ones(B), overwrite=False), y)


def test_pushforward_scales_constants_per_sample(case):
    op, inputs, operands = case
    y, saved = op.forward(inputs, operands, overwrite=False)
    scale = torch.randn(B, dtype=torch.float64)
    scaled = [t * scale.reshape(-1, *[1] * (t.dim() - 1)) for t in inputs]
    expected = y * scale.reshape(-1, *[1] * (y.dim() - 1))
    assert_close(op.pushforward(scaled, operands, saved, scale, overwrite=False), expected)


def test_param_grad_is_autograds(case):
    op, inputs, operands = case
    leaves = [None if t is None else t.clone().requires_grad_() for t in operands]
    _, saved = op.forward(inputs, leaves, overwrite=False)
    tangents, scale = tangents_of(inputs), torch.randn(B, dtype=torch.float64)
    pushed = op.pushforward(tangents, leaves, saved, scale, overwrite=False)
    cotangent = torch.randn_like(pushed)
    needs = [t is not None for t in operands]
    with torch.no_grad():
        actual = op.param_grad(cotangent, tangents, operands, saved, scale, needs)
    assert len(actual) == len(operands)
    if any(needs):
        expected = iter(torch.autograd.grad(pushed, [t for t in leaves if t is not None], cotangent))
        for grad, need in zip(actual, needs, strict=True):
            assert (grad is not None) == need
            if need:
                assert_close(grad, next(expected))
    assert op.param_grad(cotangent, tangents, operands, saved, scale, [False] * len(operands)) == type(actual)(
        [None] * len(operands)
    )


def test_forward_agrees_with_overwrite(case):
    op, inputs, operands = case
    expected, saved = op.forward([t.clone() for t in inputs], operands, overwrite=False)
    actual, _ = op.forward([t.clone() for t in inputs], operands, overwrite=True)
    assert torch.equal(actual, expected)
    cotangent = torch.randn_like(expected)
    shapes = [t.shape for t in inputs]
    kept = cotangent.clone()
    plain = op.pullback(cotangent, operands, saved, shapes, overwrite=False)
    assert torch.equal(cotangent, kept), "pullback changed its cotangent"
    for a, b in zip(op.pullback(cotangent, operands, saved, shapes, overwrite=True), plain, strict=True):
        assert torch.equal(a, b)


def test_input_is_left_alone(case):
    op, inputs, operands = case
    copies = [t.clone() for t in inputs]
    _, saved = op.forward(inputs, operands, overwrite=False)
    op.pushforward(inputs, operands, saved, inputs[0].new_ones(B), overwrite=False)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("module", [nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 4, 1)])
def test_flops_agree_with_pytorchs_counter(module):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(IMAGE)
    with FlopCounterMode(display=False) as counter:
        y = module(x)
    op = Conv2d(module.stride, module.padding, module.dilation, module.groups)
    assert B * op.flops([tuple(module.weight.shape), None], tuple(y.shape[1:])) == counter.get_total_flops()

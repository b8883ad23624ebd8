"""Each operation of a Plan on its own: adjoint, linearity, affinity and parameter gradients, on odd sizes."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnfast
from gnfast import reference
from gnfast.kernels.scaled_sums import scaled_sums
from gnfast.plan.op import Context, LinearCall, Op, ScaledSum
from gnfast.plan.ops.activation import ACTIVATIONS, LeakyReLU, Piecewise, PReLU
from gnfast.plan.ops.cat import Cat
from gnfast.plan.ops.choice import Extremum, Maximum, Where
from gnfast.plan.ops.conv import Conv
from gnfast.plan.ops.einsum import Einsum
from gnfast.plan.ops.elementwise import Add, Scale, Shift
from gnfast.plan.ops.entries import Write, index
from gnfast.plan.ops.given import Given
from gnfast.plan.ops.linear import Linear, MapLinear
from gnfast.plan.ops.picks import Pick
from gnfast.plan.ops.pool import AvgPool2d
from gnfast.plan.ops.reduce import Sum
from gnfast.plan.ops.resample import Interpolate, Upsample
from gnfast.plan.ops.shape import Reshape
from tests.engine.test_engine import Called
from tests.oracle import assert_same, outputs_and_gradients

B = 3
IMAGE = (B, 6, 7, 9)
SOUND = (B, 6, 11)
VOLUME = (B, 4, 5, 3, 6)

MASK = torch.rand(6, 1, 9) > 0.4
COLUMNS = torch.tensor([3, 0, 3, -1])

LAYOUTS = [torch.channels_last if dims == 4 else torch.contiguous_format for dims in range(6)]

# name: op, input shapes, operands' shapes (the operands themselves where they are not weights)
CASES = {
    "conv2d": (Conv((1, 1), (1, 1), (1, 1), 1), [IMAGE], [(5, 6, 3, 3), (5,)]),
    "conv2d without bias": (Conv((1, 1), (0, 0), (1, 1), 1), [IMAGE], [(5, 6, 1, 1), None]),
    "conv2d strided": (Conv((2, 3), (1, 2), (1, 1), 1), [IMAGE], [(5, 6, 4, 3), (5,)]),
    "conv2d dilated grouped": (Conv((1, 2), (2, 1), (2, 1), 3), [IMAGE], [(9, 2, 3, 3), (9,)]),
    "conv1d strided grouped": (Conv((4,), (5,), (1,), 2), [SOUND], [(4, 3, 7), (4,)]),
    "conv3d": (Conv((1, 2, 1), (1, 0, 1), (1, 1, 2), 1), [VOLUME], [(5, 4, 2, 3, 2), (5,)]),
    "conv_transpose1d": (Conv((3,), (1,), (1,), 1, True, (2,)), [SOUND], [(6, 4, 4), (4,)]),
    "conv_transpose2d": (Conv((2, 3), (1, 0), (1, 2), 1, True, (1, 0)), [IMAGE], [(6, 5, 4, 3), (5,)]),
    "conv_transpose2d grouped": (Conv((2, 2), (1, 1), (1, 1), 3, True, (0, 0)), [IMAGE], [(6, 3, 4, 4), None]),
    "conv_transpose3d": (Conv((2, 1, 1), (0, 1, 0), (1, 1, 1), 2, True, (1, 0, 0)), [VOLUME], [(4, 3, 3, 3, 2), (6,)]),
    "linear": (Linear(), [(B, 7)], [(5, 7), (5,)]),
    "linear of a map": (MapLinear(), [IMAGE], [(5, 6, 7, 9), (5,)]),
    "linear to one": (Linear(), [(B, 7)], [(1, 7), (1,)]),
    "linear of a map to one": (MapLinear(), [IMAGE], [(1, 6, 7, 9), (1,)]),
    "linear without bias": (Linear(), [(B, 7)], [(5, 7), None]),
    "linear on sequences": (Linear(), [(B, 4, 7)], [(5, 7), (5,)]),
    "einsum matrix": (Einsum(("anK", "KM"), "anM", 0), [(B, 4, 7)], [(7, 5)]),
    "einsum per sample": (Einsum(("bnk", "bkm"), "bmn", 1), [(B, 4, 5)], [(B, 7, 4)]),
    "einsum projection": (Einsum(("bc", "bc"), "b", 0), [(B, 7)], [(B, 7)]),
    "einsum three factors": (Einsum(("ij", "bcjk", "k"), "bic", 1), [IMAGE], [(2, 7), (9,)]),
    "einsum permutation": (Einsum(("bcij",), "bicj", 0), [IMAGE], []),
    "einsum sum": (Einsum(("bcij",), "bj", 0), [IMAGE], []),
    "einsum summed alone": (Einsum(("bchw", "cd"), "bd", 0), [IMAGE], [(6, 2)]),
    "einsum summed alone in the operand": (Einsum(("bc", "cde"), "bd", 0), [(B, 4)], [(4, 2, 5)]),
    "relu": (LeakyReLU(0.0), [IMAGE], []),
    "leaky relu": (LeakyReLU(0.1), [IMAGE], []),
    "leaky relu negative slope": (LeakyReLU(-0.5), [IMAGE], []),
    "prelu": (PReLU(), [IMAGE], [(6,)]),
    "prelu shared slope": (PReLU(), [IMAGE], [(1,)]),
    "prelu on vectors": (PReLU(), [(B, 7)], [(7,)]),
    "piecewise of three": (
        Piecewise("three", ((-0.3, True), (0.4, False)), (0.5, -2, 0.1), (0.2, -0.55, -1.39)),
        [IMAGE],
        [],
    ),
    "clamp": (ACTIVATIONS[torch.clamp](-0.5, 0.7), [IMAGE], []),
    "clamp from below": (ACTIVATIONS[torch.clamp](min=-0.5), [IMAGE], []),
    "clamp from above": (ACTIVATIONS[torch.clamp](max=0.5), [IMAGE], []),
    "clamp inverted": (ACTIVATIONS[torch.clamp](0.5, -0.5), [IMAGE], []),
    "hardsigmoid": (ACTIVATIONS[F.hardsigmoid](), [IMAGE], []),
    "threshold": (ACTIVATIONS[F.threshold](0.2, -3.0), [IMAGE], []),
    "max_pool2d": (Pick(F.max_pool2d_with_indices, ((3, 2), (2, 2), (1, 0), (1, 1), True)), [IMAGE], []),
    "max_pool2d dilated": (Pick(F.max_pool2d_with_indices, ((2, 2), (1, 1), (0, 0), (2, 3), False)), [IMAGE], []),
    "max_pool3d": (Pick(F.max_pool3d_with_indices, ((2, 2, 2), (1, 2, 2), (0, 1, 0), (1, 1, 1), False)), [VOLUME], []),
    "adaptive_max_pool2d": (Pick(F.adaptive_max_pool2d_with_indices, ((3, 4),)), [IMAGE], []),
    "adaptive_max_pool3d": (Pick(F.adaptive_max_pool3d_with_indices, ((2, 2, 4),)), [VOLUME], []),
    "max over channels": (Pick(torch.max, (1, True), dim=1), [IMAGE], []),
    "sort": (Pick(torch.sort, (2, True), dim=2), [IMAGE], []),
    "topk": (Pick(torch.topk, (4, 3), (("largest", False),), 3), [IMAGE], []),
    "kthvalue": (Pick(torch.kthvalue, (2, 1, True), dim=1), [IMAGE], []),
    "median": (Pick(torch.median, (3, True), dim=3), [IMAGE], []),
    "maximum": (Maximum(1), [IMAGE, IMAGE], []),
    "minimum broadcast": (Maximum(-1), [IMAGE, (B, 6, 1, 9)], []),
    "maximum with a constant": (Maximum(1, (False, True)), [IMAGE], [(6, 1, 9)]),
    "where": (Where((False, False)), [IMAGE, (B, 6, 1, 9)], [MASK]),
    "where or a constant": (Where((False, True)), [(B, 1, 7, 9)], [MASK, (6, 1, 1)]),
    "where before a constant": (Where((True, False)), [IMAGE], [MASK, ()]),
    "amax": (Extremum((2, 3), False, 1), [IMAGE], []),
    "amin keepdim": (Extremum((1,), True, -1), [IMAGE], []),
    "avg_pool2d": (AvgPool2d((2, 2), (2, 2), (0, 0), False, True, None), [IMAGE], []),
    "avg_pool2d tiling": (AvgPool2d((1, 3), (1, 3), (0, 0), False, True, None), [IMAGE], []),
    "avg_pool2d tiling divisor": (AvgPool2d((7, 3), (7, 3), (0, 0), False, True, 2), [IMAGE], []),
    "avg_pool2d ceil padded": (AvgPool2d((3, 2), (2, 2), (1, 1), True, False, None), [IMAGE], []),
    "avg_pool2d divisor": (AvgPool2d((3, 3), (1, 2), (1, 0), False, True, 5), [IMAGE], []),
    "avg_pool3d": (LinearCall(F.avg_pool3d, (2, 1)), [VOLUME], []),
    "adaptive_avg_pool2d": (LinearCall(F.adaptive_avg_pool2d, ((3, 2),)), [IMAGE], []),
    "adaptive_avg_pool2d global": (LinearCall(F.adaptive_avg_pool2d, ((1, 1),)), [IMAGE], []),
    "upsample nearest": (Upsample((2, 3)), [IMAGE], []),
    "upsample bilinear": (Interpolate(F.interpolate, (None, 2, "bilinear")), [IMAGE], []),
    "pad and crop": (
        LinearCall(F.pad, ((-1, 2, 3, -2),), transposed=LinearCall(F.pad, ((1, -2, -3, 2),))),
        [IMAGE],
        [],
    ),
    "pad reflect": (LinearCall(F.pad, ((1, 2, 0, 3), "reflect")), [IMAGE], []),
    "pixel_shuffle": (LinearCall(F.pixel_shuffle, (2,)), [(B, 8, 3, 5)], []),
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
    "divide": (Scale(-0.7, True), [IMAGE], []),
    "divide by tensor": (Scale(None, True), [IMAGE], [(1, 9)]),
    "divide by batch": (Scale(None, True), [IMAGE], [(B, 6, 1, 1)]),
    "reshape": (Reshape((14, 27)), [IMAGE], []),
    "permute": (
        LinearCall(torch.permute, ((0, 2, 3, 1),), transposed=LinearCall(torch.permute, ((0, 3, 1, 2),))),
        [IMAGE],
        [],
    ),
    "slice": (LinearCall(index, ((Ellipsis, ("slice", 1, None, 2), -3),)), [IMAGE], []),
    "index": (LinearCall(index, ((Ellipsis, "index", ("slice", None, None, 2)),)), [IMAGE], [COLUMNS]),
    "index pairs": (LinearCall(index, ((("slice", None, None, None), "index", "index"),)), [IMAGE], [COLUMNS, COLUMNS]),
    "gather": (LinearCall(torch.gather, (3,)), [IMAGE], [torch.randint(9, (B, 2, 7, 4))]),
    "write": (Write((("slice", None, None, None), 1), (False, False)), [IMAGE, (B, 1, 9)], []),
    "write a constant": (Write((Ellipsis, "index"), (False, True)), [IMAGE], [torch.tensor([3, 0, -1]), (7, 1)]),
    "write of each sample": (
        Write(("index", "index"), (False, False)),
        [IMAGE, (B, 7, 9)],
        [torch.arange(B), torch.tensor([5, 0, 2])],
    ),
    "cumsum": (LinearCall(torch.cumsum, (2,)), [IMAGE], []),
    "expand": (LinearCall(torch.Tensor.expand, (-1, 6, 4, -1)), [(B, 6, 1, 9)], []),
    "roll": (LinearCall(torch.roll, (2, 3)), [IMAGE], []),
    "cat": (Cat(1, (6, 2), (False, False)), [IMAGE, (B, 2, 7, 9)], []),
    "cat with constants": (Cat(2, (2, 7, 1), (True, False, True)), [IMAGE], [(B, 6, 2, 9), (B, 6, 1, 9)]),
}


class Applied:
    """An op on random tensors: its result, and the other methods in the state that forward left."""

    def __init__(self, name, device):
        self.op, input_shapes, operand_shapes = CASES[name]
        made = {"dtype": torch.float64, "device": device}
        self.inputs = [
            torch.randn(shape, **made).contiguous(memory_format=LAYOUTS[len(shape)]) for shape in input_shapes
        ]
        self.operands = [
            t.to(device) if isinstance(t, Tensor) else t if t is None else torch.randn(t, **made)
            for t in operand_shapes
        ]
        self.y, self.saved = self.op.forward(Context(self.operands), *self.inputs)
        self.cotangent = torch.randn_like(self.y)
        self.scale = torch.randn(B, **made)

    def context(self, **given):
        return Context(self.operands, self.saved, **given)

    def tangents(self):
        return [torch.randn_like(tensor) for tensor in self.inputs]

    def push(self, tangents, scale=None):
        return self.op.pushforward(self.context(scale=scale), *tangents)

    def pull(self, cotangent, overwrite=False):
        return self.op.pullback(self.context(overwrite=overwrite, shapes=[t.shape for t in self.inputs]), cotangent)


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, device):
    return Applied(request.param, device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def inner(left, right):
    return sum((a * b).sum() for a, b in zip(left, right, strict=True))


def per_sample(scale, t):
    return scale.reshape(-1, *[1] * (t.dim() - 1))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def test_pullback_is_the_adjoint_of_pushforward(case):
    tangents = case.tangents()
    pulled = case.pull(case.cotangent)
    assert [t.shape for t in pulled] == [t.shape for t in case.inputs]
    assert_close(inner([case.cotangent], [case.push(tangents)]), inner(pulled, tangents))


def test_pushforward_is_linear(case):
    first, second = case.tangents(), case.tangents()
    combined = case.push([2 * a - 3 * b for a, b in zip(first, second, strict=True)])
    assert_close(combined, 2 * case.push(first) - 3 * case.push(second))


@pytest.mark.parametrize("ones", [True, False], ids=["scale one", "any scale"])
def test_pushforward_of_the_scaled_input_is_the_scaled_output(case, ones):
    scale = torch.ones_like(case.scale) if ones else case.scale
    scaled = [t * per_sample(scale, t) for t in case.inputs]
    assert_close(case.push(scaled, scale), case.y * per_sample(scale, case.y))


def test_param_grad_is_autograds(case):
    needs = [t is not None and t.is_floating_point() for t in case.operands]
    operands = case.operands
    case.operands = [t.clone().requires_grad_() if need else t for t, need in zip(operands, needs, strict=True)]
    tangents = case.tangents()
    trainable = [t for t, need in zip(case.operands, needs, strict=True) if need]
    pushed = case.push(tangents, case.scale)
    expected = iter(torch.autograd.grad(pushed, trainable, case.cotangent) if trainable else ())
    case.operands = operands
    for wanted in (needs, [False] * len(needs)):
        context = case.context(scale=case.scale, needs=wanted)
        actual = case.op.param_grad(context, case.cotangent, tangents[0])
        assert [grad is not None for grad in actual] == wanted
        for grad in actual:
            if isinstance(grad, ScaledSum):
                (grad,) = scaled_sums([grad.cotangent], [grad.axis], case.scale)
            if grad is not None:
                assert_close(grad, next(expected))
    if case.op.is_layer:
        total = torch.ones_like(operands[0])
        first, *_ = case.op.param_grad(context._replace(needs=needs, total=total), case.cotangent, tangents[0])
        weights = case.op.param_grad(context._replace(needs=needs), case.cotangent, tangents[0])[0]
        assert torch.equal(total, torch.ones_like(total)) or first is total
        assert_close(first, weights + (first is total))


@pytest.mark.parametrize(
    ("op", "value"),
    [
        (Scale(None), torch.rand(B, 1, 7, 1) > 0.5),
        (Scale(None, divides=True), torch.rand(6, 7, 9) + 0.5),
        (Where((False, True)), torch.rand(IMAGE) > 0.5),
        (LinearCall(torch.gather, (3,)), torch.randint(9, (B, 2, 7, 4))),
    ],
    ids=lambda value: value.label() if isinstance(value, Op) else "",
)
def test_given_is_the_op_with_that_operand(op, value):
    """What depends on x, and is a constant for derivatives, serves as an operand does."""
    h, more = torch.randn(IMAGE, dtype=torch.float64), [torch.randn(9, dtype=torch.float64)] * isinstance(op, Where)
    scale, needs = torch.randn(B, dtype=torch.float64), (True,) * len(more)
    y, saved = Given(op).forward(Context(more), value, h)
    expected, inner = op.forward(Context([value, *more]), h)
    cotangent = torch.randn_like(y)
    ctx, of_op = Context(more, saved, scale=scale), Context([value, *more], inner, scale=scale)
    assert torch.equal(y, expected)
    assert torch.equal(Given(op).pushforward(ctx, None, h), op.pushforward(of_op, h))
    nothing, pulled = Given(op).pullback(ctx._replace(shapes=[value.shape, h.shape]), cotangent)
    assert nothing is None
    assert torch.equal(pulled, op.pullback(of_op._replace(shapes=[h.shape]), cotangent)[0])
    of_more = Given(op).param_grad(ctx._replace(needs=needs), cotangent, h)
    wanted = op.param_grad(of_op._replace(needs=(False, *needs)), cotangent, h)[1:]
    assert len(of_more) == len(wanted) and all(map(torch.equal, of_more, wanted))


@pytest.mark.parametrize("name", ["linear to one", "linear of a map to one"])
@pytest.mark.parametrize("scaled", [True, False])
def test_none_stands_for_ones(name, scaled, device):
    case = Applied(name, device)
    ones, needs = torch.ones_like(case.y), (True, True)
    assert case.op.takes_ones
    (expected,), (actual,) = case.pull(ones), case.pull(None)
    assert_close(actual, expected)
    assert actual.stride(0) == 0
    context, (tangent,) = case.context(scale=case.scale if scaled else None, needs=needs), case.tangents()
    expected, actual = (case.op.param_grad(context, given, tangent) for given in (ones, None))
    assert_close(actual[0], expected[0])
    assert actual[0].stride() == expected[0].stride()
    if not scaled:
        assert actual[1] is expected[1] is None
        return
    sums = [scaled_sums([bias.cotangent], [bias.axis], case.scale)[0] for bias in (actual[1], expected[1])]
    assert actual[1].cotangent is None
    assert_close(*sums)


def test_what_may_be_overwritten_and_what_may_not(case):
    copies, cotangent = [t.clone() for t in case.inputs], case.cotangent.clone()
    case.push(case.inputs, torch.ones_like(case.scale))
    plain = case.pull(case.cotangent)
    assert all(torch.equal(a, b) for a, b in zip(case.inputs, copies, strict=True))
    assert torch.equal(case.cotangent, cotangent), "pullback changed its cotangent"
    actual, _ = case.op.forward(Context(case.operands, overwrite=True), *copies)
    assert torch.equal(actual, case.y)
    for a, b in zip(case.pull(cotangent, overwrite=True), plain, strict=True):
        assert torch.equal(a, b)


def test_what_shares_memory_says_so(case):
    def shared(left, right):
        storages = [{t.untyped_storage().data_ptr() for t in tensors} for tensors in (left, right)]
        return not storages[0].isdisjoint(storages[1])

    tangents = case.tangents()
    assert case.op.is_view or not (shared([case.y], case.inputs) or shared([case.push(tangents)], tangents))
    assert case.op.shares_cotangent or not shared(case.pull(case.cotangent), [case.cotangent])


def test_what_is_homogeneous_says_so(case):
    y, _ = case.op.forward(Context(case.operands), *(2.5 * t for t in case.inputs))
    assert case.op.homogeneous == torch.allclose(y, 2.5 * case.y, rtol=1e-11, atol=1e-11) or case.op.is_layer


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(6, 5, 3, padding=1),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv2d(6, 4, 1),
        nn.ConvTranspose2d(6, 4, 4, 2, 1),
        nn.Linear(9, 4),
    ],
    ids=str,
)
def test_flops_agree_with_pytorchs_counter(module):
    from torch.utils.flop_counter import FlopCounterMode

    x = torch.randn(IMAGE)
    with FlopCounterMode(display=False) as counter:
        module(x)
    plan = gnfast.trace(module, x, rewrite=False)
    assert B * plan.nodes[0].flops == counter.get_total_flops()


def critic(function):
    return Called(lambda net, x: function(x.clone()).flatten(1).sum(1))


VECTOR, FOUR = (B, 6), torch.ones(4)
# What PyTorch refuses, though the passes would have numbers for it.
WRONG = {
    "padding same with strides": (IMAGE, lambda h: F.conv2d(h, h.new_ones(2, 6, 3, 3), padding="same", stride=2)),
    "padding by another name": (IMAGE, lambda h: F.conv2d(h, h.new_ones(2, 6, 3, 3), padding="none")),
    "negative lambda": (VECTOR, lambda h: F.softshrink(h, -1.0)),
    "bounds the wrong way": (VECTOR, lambda h: F.hardtanh(h, 1.0, -1.0)),
    "slopes the wrong way": (VECTOR, lambda h: F.rrelu(h, 0.5, 0.1)),
    "negative slope in place": (VECTOR, lambda h: F.leaky_relu_(h, -0.1)),
    "no stride": (IMAGE, lambda h: F.max_pool2d(h, 2, stride=0)),
    "no stride of means": (SOUND, lambda h: F.avg_pool1d(h, 2, stride=0)),
    "padding above half the window": (IMAGE, lambda h: F.avg_pool2d(h, 2, padding=2)),
    "nothing to pool to": (IMAGE, lambda h: F.adaptive_avg_pool2d(h, (0, 2))),
    "a fraction to pool to": (IMAGE, lambda h: F.adaptive_avg_pool2d(h, (2.5, 2))),
    "no size to pool to": (SOUND, lambda h: F.adaptive_max_pool1d(h, None)),
    "a probability above 1 in eval mode": (VECTOR, lambda h: F.dropout(h, 1.5, False)),
    "statistics of one channel": (IMAGE, lambda h: F.batch_norm(h, FOUR[:1], FOUR[:1])),
    "a weight of one channel": (IMAGE, lambda h: F.batch_norm(h, torch.zeros(6), torch.ones(6), FOUR[:1])),
    "mm of a vector": (VECTOR, lambda h: torch.mm(h, torch.ones(6))),
    "mm that broadcasts": (VECTOR, lambda h: torch.mm(h, torch.ones(1, 2))),
    "bmm that broadcasts": ((B, 4, 5), lambda h: torch.bmm(h, torch.ones(1, 5, 2))),
    "mv of a matrix": (VECTOR, lambda h: torch.mv(h, torch.ones(6, 2))),
    "addmm that widens the product": ((B, 1), lambda h: torch.addmm(h, FOUR[:1, None], torch.ones(1, 2))),
    "addmm with an unused input": (VECTOR, lambda h: torch.addmm(FOUR[:2], h, torch.ones(6, 3), beta=0)),
    "an axis twice": (IMAGE, lambda h: h.sum((1, -3))),
    "an axis that is not there": (IMAGE, lambda h: h.sort(5)[0]),
    "a mean over an axis that is not there": (IMAGE, lambda h: h.mean(5)),
    "a narrowing norm": (IMAGE, lambda h: torch.linalg.vector_norm(h.double(), 1, 1, dtype=torch.float32)),
    "antialiasing without a filter": (IMAGE, lambda h: F.interpolate(h, scale_factor=2, antialias=True)),
    "a value for a reflection": (IMAGE, lambda h: F.pad(h, (1, 1, 1, 1), "reflect", 2.0)),
    "minus truth values": (VECTOR, lambda h: h - torch.ones(6, dtype=torch.bool)),
    "a truth value for alpha": (VECTOR, lambda h: torch.sub(h, torch.ones(6), alpha=True)),
    "slopes of another dtype": (VECTOR, lambda h: F.prelu(h, torch.ones(1, dtype=torch.float64))),
    "a weight of another dtype": (VECTOR, lambda h: torch.lerp(h, torch.ones(6, dtype=torch.float64), 0.5)),
    "a filling that is a vector": (VECTOR, lambda h: h.masked_fill(torch.ones(6) > 0, torch.ones(6))),
    "negative indices": (VECTOR, lambda h: h.index_select(1, torch.tensor([-1]))),
    "a table of indices": (VECTOR, lambda h: h.index_select(1, torch.zeros(2, 2, dtype=torch.int64))),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_pytorch_refuses_has_no_numbers(name):
    shape, function = WRONG[name]
    net, x = critic(function), torch.randn(shape)
    with pytest.raises(Exception) as own:  # noqa: PT011
        gnfast.reference.value_and_grad_norm(net, x)
    with pytest.raises(type(own.value)) as raised:
        gnfast.value_and_grad_norm(net, x)
    assert str(raised.value) == str(own.value)
    # Indices are only looked at where there is data.
    with pytest.raises((gnfast.UnsupportedError, type(own.value))):
        gnfast.value_and_grad_norm(net, x, strict=True)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: F.hardshrink(h, -1.0),
        lambda h: F.hardtanh_(h, 1.0, -1.0) + h.detach(),
        lambda h: F.adaptive_avg_pool2d(h[:, :, None, None], (None, 3)),
        lambda h: h.index_select(-1, torch.tensor([2, 2, 0])),
        lambda h: torch.rsub(h, 2 * torch.ones(6), alpha=3) + torch.addmm(h, h, torch.eye(6), beta=2),
        lambda h: torch.add(h, h, alpha=torch.tensor(2)),
    ],
    ids=["hardshrink", "hardtanh_", "adaptive pooling", "index_select", "rsub", "a number that comes as a tensor"],
)
def test_arguments_at_the_edge_of_what_pytorch_takes(function):
    net, x = critic(lambda h: h + function(h.clone()).flatten(1).sum(1, keepdim=True)), torch.randn(VECTOR)
    for actual, expected in zip(
        gnfast.value_and_input_grad(net, x, strict=True),
        gnfast.reference.value_and_input_grad(net, x),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_a_tensor_for_a_number_is_read_once():
    """What is written to it before the backward comes too late; as a promise it cannot be kept."""

    def forward(net, x):
        h = net.linear(x).relu()
        return torch.add(h, h.flip(1), alpha=2 * net._factor).sum(1)

    net = Called(forward, linear=nn.Linear(5, 4), _factor=torch.tensor(0.7)).double()
    x = torch.randn(B, 5, dtype=torch.float64)
    for factor in (0.7, 0.3):
        found = []
        for impl in ("auto", "reference"):
            net._factor.fill_(factor)
            f_hat = gnfast.normalize_gradient(net, x, impl=impl)
            net._factor.fill_(5.0)
            found.append(torch.autograd.grad(f_hat.sum(), net.linear.weight)[0])
        torch.testing.assert_close(*found)
    with pytest.raises(gnfast.UnsupportedError, match="reads values"):
        gnfast.normalize_gradient(net, x, strict=True, static=True)


def test_tensors_for_other_numbers_go_through_double_backward():
    net = Called(lambda net, x: F.avg_pool2d(net.conv(x).relu(), net.size).sum((1, 2, 3)), conv=nn.Conv2d(2, 3, 1))
    net.double().register_buffer("size", torch.tensor(2))
    x = torch.randn(B, 2, 4, 6, dtype=torch.float64)
    for net.size[...] in (2, 1):
        with pytest.warns(gnfast.FallbackWarning) if net.size == 2 else contextlib.nullcontext():
            assert_same(
                outputs_and_gradients(gnfast.normalize_gradient, net, x),
                outputs_and_gradients(reference.normalize_gradient, net, x),
            )


def test_prelu_at_zero():
    """Its derivative there is the slope. PyTorch's second derivative takes it to be 1, so that it is no truth here."""
    net = nn.Sequential(nn.PReLU(1, 0.25), nn.Linear(3, 1)).double()
    x = torch.tensor([[0.0, -1.0, 2.0]], dtype=torch.float64)
    _, g = gnfast.value_and_input_grad(net, x, strict=True)
    (by_weight,) = torch.autograd.grad(g.sum(), net[1].weight)
    assert torch.equal(g, net[1].weight * torch.tensor([0.25, 0.25, 1.0]))
    assert torch.equal(by_weight, torch.tensor([[0.25, 0.25, 1.0]], dtype=torch.float64))

"""Each curved operation of a Plan on its own: value, first and second derivatives against autograd's, on odd sizes."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

import gnfast
from gnfast.plan.curved import Curved, CurvedCall, Place
from gnfast.plan.op import Context
from gnfast.plan.ops.attention import Attention, PackedAttention
from gnfast.plan.ops.conv import Conv, ConvByInput
from gnfast.plan.ops.curves import CURVES, Elementwise
from gnfast.plan.ops.factors import Contraction, TwoFactors
from gnfast.plan.ops.norms import BatchNorm, GroupNorm, LayerNorm, RMSNorm, Standardize
from gnfast.plan.ops.products import Product
from gnfast.plan.ops.softmax import Softmax

IMAGE = (3, 6, 7, 5)
ROWS = (3, 4, 6)
HEADS, KEYS = (3, 2, 4, 5), (3, 2, 6, 5)
CHOICE = torch.rand(3, 1, 4, 6) > 0.4
CHOICE[0, 0, 2] = False
EPS = 0.1


def running_free(function):
    """Of batch and instance norm, what follows from the batch alone."""
    return lambda h, weight=None, bias=None: function(h, None, None, weight, bias, eps=EPS)


def attention(q, k, v, mask=None):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, mask, scale=0.7)


def causal(q, k, v):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)


def group_norm(h, weight=None, bias=None):
    return F.group_norm(h, 3, weight, bias, EPS)


def layer_norm(h, weight=None, bias=None):
    return F.layer_norm(h, (7, 5), weight, bias, EPS)


def rms_norm(h, weight=None, bias=None):
    return F.rms_norm(h, (6,), weight, EPS)


batch_norm = running_free(lambda *args, eps: F.batch_norm(*args, training=True, eps=eps))
instance_norm = running_free(lambda *args, eps: F.instance_norm(*args, eps=eps))
dilated = Conv((2, 1), (1, 2), (1, 2), 3)

# name: op, input shapes, operands' shapes (the operands themselves where they are not weights), the PyTorch function
CURVED_CASES = {
    "layer norm": (LayerNorm(EPS, (7, 5)), [IMAGE], [(7, 5), (7, 5), None, None], layer_norm),
    "layer norm without bias": (LayerNorm(EPS, (7, 5)), [IMAGE], [(7, 5), None, None, None], layer_norm),
    "layer norm, plain": (LayerNorm(EPS, (7, 5)), [IMAGE], [None] * 4, layer_norm),
    "rms norm": (RMSNorm(EPS, (6,)), [ROWS], [(6,), None, None, None], rms_norm),
    "rms norm, plain": (RMSNorm(EPS, (6,)), [ROWS], [None] * 4, rms_norm),
    "group norm": (GroupNorm(EPS, 3), [IMAGE], [(6,), (6,), None, None], group_norm),
    "group norm of vectors": (GroupNorm(EPS, 3), [(3, 6)], [(6,), None, None, None], group_norm),
    "group norm, plain": (GroupNorm(EPS, 3), [(3, 6, 4)], [None] * 4, group_norm),
    "instance norm": (GroupNorm(EPS, None), [IMAGE], [(6,), (6,), None, None], instance_norm),
    "instance norm, plain": (GroupNorm(EPS, None), [(3, 6, 2, 3, 2)], [None] * 4, instance_norm),
    "batch norm": (BatchNorm(EPS, 0.1), [IMAGE], [(6,), (6,), None, None], batch_norm),
    "batch norm of vectors": (BatchNorm(EPS, 0.1), [(4, 6)], [(6,), (6,), None, None], batch_norm),
    "batch norm of sound": (BatchNorm(EPS, 0.1), [(3, 6, 5)], [None, (6,), None, None], batch_norm),
    "batch norm, plain": (BatchNorm(EPS, 0.1), [(2, 6, 3, 2, 2)], [None] * 4, batch_norm),
    "softmax": (Softmax(1), [IMAGE], [], lambda h: h.softmax(1)),
    "log_softmax": (Softmax(2, True), [ROWS], [], lambda h: h.log_softmax(2)),
    "attention": (Attention(0.7, False, False), [HEADS, KEYS, (3, 2, 6, 4)], [], attention),
    "attention with a mask": (Attention(0.7, False, False), [HEADS, KEYS, KEYS], [(2, 1, 6)], attention),
    "attention by choice": (Attention(0.7, False, False), [HEADS, KEYS, KEYS], [CHOICE], attention),
    "causal attention": (Attention(0.3, True, False), [(3, 4, 5), (3, 6, 5), (3, 6, 2)], [], causal),
    "attention whose weights are kept": (
        Attention(0.7, False, False, 48.0),
        [HEADS, KEYS, KEYS],
        [(2, 1, 6)],
        attention,
    ),
    "packed attention": (
        PackedAttention(0.3, True, False, 64.0, tuple(((5, 2), (6, 1), start) for start in (2, 0, 4))),
        [(3, 5, 6)],
        [],
        lambda h: causal(h[..., 2:4], h[..., :2], h[..., 4:]),
    ),
    "product": (Product(), [IMAGE, (6, 1, 5)], [], torch.mul),
    "matrix product": (Contraction(("anK", "aKM"), "anM"), [ROWS, (3, 6, 5)], [], torch.bmm),
    "contraction over samples": (
        Contraction(("bcij", "bcj"), "ic"),
        [IMAGE, (3, 6, 5)],
        [],
        lambda a, b: torch.einsum("bcij,bcj->ic", a, b),
    ),
    "outer product": (
        Contraction(("bi", "bj"), "jbi"),
        [(3, 6), (3, 2)],
        [],
        lambda a, b: torch.einsum("bi,bj->jbi", a, b),
    ),
    "convolution by x": (
        ConvByInput(dilated),
        [IMAGE, (9, 2, 3, 2)],
        [],
        lambda h, w: F.conv2d(h, w, None, *dilated.arguments[:3], 3),
    ),
    "transposed convolution by x": (
        ConvByInput(Conv((2,), (1,), (1,), 1, True, (1,))),
        [(3, 6, 5), (6, 2, 4)],
        [],
        lambda h, w: F.conv_transpose1d(h, w, None, 2, 1, 1),
    ),
    "quotient": (CurvedCall(torch.div, (Place(0), Place(1))), [IMAGE, (6, 1, 5)], [], torch.div),
    "power of an operand": (
        CurvedCall(torch.pow, (Place(1), Place(0))),
        [ROWS],
        [torch.rand(4, 6) + 0.5],
        lambda h, base: torch.pow(base, h),
    ),
    "standard deviation": (CurvedCall(torch.std, (Place(0), (0, 2))), [IMAGE], [], lambda h: h.std((0, 2))),
    "norm of order 3": (CurvedCall(torch.linalg.vector_norm, (Place(0), 3, 1)), [IMAGE], [], lambda h: h.norm(3, 1)),
    **{f"{name}": (Elementwise(name), [ROWS], [], getattr(torch, name, getattr(F, name, None))) for name in CURVES},
}


class Derivatives:
    """An op on random tensors with all that the passes give it, and what autograd says of the PyTorch function."""

    def __init__(self, name, device):
        self.op, input_shapes, operand_shapes, self.function = CURVED_CASES[name]
        made = {"dtype": torch.float64, "device": device}

        def random(shape):
            layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            return torch.randn(shape, **made).contiguous(memory_format=layout)

        self.inputs = [*map(random, input_shapes)]
        self.operands = [
            t.to(device, torch.float64 if t.is_floating_point() else t.dtype)
            if isinstance(t, Tensor)
            else t
            if t is None
            else torch.randn(t, **made)
            for t in operand_shapes
        ]
        self.needs = [t is not None and t.is_floating_point() for t in self.operands]
        self.y, self.saved = self.op.forward(Context(self.operands), *self.inputs)
        self.tangents = [torch.randn_like(t) for t in self.inputs]
        self.cotangent, self.adjoint = torch.randn_like(self.y), torch.randn_like(self.y)

    def context(self, needs=()):
        shapes = [t.shape for t in self.inputs]
        return Context(self.operands, self.saved, shapes=shapes, inputs=self.inputs, needs=needs)

    def found(self):
        """What the op's methods give: y, Jᵀ δ, J t, and the second derivatives with and without μ, by name."""
        return {
            "forward": [self.y],
            "pullback": self.op.pullback(self.context(), self.cotangent),
            "pushforward": [self.op.pushforward(self.context(), *self.tangents)],
            "second": self._second(self.adjoint),
            "second without μ": self._second(None),
        }

    def _second(self, adjoint):
        by_input, by_operand = self.op.second(self.context(self.needs), self.cotangent, self.tangents, adjoint)
        return [*by_input, *by_operand]

    def expected(self):
        inputs = [t.clone().requires_grad_() for t in self.inputs]
        operands = [
            t if t is None else t.clone().requires_grad_(n) for t, n in zip(self.operands, self.needs, strict=True)
        ]
        leaves = [*inputs, *(t for t, n in zip(operands, self.needs, strict=True) if n)]
        # Running statistics have no part in derivatives.
        y = self.function(*inputs, *(operands[:2] if self.op.writes else operands))
        seed = self.cotangent.clone().requires_grad_()
        pulled = torch.autograd.grad(y, inputs, seed, create_graph=True)
        along = sum((p * t).sum() for p, t in zip(pulled, self.tangents, strict=True))
        (pushed,) = torch.autograd.grad(along, seed, create_graph=True)
        return {
            "forward": [y],
            "pullback": pulled,
            "pushforward": [pushed],
            "second": self._grads(along + (y * self.adjoint).sum(), leaves),
            "second without μ": self._grads(along, leaves),
        }

    def _grads(self, total, leaves):
        grads = iter(torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True))
        by_input = [next(grads) for _ in self.inputs]
        return [*by_input, *(next(grads) if need else None for need in self.needs)]


def assert_right(case):
    expected = case.expected()
    for name, found in case.found().items():
        for actual, wanted in zip(found, expected[name], strict=True):
            if wanted is None:
                assert actual is None or not actual.any(), name
                continue
            assert actual is not None or not wanted.any(), name
            if actual is not None:
                assert actual.shape == wanted.shape, name
                torch.testing.assert_close(
                    actual, wanted, rtol=1e-10, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
                )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture(params=CURVED_CASES, ids=lambda name: name.replace(" ", "-"))
def case(request, device):
    return Derivatives(request.param, device)


def test_every_derivative_is_autograds(case):
    assert_right(case)


def test_a_value_that_is_computed_again_is_the_same(case):
    if case.op.cheap:
        torch.testing.assert_close(case.op.again(case.context(), *case.inputs), case.y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [name for name, (op, *_) in CURVED_CASES.items() if isinstance(op, Standardize)])
def test_norms_without_kernels(name, monkeypatch):
    monkeypatch.setattr("gnfast.plan.ops.norms.implementation", lambda *args: None)
    assert_right(Derivatives(name, "cpu"))


@pytest.mark.parametrize("name", [name for name, (op, *_) in CURVED_CASES.items() if isinstance(op, Attention)])
def test_attention_of_a_few_matrices_at_a_time(name, monkeypatch):
    case = Derivatives(name, "cpu")
    whole, found, parts = case.found(), gnfast.plan.ops.attention._moved, []
    monkeypatch.setattr("gnfast.plan.ops.attention._ENTRIES", {True: 60, False: 60})
    monkeypatch.setattr("gnfast.plan.ops.attention._moved", lambda p, u: parts.append(p.numel()) or found(p, u))
    assert_right(case)
    assert max(parts) <= 60
    for method, tensors in case.found().items():
        for t, wanted in zip(tensors, whole[method], strict=True):
            torch.testing.assert_close(t, wanted, rtol=1e-12, atol=1e-13)


def test_nothing_that_is_given_changes(case):
    given = [*case.inputs, *case.tangents, case.cotangent, case.adjoint, case.y]
    given += [t for t in tree_leaves((case.operands, case.saved)) if t is not None]
    before = [t.clone() for t in given]
    first, second = case.found(), case.found()
    assert all(torch.equal(t, copy) for t, copy in zip(given, before, strict=True))
    for name, results in first.items():
        for a, b in zip(results, second[name], strict=True):
            assert a is b is None or torch.equal(a, b), name


def test_what_shares_memory_says_so(case):
    """The passes add to what they are given, and write over it."""
    given = {t.untyped_storage().data_ptr() for t in (*case.inputs, *case.tangents, case.cotangent, case.adjoint)}
    results = case.found()
    for name in ("forward", "pushforward"):
        assert case.op.is_view or given.isdisjoint(t.untyped_storage().data_ptr() for t in results[name])
    for name in ("pullback", "second", "second without μ"):
        tensors = [t for t in results[name][: len(case.inputs)] if t is not None]
        assert case.op.shares_cotangent or given.isdisjoint(t.untyped_storage().data_ptr() for t in tensors), name
        assert case.op.shares_cotangent or not any(0 in t.stride() and t.numel() > 1 for t in tensors), name


def test_what_is_not_wanted_is_not_computed(case):
    _, by_operand = case.op.second(case.context([False] * len(case.needs)), case.cotangent, case.tangents, case.adjoint)
    assert all(grad is None for grad in by_operand)


def scaled(method, position):
    """A method whose result, or the tensor in that position of it, is wrong by a thousandth."""

    def wrong(*args):
        result = method(*args)
        if isinstance(result, Tensor):
            return result * 1.001
        parts = [*(result if isinstance(result[0], Tensor) else [*result[0], *result[1]])]
        parts = [t if t is None or place != position else t * 1.001 for place, t in enumerate(parts)]
        return parts if isinstance(result[0], Tensor) else (parts[: len(result[0])], parts[len(result[0]) :])

    return wrong


@pytest.mark.parametrize("method", ["pullback", "pushforward", "second"])
def test_planted_faults_are_caught(method, monkeypatch):
    for name in CURVED_CASES:
        case = Derivatives(name, "cpu")
        positions = 1 if method == "pushforward" else len(case.found()[method])
        for position in range(positions):
            found = case.found()[method][position]
            if found is None or not found.any():
                continue
            with monkeypatch.context() as patch:
                patch.setattr(type(case.op), method, staticmethod(scaled(getattr(case.op, method), position)))
                with pytest.raises(AssertionError):
                    assert_right(case)


def test_every_kind_has_a_case():
    def kinds(of):
        return {kind for known in of.__subclasses__() for kind in {known, *kinds(known)}}

    abstract = {TwoFactors, *(kind for kind in kinds(Curved) if kind.__name__.startswith("_"))}
    # What calls functions of PyTorch's has one case for all.
    abstract |= kinds(CurvedCall)
    concrete = {k for k in kinds(Curved) - abstract if dataclasses.is_dataclass(k) and k.__name__ != "Standardize"}
    assert concrete == {type(op) for op, *_ in CURVED_CASES.values()}

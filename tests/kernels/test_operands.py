"""Operands, made at once: the plain twin against autograd, the Triton kernel against the twin."""

import itertools

import pytest
import torch

from gnfast.kernels import operands
from gnfast.kernels.operands import Fold, Form, Spread, plain
from tests.oracle import relative_error

LAYOUTS = [torch.contiguous_format, torch.channels_last]
FOLDS = [
    Fold((2, 2)),
    Fold((1, 2)),
    Fold((3, 2), mean=False),
    Fold((2, 2), mean=False, transposed=1),
    Fold((3, 1), transposed=1),
    Fold((2, 3), mean=False, transposed=2),
]
# Two roundings of the last bit: to where sums end, and from there to where a fold's quotient goes.
TOLERANCE = {torch.float64: 1e-15, torch.float32: 2e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.mark.parametrize("fold", [*FOLDS, Spread((1, 2, 3)), Spread((6, 2, 3), 6), Spread((6, 2, 3), 1)])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_the_adjoint(fold, layout):
    weight = torch.randn(4, 6, 3, 2, dtype=torch.float64).contiguous(memory_format=layout)
    weight = (weight[:, :, 0, 0] if isinstance(fold, Spread) else weight).requires_grad_()
    form = Form(torch.float64, fold)
    (made,) = operands.prepare([weight], [form])
    seed = torch.randn_like(made)
    (expected,) = torch.autograd.grad(made, weight, seed)
    (grad,) = plain.gradients([seed], [weight], [form])
    assert relative_error(grad, expected) < 1e-14


def test_what_has_its_form_is_itself():
    sources = [torch.randn(3), torch.randn(2, 3, 1, 2).contiguous(memory_format=torch.channels_last)]
    forms = [Form(torch.float32), Form(torch.float32, channels_last=True)]
    assert all(a is b for a, b in zip(operands.prepare(sources, forms), sources, strict=True))
    assert operands.prepare([], []) == operands.gradients([], [], []) == []


def cases(source_dtype, dtype, device):
    """Sources and forms: layouts, folds, vectors, matrices with any strides, more than one launch takes."""

    def made(*shape, layout=torch.contiguous_format):
        t = torch.randn(shape, dtype=torch.float64, device=device).to(source_dtype)
        return t.contiguous(memory_format=layout)

    plain_form, last = Form(dtype), Form(dtype, channels_last=True)
    yield made(5), plain_form
    yield made(1, 1, 1, 1), last
    yield made(7, 3).t(), plain_form
    yield made(7, 6)[:, ::2], plain_form
    yield made(2, 3, 1, 2, 2), plain_form
    yield made(2, 3, 1, 2, 2).transpose(0, 3), plain_form
    yield made(0, 3, 2, 2), last
    yield made(33, 9, 2, 2), last
    for layout, fold, last in itertools.product(LAYOUTS, FOLDS, (False, True)):
        yield made(4, 6, 3, 2, layout=layout), Form(dtype, fold, last)
    for layout in LAYOUTS:
        yield made(3, 5, 2, 3, layout=layout), plain_form
        yield made(3, 5, 2, 3, layout=layout), Form(dtype, channels_last=True)
    for spread, last in itertools.product(
        (Spread((5, 2, 3)), Spread((30, 2, 3), 6), Spread((30, 3, 1), 1)), (False, True)
    ):
        yield made(2, 30), Form(dtype, spread, last)
    yield from [(made(3), plain_form)] * 10


def check(source_dtype, dtype, device):
    """The Triton kernel against the twin, both ways."""
    from gnfast.kernels.operands import triton

    sources, forms = zip(*cases(source_dtype, dtype, device), strict=True)
    expected = plain.prepare(sources, forms)
    found = triton.prepare(sources, forms)
    for actual, wanted, form in zip(found, expected, forms, strict=True):
        assert actual.shape == wanted.shape and actual.dtype == dtype
        assert actual.is_contiguous(memory_format=torch.channels_last) or not form.channels_last
        torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    seeds = [torch.randn_like(t) for t in expected]
    expected = plain.gradients(seeds, sources, forms)
    found = triton.gradients(seeds, sources, forms)
    for actual, wanted, source, form in zip(found, expected, sources, forms, strict=True):
        assert actual.dtype == source_dtype and actual.shape == source.shape
        by_kernel = not isinstance(form.fold, Fold) or form.fold.transposed < 2
        if source.is_contiguous() or (source.dim() == 4 and by_kernel):
            assert actual.stride() == source.stride() or not source.numel()
        torch.testing.assert_close(actual, wanted, rtol=2 * TOLERANCE[source_dtype], atol=2 * TOLERANCE[source_dtype])


DTYPES = [(torch.float32, torch.float16), (torch.float64, torch.float64), (torch.float16, torch.float32)]


@pytest.mark.interpreted
@pytest.mark.parametrize(("source_dtype", "dtype"), DTYPES, ids=str)
def test_interpreted_kernels_match_the_twin(source_dtype, dtype):
    check(source_dtype, dtype, "cpu")


# The interpreter cuts bfloat16 off.
@pytest.mark.gpu
@pytest.mark.parametrize(("source_dtype", "dtype"), [*DTYPES, (torch.float32, torch.bfloat16)], ids=str)
def test_kernels_match_the_twin(source_dtype, dtype):
    check(source_dtype, dtype, "cuda")

"""Losses in two kernels against PyTorch's operations in float64, and what is left to PyTorch."""

import itertools
import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from gnfast.data import ImageDataset
from gnfast.kernels.backend import implementation
from gnfast.kernels.loss import MAX_ENTRIES
from gnfast.losses import LOSSES, domain_scaled, in_pytorch
from gnfast.train.state import State
from tests.tiny_runs import tiny

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# More than a block, and kinks and far ends, where exponentials are out of the formats' reach.
SPECIAL = [0.0, -1.0, 1.0, -0.0, 5.0, -5.0]
HUGE = [25.0, -25.0, 200.0]
UNUSUAL = [math.nan, math.inf, -math.inf]


def ways(loss, real, fake):
    """Each public way to a loss, with a result whose entries weigh differently in the gradient."""
    together, weights = torch.cat([real, fake]), torch.tensor([0.7, -1.3], dtype=real.dtype, device=real.device)
    yield (real, fake), lambda real, fake: loss.critic(real, fake) * 1.7
    yield (together,), lambda logits: loss.critic_terms(logits, len(real)) * weights
    yield (together,), lambda logits: loss.critic_terms(logits, len(real)).sum()
    yield (fake,), lambda fake: loss.generator(fake) * 0.3


def seen(loss, real, fake):
    """Values and gradients of each of `ways`, as one tensor each."""
    found = []
    for logits, function in ways(loss, real, fake):
        given = [t.detach().clone().requires_grad_() for t in logits]
        result = function(*given)
        grads = torch.autograd.grad(result.sum(), given)
        assert all(grad.shape == t.shape and grad.dtype == t.dtype for grad, t in zip(grads, given, strict=True))
        found += [result.detach().reshape(-1), torch.cat([grad.flatten() for grad in grads])]
    return found


def check(name, dtype, device):
    """Against float64; in lower precision no worse than twice PyTorch's operations, to a rounding of the result."""
    special = [*SPECIAL, *([] if name == "exponential" else HUGE)]
    real = torch.cat([torch.tensor(special), 2 * torch.randn(1033)])[:, None].to(device, dtype)
    fake = torch.cat([2 * torch.randn(45), torch.tensor(special)])[:, None].to(device, dtype)
    plain = in_pytorch(LOSSES[name])
    expected = seen(plain, real.double(), fake.double())
    budgets = [torch.zeros_like(t) for t in expected]
    if dtype != torch.float64:
        budgets = [2 * (low - t).abs() for low, t in zip(seen(plain, real, fake), expected, strict=True)]
    # Terms may cancel each other.
    largest = max(value.abs().max() for value in expected[::2])
    for i, (actual, exact, budget) in enumerate(zip(seen(LOSSES[name], real, fake), expected, budgets, strict=True)):
        assert actual.dtype == dtype
        rounding = 4 * torch.finfo(dtype).eps * (exact.abs().max() if i % 2 else largest) + torch.finfo(dtype).tiny
        error = (actual.double() - exact).abs()
        assert (error <= budget + rounding).all(), (error - rounding - budget).max()


@pytest.fixture
def kernels(use, monkeypatch):
    """Losses on the CPU go through the kernels; the calls that did so."""
    use("loss", "cpu", "triton")
    found, calls = implementation("loss", "cpu"), []
    for name in ("means", "pull"):
        function = getattr(found, name)
        counted = lambda *given, name=name, function=function: calls.append(name) or function(*given)  # noqa: E731
        monkeypatch.setattr(found, name, counted)
    return calls


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("name", "dtype"),
    # The interpreter is slow: one of the dtypes whose sums are float32.
    [*((name, torch.float64) for name in LOSSES), *zip(LOSSES, itertools.cycle(DTYPES[1:]), strict=False)],
    ids=str,
)
def test_interpreted_kernels(name, dtype, kernels):
    check(name, dtype, "cpu")
    assert kernels == ["means", "pull"] * 4


@pytest.mark.interpreted
@pytest.mark.parametrize("name", LOSSES)
def test_interpreted_unusual_numbers(name, kernels):
    """NaN and infinities, also as the gradient of the loss, give what PyTorch gives."""
    x = torch.tensor([*UNUSUAL, *SPECIAL], dtype=torch.float64)
    for part in ("critic_real", "critic_fake", "generator"):
        found = []
        for term in (getattr(loss, part) for loss in (LOSSES[name], in_pytorch(LOSSES[name]))):
            logits = x.clone().requires_grad_()
            mean = term(logits)
            upstreams = (torch.tensor(u, dtype=torch.float64) for u in (1.0, math.inf, math.nan, 0.0))
            grads = [torch.autograd.grad(mean, logits, upstream, retain_graph=True)[0] for upstream in upstreams]
            # The mean of NaN is NaN; each number has its value alone.
            found.append([*grads, *(term(entry) for entry in x)])
        torch.testing.assert_close(*found, rtol=1e-14, atol=0, equal_nan=True)
    assert kernels.count("means") == 3 * (1 + len(x)) and kernels.count("pull") == 3 * 4


@pytest.mark.interpreted
@pytest.mark.parametrize("name", ["hinge", "soft-hinge", "least-squares"])
def test_interpreted_second_derivatives(name, kernels):
    loss, real, fake = LOSSES[name], torch.randn(3, 1).double(), torch.randn(2, 1).double()
    for logits, function in ways(loss, real, fake):
        given = [t.clone().requires_grad_() for t in logits]
        assert gradcheck(function, given, fast_mode=True) and gradgradcheck(function, given, fast_mode=True)
    assert "pull" in kernels


@pytest.mark.interpreted
def test_interpreted_second_derivatives_where_one_tensor_comes_from_the_other(kernels):
    """As in plain PyTorch: the loss's own gradients do not go on to where its logits come from."""
    found = []
    for loss in (LOSSES["non-saturating"], in_pytorch(LOSSES["non-saturating"])):
        torch.manual_seed(1)
        real = torch.randn(5, dtype=torch.float64, requires_grad=True)
        fake = real.sin()
        first = torch.autograd.grad(loss.critic(real, fake), [real, fake], create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), real, create_graph=True)
        found.append([*first, *second, *torch.autograd.grad(second[0].sum(), real)])
    assert kernels == ["means"]
    torch.testing.assert_close(*found, rtol=1e-13, atol=1e-15)


SHAPES = {
    "patches": lambda: torch.randn(3, 1, 5, 7),
    "channels_last": lambda: torch.randn(2, 3, 5, 7).contiguous(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(9, 4)[1::2, 1:3],
    "expanded": lambda: torch.randn(3, 1).expand(3, 5),
    "a scalar": lambda: torch.randn(()),
    "transposed": lambda: torch.randn(4, 3).t(),
}


@pytest.mark.interpreted
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_shapes_and_strides(shape, kernels):
    real, fake = SHAPES[shape]().double(), torch.randn(2).double()
    for loss_of in (lambda loss, x: loss.critic(x, fake), lambda loss, x: loss.critic(fake, x)):
        found = []
        for loss in (LOSSES["soft-hinge"], in_pytorch(LOSSES["soft-hinge"])):
            logits = real.clone(memory_format=torch.preserve_format) if shape != "expanded" else real.detach()
            logits.requires_grad_()
            value = loss_of(loss, logits)
            found.append((value, *torch.autograd.grad(value, logits)))
        torch.testing.assert_close(*found, rtol=1e-13, atol=1e-15, check_stride=False)
    assert kernels == ["means", "pull"] * 2


@pytest.mark.interpreted
def test_interpreted_gradients_of_some(kernels):
    """One launch whatever is wanted; none for what is not differentiated. Steps over the real part count rows."""
    loss = LOSSES["hinge"]
    real, fake = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    loss.critic(real, fake).backward()
    expected = torch.where(1 + fake.detach() > 0, 1 / 6, 0.0)
    torch.testing.assert_close(fake.grad, expected)
    together = torch.cat([real, fake.detach()]).requires_grad_()
    loss.critic_terms(together, 4).backward(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(together.grad, torch.cat([torch.zeros_like(real), expected]))
    assert kernels == ["means", "pull"] * 2
    assert not loss.critic(real, real).requires_grad
    with torch.no_grad():
        assert not loss.critic_terms(together, 4).requires_grad
    assert kernels == ["means", "pull"] * 2 + ["means"] * 2


def _half(loss, x):
    with torch.autocast("cpu", torch.bfloat16):
        return loss.critic_terms(x.bfloat16(), 1)


def _forward_mode(loss, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss.critic_terms(forward_ad.make_dual(x, torch.ones_like(x)), 1)).tangent


class _Tensor(torch.Tensor):
    pass


LEFT_TO_PYTORCH = {
    "too many": lambda loss, x: loss.critic(x.expand(3, MAX_ENTRIES // 3 + 1), x.expand(3, MAX_ENTRIES)),
    "none": lambda loss, x: loss.critic_terms(x[:0], 0),
    "autocast": _half,
    "torch.func": lambda loss, x: torch.func.grad(loss.critic)(x, x[:1]),
    "vmap": lambda loss, x: torch.vmap(loss.critic)(x.expand(-1, 2), x.expand(-1, 5)),
    "forward mode": _forward_mode,
    "a subclass": lambda loss, x: loss.critic_terms(x.as_subclass(_Tensor), 1).as_subclass(torch.Tensor),
    "a negative view": lambda loss, x: loss.critic_terms(torch._neg_view(x), 1),
    "domain scaling": lambda loss, x: domain_scaled(loss, 2.0).critic(x, x[:1]),
}


@pytest.mark.interpreted
@pytest.mark.parametrize("case", LEFT_TO_PYTORCH)
def test_interpreted_what_is_left_to_pytorch(case, kernels):
    """The same numbers, as they are PyTorch's."""
    loss, x = LOSSES["non-saturating"], torch.randn(3, 1)
    actual, expected = (LEFT_TO_PYTORCH[case](loss, x) for loss in (loss, in_pytorch(loss)))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert kernels == []


@pytest.mark.interpreted
def test_interpreted_terms_that_go_alone(kernels):
    """Where two cannot be one launch: logits of two dtypes, or none for one term, of which the mean is NaN."""
    loss, real, fake = LOSSES["exponential"], torch.randn(3, 1), torch.randn(2, 1).double()
    value = loss.critic(real, fake)
    assert value.dtype == torch.float64 and kernels == ["means", "means"]
    torch.testing.assert_close(value, in_pytorch(loss).critic(real, fake))
    only_real = loss.critic_terms(real, 3)
    assert kernels == ["means"] * 3 and only_real[1].isnan()
    torch.testing.assert_close(only_real[0], in_pytorch(loss).critic_real(real))


@pytest.mark.interpreted
def test_interpreted_compiled_functions_compute_by_pytorch(kernels):
    compiled = torch.compile(LOSSES["hinge"].critic, backend="eager", fullgraph=True)
    real, fake = torch.randn(3, requires_grad=True), torch.randn(4)
    torch.testing.assert_close(compiled(real, fake), in_pytorch(LOSSES["hinge"]).critic(real, fake))
    assert kernels == []


@pytest.mark.interpreted
def test_interpreted_gradients_that_kernels_do_not_read(kernels):
    logits, upstream = torch.randn(5, 1, requires_grad=True), torch.tensor([2.0, -1.0])
    terms = LOSSES["hinge"].critic_terms(logits, 2)
    (expected,) = torch.autograd.grad(terms, logits, -upstream, retain_graph=True)
    (actual,) = torch.autograd.grad(terms, logits, torch._neg_view(upstream))
    torch.testing.assert_close(actual, expected)
    assert kernels == ["means", "pull"]


@pytest.mark.interpreted
@pytest.mark.parametrize("vectorize", [False, True])
def test_interpreted_jacobians(vectorize, kernels):
    """With vectorize=True a batch of gradients goes back at once, which PyTorch's operations take."""
    logits = torch.randn(5, 1).double()
    found = [
        torch.autograd.functional.jacobian(lambda x, loss=loss: loss.critic_terms(x, 2), logits, vectorize=vectorize)
        for loss in (LOSSES["cosine"], in_pytorch(LOSSES["cosine"]))
    ]
    torch.testing.assert_close(*found)
    assert kernels == ["means"] + ["pull"] * (0 if vectorize else 2)


@pytest.mark.interpreted
@pytest.mark.parametrize("changes", [{}, {"consistency": 0.5, "penalty": "r1", "accumulate": 2}], ids=str)
def test_interpreted_losses_of_training(changes, kernels, tmp_path):
    """A launch each way for each part of an update, and the losses and weights of a run that has none."""
    config = tiny(tmp_path, precision="float64", n_dis=2, batch_d=6, **changes)
    images = ImageDataset("noise", torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8))
    fused, plain = (State(config, images, torch.device("cpu")) for _ in range(2))
    plain.loss = in_pytorch(plain.loss)
    for state in (fused, plain):
        state.update()
        state.update()
    assert kernels == ["means", "pull"] * (2 * 3 * config.accumulate)
    torch.testing.assert_close(torch.stack(fused.pending), torch.stack(plain.pending), rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(fused.critic.parameters(), plain.critic.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_double_backward_trains_with_pytorchs_loss(tmp_path):
    images = ImageDataset("noise", torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8))
    for impl, formulas in (("auto", True), ("reference", False)):
        loss = State(tiny(tmp_path, impl=impl), images, torch.device("cpu")).loss
        assert (loss.critic_real.formula is not None) is formulas


def test_every_term_has_a_kernel():
    kinds = pytest.importorskip("gnfast.kernels.loss.triton").KINDS
    for loss in LOSSES.values():
        for term in (loss.critic_real, loss.critic_fake, loss.generator):
            assert term.formula.kind in kinds
    assert implementation("loss", "cpu") is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_kernels(name, dtype):
    check(name, dtype, "cuda")


@pytest.mark.gpu
def test_captured():
    """Two launches besides that of the gradient of 1, and the same numbers from a graph."""
    logits, graph = torch.randn(128, 1, device="cuda", requires_grad=True), torch.cuda.CUDAGraph()

    def step():
        return torch.autograd.grad(LOSSES["hinge"].critic_terms(logits, 64).sum(), logits)[0]

    expected = step()
    with torch.cuda.graph(graph):
        grad = step()
    graph.replay()
    torch.testing.assert_close(grad, expected, rtol=0, atol=0)

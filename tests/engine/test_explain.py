"""What gnfast says about a critic: true, at the right line, and of use."""

import ast
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast.engine.advice import advice
from gnfast.plan.plan import Refusal
from tests.engine.test_engine import Called, normal


class Binarised(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Exponential(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        result = h.exp()
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Outer(Binarised):
    """Applies another one."""

    @staticmethod
    def forward(ctx, h):
        return Binarised.apply(h)


class WithSetup(Binarised):
    @staticmethod
    def forward(h):
        return 2 * h

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


class Enabled(Binarised):
    @staticmethod
    @torch.enable_grad()
    def forward(ctx, h):
        return 2 * h


def critic(function):
    def forward(net, x):
        return (F.leaky_relu(function(net, x * net.w), 0.3) * net.out).sum((1, 2))

    return Called(forward, w=normal(7), out=normal(5, 7), columns=torch.arange(7))


def by_if(net, h):
    return 2 * h if h.mean() > 0 else h


def by_where(net, h):
    return torch.where(h.mean() > 0, 2 * h, h)


def filled(net, h):
    result = torch.zeros(h.shape, dtype=h.dtype)
    result[:, :3] = h[:, :3]
    return result


def clamped_data(net, h):
    h.data.clamp_(-1, 1)
    return h


def without_gradients(net, h):
    with torch.no_grad():
        h.relu_()
    return h


def inferred(net, h):
    with torch.inference_mode():
        mean = h.mean()
    return h - mean


def views_changed(net, h):
    rest = h[:, 1:]
    h += 1
    return F.pad(rest, (0, 0, 1, 0))


REWRITES = {
    "custom function": (
        lambda net, h: Binarised.apply(h) * 2,
        lambda net, h: (h + (h.sign() - h).detach()) * 2,
        "straight-through",
    ),
    "custom function that saves its result": (
        lambda net, h: Exponential.apply(h),
        lambda net, h: h.exp(),
        "Exponential.apply in the network's own forward",
    ),
    "a branch": (by_if, by_where, "torch.where"),
    "an unknown function": (
        lambda net, h: torch.special.log_ndtr(h),
        lambda net, h: torch.log((1 + torch.erf(0.5**0.5 * h)) / 2),
        "docs/coverage.md",
    ),
    "writing into zeros": (filled, lambda net, h: F.pad(h[:, :3], (0, 0, 0, 2)), "F.pad"),
    "data": (clamped_data, lambda net, h: h + (h.detach().clamp(-1, 1) - h.detach()), "h.detach()"),
    "no_grad": (without_gradients, lambda net, h: h.relu().detach() + h - h.detach(), "h.detach()"),
    "inference mode": (inferred, lambda net, h: h - h.detach().mean(), "h.detach()"),
    "views in use": (views_changed, lambda net, h: F.pad(h[:, 1:] + 1, (0, 0, 1, 0)), "h = h + y"),
    "indices of a maximum": (
        lambda net, h: h * h.max(1, keepdim=True).indices,
        lambda net, h: h * h.argmax(1, keepdim=True),
        "argmax",
    ),
    "slopes at random": (lambda net, h: F.rrelu(h, training=True), lambda net, h: F.leaky_relu(h), "F.leaky_relu"),
    "a norm of matrices": (
        lambda net, h: h / torch.linalg.matrix_norm(h)[:, None, None],
        lambda net, h: h / torch.linalg.vector_norm(h, dim=(-2, -1))[:, None, None],
        "vector_norm",
    ),
    "another dtype of the same bits": (
        lambda net, h: h.view(torch.int64).to(h.dtype) * 0 + h,
        lambda net, h: h.to(torch.int64).to(h.dtype) * 0 + h,
        "h.to(dtype)",
    ),
    "rounded division": (
        lambda net, h: torch.div(h, 0.5, rounding_mode="floor") + h,
        lambda net, h: torch.floor(h / 0.5) + h,
        "torch.floor",
    ),
    "a choice from a table": (
        lambda net, h: h * net.w[h.argmax(2)][..., None],
        lambda net, h: h * ((h.argmax(2)[..., None] == net.columns).to(h.dtype) @ net.w)[..., None],
        "mask of the choice",
    ),
}


@pytest.mark.parametrize(("refused", "accepted", "words"), REWRITES.values(), ids=REWRITES)
def test_what_is_written_instead_is_accelerated(refused, accepted, words):
    explanation = gnfast.explain(critic(refused), normal(4, 5, 7))
    assert not explanation.accelerated
    assert words in str(explanation)
    assert gnfast.explain(critic(accepted), normal(4, 5, 7)).accelerated


def test_every_reason_for_a_refusal_has_advice():
    files = [*Path("gnfast/plan").rglob("*.py"), Path("gnfast/engine/recording.py")]
    reasons = [
        reason for file in files if file.name != "constants.py" for reason in _reasons(ast.parse(file.read_text()))
    ]
    assert len(reasons) > 50
    assert [reason for reason in reasons if not advice(Refusal("", "", reason))] == []


def _reasons(tree):
    """What `refuse`, `_opaque` and `Refusal` are told, where it stands there as text."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for call in calls:
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if name in ("refuse", "_refuse", "_opaque", "Refusal"):
            place = {"refuse": 0, "_refuse": 1, "_opaque": 3, "Refusal": 2}[name]
            reason = call.args[place]
            if isinstance(reason, ast.Constant):
                yield reason.value
            elif isinstance(reason, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in reason.values)


def test_the_line_is_that_of_the_network_and_the_warning_that_of_the_call():
    first = inspect.getsourcelines(by_if)[1]
    here = f"{Path(__file__).relative_to(Path.cwd())}:{first + 1}"
    explanation = gnfast.explain(critic(by_if), normal(4, 5, 7))
    assert explanation.plan.refusals[0].line == here
    assert here in str(explanation)
    with pytest.warns(gnfast.FallbackWarning, match=r"gnfast\.explain\(net, x\)") as caught:
        line = inspect.currentframe().f_lineno + 1
        gnfast.normalize_gradient(critic(by_if), normal(4, 5, 7))
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        h = h * 1
        return self.function.apply(h)


class Sum(nn.Module):
    def forward(self, h):
        return (h + 1).sum((1, 2))


@pytest.mark.parametrize("function", [Binarised, Reversed, Outer, WithSetup])
def test_a_custom_function_is_named_where_it_is_applied(function):
    """Its result is used elsewhere, and another function is applied before, of which nothing is seen by then."""
    net = nn.Sequential(nn.Linear(7, 7), Applies(function), Applies(Binarised), Sum()).double()
    refusal, _ = gnfast.explain(net, normal(4, 5, 7)).plan.refusals
    here = Path(__file__).relative_to(Path.cwd())
    line = inspect.getsourcelines(Applies.forward)[1] + 2
    assert (refusal.submodule, refusal.operation) == ("1", f"{function.__name__}.apply")
    assert refusal.line == f"{here}:{line}"
    assert f"{function.__name__} ({here}:{function.forward.__code__.co_firstlineno})" in refusal.reason


def test_a_custom_function_is_named_in_all_places_once():
    net = nn.Sequential(nn.Linear(7, 7), *(Applies(Binarised) for _ in range(5)), Applies(Reversed), Sum()).double()
    explanation = gnfast.explain(net, normal(4, 5, 7))
    first, last = (line for line in str(explanation).splitlines() if line[:2] in ("1.", "2."))
    assert "in submodule '1'" in first and first.count("Binarised") == 2
    assert "; and 4 more places: submodule '2' (" in first and "'4'" in first and "'5'" not in first
    assert "Reversed.apply in submodule '6'" in last and "more place" not in last
    assert "four passes" in str(explanation) and "The passes would take" not in str(explanation)


def test_a_custom_function_that_hides_where_it_is_applied_is_named_where_it_is_used():
    net = nn.Sequential(nn.Linear(7, 7), Applies(Enabled), Sum()).double()
    (refusal,) = gnfast.explain(net, normal(4, 5, 7)).plan.refusals
    assert (refusal.submodule, refusal.operation) == ("2", "Tensor.add")
    assert "its input comes from the custom autograd function Enabled" in refusal.reason


def test_a_network_of_pytorchs_modules_has_no_line():
    net = nn.Sequential(nn.Flatten(), nn.RReLU(), nn.Linear(35, 1)).double()
    assert [refusal.line for refusal in gnfast.explain(net, normal(4, 5, 7)).plan.refusals] == [""]


def test_all_that_is_refused_is_named():
    net = critic(lambda net, h: torch.i0(torch.special.i1(h)))
    text = str(gnfast.explain(net, normal(4, 5, 7)))
    assert "1. torch.special.i1 in" in text
    assert "2. torch.i0 in" in text


def test_what_is_around_the_call_counts():
    hooked = nn.Sequential(nn.Flatten(), nn.Linear(35, 1)).double()
    hooked[1].register_full_backward_hook(lambda *_: None)
    explanation = gnfast.explain(hooked, normal(4, 5, 7))
    assert [refusal.operation for refusal in explanation.plan.refusals] == ["register_full_backward_hook"]
    x = normal(4, 5, 7).requires_grad_()
    beside = Called(lambda net, x, y: (x * y).sum((1, 2)))
    assert "computed from x" in str(gnfast.explain(beside, x, 2 * x))
    assert gnfast.explain(beside, x, normal(4, 5, 7)).accelerated


def test_says_what_takes_six_passes():
    text = str(gnfast.explain(critic(lambda net, h: F.silu(F.silu(h)) - h.mean(0)), normal(4, 5, 7)))
    assert re.search(r"silu \(%\d in the network's own forward, %\d in .* forward\): its slope depends on x", text)
    assert text.count("silu") == 1
    norms = nn.Sequential(*[nn.InstanceNorm2d(3) for _ in range(5)], nn.Flatten(), nn.Linear(192, 1))
    assert "instance_norm (%1 in submodule '0', %2 in submodule '1', %3 in submodule '2', …): its slope" in str(
        gnfast.explain(norms, torch.randn(2, 3, 8, 8))
    )
    assert "several samples" in text
    assert "not one logit" in str(gnfast.explain(nn.Conv2d(3, 1, 3), torch.randn(2, 3, 8, 8)))


def test_a_critic_is_normalised_once():
    net = nn.Sequential(nn.Flatten(), nn.Linear(35, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x, normed = normal(4, 5, 7), gnfast.GradientNorm(net)
    twice = {
        "the network's own forward": lambda: gnfast.normalize_gradient(normed, x),
        "submodule '0'": lambda: gnfast.penalties.r1(nn.Sequential(normed), x),
    }
    for where, call in twice.items():
        with pytest.raises(gnfast.InputError, match=r"normalised already.*\.net of a GradientNorm") as error:
            call()
        assert where in str(error.value)
    with pytest.raises(gnfast.InputError, match="net: got a GradientNorm, which is normalised already"):
        gnfast.GradientNorm(normed)
    assert "cannot be normalised: it is already" in str(gnfast.explain(normed, x))
    # Without a graph the norm of its gradient is what it was asked for.
    with torch.no_grad(), pytest.warns(gnfast.FallbackWarning, match="normalised already"):
        penalty = gnfast.penalties.r1(normed, x)
    norm = gnfast.normalize_gradient(net, x, return_grad_norm=True)[1]
    torch.testing.assert_close(penalty, norm.square().mean() / 2)


@pytest.mark.parametrize("forward", [torch.zeros_like, torch.Tensor.detach])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_without_an_input_gradient_a_call_says_so(forward, impl):
    net = Called(lambda net, x: forward(x).sum((1, 2)))
    assert "cannot be normalised: it has no input gradient" in str(gnfast.explain(net, normal(4, 5, 7)))
    with pytest.raises(gnfast.InputError, match="without a gradient with respect to x"):
        gnfast.normalize_gradient(net, normal(4, 5, 7), impl=impl)


def test_strict_says_who_knows_more():
    with pytest.raises(gnfast.UnsupportedError, match=r"i1 in .*print\(gnfast.explain\(net, x\)\)"):
        gnfast.normalize_gradient(critic(lambda net, h: torch.special.i1(h)), normal(4, 5, 7), strict=True)


def test_a_call_changes_nothing_and_asks_for_a_critic():
    net = nn.Sequential(nn.BatchNorm1d(5), nn.Flatten(), nn.Linear(35, 1)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gnfast.explain(net, normal(4, 5, 7)).accelerated
    assert net[0].num_batches_tracked == 0
    with pytest.raises(gnfast.InputError, match="x: got dtype"):
        gnfast.explain(net, torch.zeros(4, 5, 7, dtype=torch.uint8))

"""Low precision and autocast: an error budget against plain double backward at the same precision."""

import copy
import operator
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gnfast
from gnfast import penalties, reference
from gnfast.engine import operands
from gnfast.kernels import operands as kernels
from gnfast.plan.tracing import record
from gnfast.rewriting import calls
from gnfast.rewriting.folding import fold_avg_pool, fold_upsample
from tests.critics.classics import CRITICS
from tests.engine.test_engine import NETWORKS, Called, ResNet, normal
from tests.oracle import Unseen, outputs_and_gradients, relative_error

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LOW = [torch.bfloat16, torch.float16]
SEEDS = range(6)


def error(seen, truth):
    """Root mean square over outputs and gradients of the relative errors."""
    errors = [(seen[k].double() - v).norm() / v.norm() for k, v in truth.items() if v is not None and v.any()]
    return torch.stack(errors).square().mean()


def budget(make, run_fast, run_plain, to_low):
    """Mean squared errors of the four passes and of plain PyTorch, over several networks, against float64.

    One rounding that flips the mask of one activation changes a sample's input gradient by a finite amount, in any
    implementation; a single network may be dominated by one such event.
    """
    fast = plain = 0.0
    for seed in SEEDS:
        torch.manual_seed(seed)
        exact, x = make()
        low = to_low(copy.deepcopy(exact))
        exact.load_state_dict({k: v.double() for k, v in low.state_dict().items()})
        x_low = x.to(next(low.parameters()).dtype)
        truth = outputs_and_gradients(reference.normalize_gradient, exact, x_low.double())
        fast += error(outputs_and_gradients(run_fast, low, x_low), truth)
        plain += error(outputs_and_gradients(run_plain, low, x_low), truth)
    return fast.sqrt().item(), plain.sqrt().item()


def assert_within_budget(*given):
    """At most twice the error of plain PyTorch at the same precision."""
    fast, plain = budget(*given)
    assert fast <= 2 * plain


def resnet(device):
    return ResNet().double().to(device), normal(16, 3, 8, 8).to(device)


def strict(net, x, *args, **options):
    return gnfast.normalize_gradient(net, x, *args, strict=True, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "as-stated"])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW], ids=str)
def test_low_precision_networks(dtype, rewrite, device):
    fast = partial(strict, rewrite=rewrite)
    assert_within_budget(lambda: resnet(device), fast, reference.normalize_gradient, lambda net: net.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast(dtype, layout, device):
    def under_autocast(function):
        def run(net, x):
            with torch.autocast(device, dtype):
                return function(net, x.contiguous(memory_format=layout))

        return run

    ways = under_autocast(strict), under_autocast(reference.normalize_gradient)
    assert_within_budget(lambda: resnet(device), *ways, lambda net: net.float().to(memory_format=layout))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CRITICS)
def test_autocast_on_public_critics(name, device):
    """Their dtypes flow as PyTorch's, every parameter keeps its dtype, and errors stay within the budget."""
    fast = plain = 0.0
    for seed in SEEDS:
        torch.manual_seed(seed)
        net, x, args = CRITICS[name].make()
        net, x, args = net.float().to(device), x.float().to(device), [to_device(a, device) for a in args]
        exact = copy.deepcopy(net).double()
        wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        truth = outputs_and_gradients(reference.normalize_gradient, exact, x.double(), *wide)
        seen = []
        for function in (strict, reference.normalize_gradient):
            with torch.autocast(device, torch.bfloat16):
                seen.append(outputs_and_gradients(function, net, x, *args))
        for key, value in seen[1].items():
            if value is not None and value.any():
                assert seen[0][key].dtype == value.dtype, key
        fast, plain = fast + error(seen[0], truth), plain + error(seen[1], truth)
    assert fast <= 4 * plain


def to_device(value, device):
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, torch.float32 if value.is_floating_point() else value.dtype)


def test_autocast_is_per_call_and_per_region():
    def regions(net, x):
        h = net.low(x).relu().flatten(1)
        with torch.autocast("cpu", enabled=False):
            return net.high(h.float())

    net, x = Called(regions, low=nn.Conv2d(3, 4, 3), high=nn.Linear(60, 1)), torch.randn(4, 3, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        labels = [node.op.label() for node in gnfast.trace(net, x).nodes]
        assert labels == ["to bfloat16", "conv2d", "relu", "reshape", "to float32", "linear"]
        low = strict(net, x)
    exact = strict(net, x)
    assert 1e-5 < relative_error(low, exact) < 3e-2
    assert low.dtype == exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.equal(strict(net, x), exact)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_a_sum_in_another_dtype_converts_on_the_way(name):
    def forward(net, x):
        return net.linear(getattr(F.relu(net.conv(x)), name)((2, 3), dtype=torch.float64))

    net = Called(forward, conv=nn.Conv2d(3, 5, 3).float(), linear=nn.Linear(5, 1).double())
    x = torch.randn(4, 3, 6, 7)
    assert not [node for node in gnfast.trace(net, x).nodes if node.op.label().startswith("to ")]
    seen, expected = (outputs_and_gradients(way.normalize_gradient, net, x) for way in (gnfast, reference))
    for key, value in expected.items():
        assert seen[key].dtype == value.dtype and relative_error(seen[key], value) < 1e-5, key


def test_float64_is_left_alone_by_autocast(x):
    net = NETWORKS["resnet"]().double()
    with torch.autocast("cpu", torch.bfloat16):
        assert strict(net, x).dtype == torch.float64
        assert relative_error(strict(net, x), reference.normalize_gradient(net, x)) < 1e-12


def test_fallback_under_autocast_is_exactly_double_backward_under_autocast():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), Unseen(), nn.Flatten(), nn.Linear(60, 1)), torch.randn(4, 3, 5, 7)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("ignore", gnfast.FallbackWarning)
        assert relative_error(gnfast.normalize_gradient(net, x), reference.normalize_gradient(net, x)) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_grad_scaler_unscales_what_it_scaled(device):
    torch.manual_seed(0)
    net, x = ResNet().to(device), torch.randn(8, 3, 8, 8, device=device)
    grads = []
    for scale in (1.0, 2.0**14):
        net.zero_grad()
        scaler = torch.amp.GradScaler(device, init_scale=scale)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        with torch.autocast(device, torch.float16):
            loss = strict(net, x).mean() + 0.1 * penalties.r1(net, x, strict=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert grads[0].isfinite().all() and relative_error(*grads) < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("allowed", [True, False], ids=["tf32", "ieee"])
def test_tf32_follows_pytorchs_switch(allowed):
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        assert_within_budget(lambda: resnet("cuda"), strict, reference.normalize_gradient, nn.Module.float)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("way", "layers"),
    [
        ("passes", (nn.Conv2d, nn.AvgPool2d)),
        ("module", (nn.Conv2d, nn.AvgPool2d)),
        # On CPUs autocast upsamples in float32, so that the passes have a conversion between the two.
        ("module", (nn.Upsample, nn.Conv2d)),
    ],
    ids=["passes-pooled", "module-pooled", "module-upsampled"],
)
def test_kernels_are_folded_from_float32_and_rounded_once(layers, way, monkeypatch):
    """A relative error of 1.66e-3 for a mean of 2 x 2 in bfloat16; from rounded weights it would be 2.35e-3."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=False)
    blocks = {nn.Conv2d: conv, nn.AvgPool2d: nn.AvgPool2d(2), nn.Upsample: nn.Upsample(scale_factor=2)}
    net = nn.Sequential(*(blocks[layer] for layer in layers))
    fold = fold_avg_pool if nn.AvgPool2d in layers else fold_upsample
    expected = fold(conv.weight.detach().double(), (2, 2))
    x = torch.randn(2, 16, 6, 6)
    if way == "passes":
        critic = nn.Sequential(net, nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
        critic(x)
        with torch.autocast("cpu", torch.bfloat16):
            plan, recorded = record(critic, x, (), {})
        form = next(form for *_, form in operands.made_of(plan, recorded, False) if form.fold)
        (folded,) = kernels.prepare([conv.weight], [form])
    else:
        used = []
        convolution = calls.convolution
        monkeypatch.setattr(calls, "convolution", lambda x, w, *rest: used.append(w) or convolution(x, w, *rest))
        with torch.autocast("cpu", torch.bfloat16):
            gnfast.rewrite(net)(x).sum()
        folded = used[-1].to(torch.bfloat16)
    assert folded.dtype == torch.bfloat16
    assert relative_error(folded.double(), expected) < 1.9e-3
    weights = fold(conv.weight.detach().bfloat16(), (2, 2)).double()
    assert relative_error(folded.double(), expected) < 0.8 * relative_error(weights, expected)
    # Exact but for float32: nothing on the way back rounds to bfloat16.
    seed = torch.randn_like(expected).to(torch.bfloat16)
    if way == "passes":
        (grad,) = kernels.gradients([seed], [conv.weight], [form])
    else:
        (grad,) = torch.autograd.grad(folded, conv.weight, seed)
    wide = conv.weight.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(fold(wide, (2, 2)), wide, seed.double())
    assert grad.dtype == torch.float32
    assert relative_error(grad.double(), truth) < 1e-6


class LowConvolutions(TorchDispatchMode):
    """Counts the convolutions, forward and backward, that get something in low precision."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            given = [a for a in args if isinstance(a, torch.Tensor) and not a.is_meta]
            self.count += any(tensor.dtype in LOW for tensor in given)
        return func(*args, **(kwargs or {}))


def smooth(net, x):
    """A critic of convolutions of all kinds whose double backward meets kernels as large as its maps."""
    h = F.softplus(net.same(F.softplus(net.first(x))))
    return net.line(F.softplus(net.up(h)).mean(3)).cos().sum((1, 2))


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "autocast"])
def test_double_backward_avoids_convolutions_of_low_precision_on_cpus(precision):
    """PyTorch's second-order weight gradient is wrong on CPUs with AMX in bfloat16, at even batches below 16."""
    first, same = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, (3, 5), padding="same", bias=False)
    up, line = nn.ConvTranspose2d(3, 2, 3, stride=2, groups=1), nn.Conv1d(2, 3, 3, dilation=2)
    low, x = Called(smooth, first=first, same=same, up=up, line=line), torch.randn(8, 3, 32, 32)
    if precision != "autocast":
        low, x = low.to(getattr(torch, precision)), x.to(getattr(torch, precision))
    exact = copy.deepcopy(low).double()
    truth = torch.autograd.grad(reference.value_and_grad_norm(exact, x.double())[1].sum(), list(exact.parameters()))
    with LowConvolutions() as low_convolutions:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            norms = gnfast.value_and_grad_norm(low, x, impl="reference")[1]
        gradients = torch.autograd.grad(norms.sum(), list(low.parameters()), allow_unused=True)
    assert low_convolutions.count == 0
    for parameter, gradient, expected in zip(low.parameters(), gradients, truth, strict=True):
        assert gradient.dtype == parameter.dtype
        assert relative_error(gradient.double(), expected) < 0.02


def test_convolutions_of_mixed_dtypes_stay_the_networks_own_error():
    net = nn.Sequential(nn.Conv2d(3, 1, 4), nn.Softplus()).bfloat16()
    with pytest.raises(RuntimeError, match=r"type|dtype"):
        gnfast.normalize_gradient(net, torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("shape", "function"),
    [
        ((2, 3, 4, 4, 4), lambda h: F.avg_pool3d(h, 2)),
        ((2, 3, 4, 4, 4), lambda h: F.adaptive_avg_pool3d(h, 2)),
        ((2, 3, 4, 4, 4), lambda h: F.max_pool3d(h, 2)),
        ((2, 3, 4, 4, 4), lambda h: F.adaptive_max_pool3d(h, 2)),
        ((2, 3, 4, 4, 4), lambda h: F.pad(h, (1,) * 6, "reflect")),
        ((2, 3, 4, 4), lambda h: F.pad(h, (1,) * 4, "reflect")),
        ((2, 3, 4), lambda h: F.pad(h, (1, 1), "replicate")),
        ((2, 3, 4, 4), lambda h: F.pad(h, (1,) * 4, "circular")),
        ((2, 3, 4, 4, 4), lambda h: F.max_pool3d(h, 2, return_indices=True)[0]),
        ((2, 3, 4, 4, 4), lambda h: F.interpolate(h, size=2, mode="area")),
        ((2, 3), lambda h: torch.addmm(torch.ones(4), h, torch.ones(3, 4), beta=2, alpha=3)),
        ((2, 3), lambda h: torch.addmm(h.float(), h, torch.ones(3, 3))),
        ((2, 3), lambda h: torch.addmm(h, torch.ones(2, 4), torch.ones(4, 3))),
        ((2, 3), lambda h: h.float().addmm_(h.float(), torch.ones(3, 3))),
        ((2, 3, 4), lambda h: torch.baddbmm(torch.ones(2, 3, 5), h, torch.ones(2, 4, 5))),
        ((2, 3, 4), lambda h: h.float().baddbmm(torch.ones(2, 3, 5), torch.ones(2, 5, 4))),
        ((2, 3), lambda h: torch.mv(h.float(), torch.ones(3))[:, None]),
        ((2, 3), lambda h: (h.float() @ torch.ones(3))[:, None]),
        ((2, 3), lambda h: torch.einsum("bi,i->bi", h, torch.ones(3))),
        ((2, 3), lambda h: torch.einsum("bi,ij->bj", h, torch.ones(3, 4))),
        ((2, 3), lambda h: torch.einsum("bi,ij->bj", h, torch.ones(3, 1))),
        ((2, 3), lambda h: torch.einsum("bi->b", h.float())[:, None]),
        ((2, 3, 4, 4), lambda h: F.prelu(h.float(), h.new_full((1,), 0.25, dtype=torch.float32))),
    ],
)
def test_dtypes_of_autocast_on_cpus(shape, function):
    def forward(net, x):
        h = function(x.bfloat16())
        dtypes.append(h.dtype)
        return h.flatten(1).float().sum(1)

    dtypes, net, x = [], Called(forward), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        f, n = gnfast.value_and_grad_norm(net, x, strict=True)
        expected, norm = reference.value_and_grad_norm(net, x)
    assert dtypes[0] == dtypes[1] and (f.dtype, n.dtype) == (expected.dtype, norm.dtype)
    assert relative_error(f, expected) < 1e-2 and relative_error(n, norm) < 1e-2


@pytest.mark.parametrize(
    "divide",
    [torch.div, torch.true_divide, torch.Tensor.div_, operator.truediv, operator.itruediv],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize(
    ("dtype", "value", "divisor"),
    [
        (torch.float16, 1e-3, torch.full((6,), 1e-5).half()),
        (torch.float16, 4e4, torch.full((6,), 4e4).half()),
        (torch.float16, 4e4, torch.tensor(4e4).half()),
        (torch.float16, 1e-3, torch.full((6,), 1e-5)),
        (torch.bfloat16, 1.0, torch.tensor([3, 7, 11, 13, 17, 19])),
        (torch.float32, 1e-39, 1e-39),
        (torch.float64, 1e-309, 1e-309),
        (torch.float64, 1.0, 0),
    ],
)
def test_a_divisor_divides(dtype, value, divisor, divide):
    """Its reciprocal would be rounded once more, or infinite."""
    net, x = Called(lambda net, x: divide(x * 1, divisor).sum(1)), torch.full((2, 6), value, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        f, g = gnfast.value_and_input_grad(net, x, strict=True)
        expected_f, expected_g = reference.value_and_input_grad(net, x)
    assert f.dtype == expected_f.dtype
    assert torch.equal(f, expected_f) and torch.equal(g, expected_g)


@pytest.mark.parametrize("shape", [(6,), (), (4, 6)], ids=str)
def test_a_trained_divisor_in_low_precision(shape):
    def make():
        return Called(lambda net, x: (x * 1 / net.divisor).sum(1), divisor=normal(*shape).abs() + 0.5), normal(4, 6)

    assert_within_budget(make, strict, reference.normalize_gradient, nn.Module.half)

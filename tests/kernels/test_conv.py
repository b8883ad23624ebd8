"""Convolutions fused with the pointwise work around them: the Plan, the choice among kernels, and the whole engine.

A plain PyTorch twin stands for the Triton kernels, so that everything around them is checked in float64 against double
backward; their own numbers are checked in `test_conv_triton.py`.
"""

import copy
import json
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gnfast
from gnfast import heads, models, reference
from gnfast.bench.count import work
from gnfast.kernels import autotune, backend, conv
from gnfast.kernels.conv import contest
from gnfast.kernels.conv.tiles import CONFIGURATIONS
from gnfast.kernels.join import plain
from gnfast.plan import fuse, tracing
from gnfast.plan.ops.join import ConvJoin
from gnfast.steps.captured import CapturedStep
from tests.engine.test_engine import NETWORKS
from tests.engine.test_precision import budget
from tests.kernels.conv_twin import ConvTwin
from tests.kernels.test_join import Joints
from tests.oracle import assert_matches_double_backward, assert_same, outputs_and_gradients, relative_error

LAST = torch.channels_last


@pytest.fixture
def twin(fused, use):
    return use("conv", "cpu", "triton", module=ConvTwin())


@pytest.fixture
def seconds(tuner, monkeypatch):
    """Of each call, by the candidate's name; 1 for those that are not there."""
    seconds = {}
    monkeypatch.setattr(autotune, "_seconds", lambda call, device: seconds.get(*getattr(call, "args", ("apart",)), 1.0))
    return seconds


def choices():
    """operation: the names that were chosen for it."""
    found = {}
    for key, (name, _) in json.loads(autotune.cache_file(torch.device("cpu")).read_text())["choices"].items():
        found.setdefault(json.loads(key)[0][0], set()).add(name)
    return found


def forget_choices():
    autotune.cache_file(torch.device("cpu")).unlink(missing_ok=True)
    autotune._loaded.cache_clear()


def images(*shape, **options):
    return torch.randn(*shape, dtype=torch.float64, **options).contiguous(memory_format=LAST)


def in_doubles(net):
    return net.double().to(memory_format=LAST)


def critic(model, width=0.05):
    net = in_doubles(models.build(model, resolution=32, width=width)[1])
    for parameter in net.parameters():
        if parameter.dim() > 1:
            # DCGAN's own weights are so small that gradients of some heads would be rounding errors.
            nn.init.kaiming_normal_(parameter)
    return net


OTHERS = {
    "relu": F.relu,
    "leaky": lambda h: F.leaky_relu(h, 0.2),
    "abs": torch.abs,
    "half": lambda h: h / 2,
    "pool": lambda h: F.avg_pool2d(h, 3, 1, 1),
    "flip": lambda h: h.flip(3),
}


class Graph(nn.Module):
    """A random graph of convolutions, sums, activations and a few other operations on maps of one size.

    Every value is read; parameters of every third graph are frozen by chance.
    """

    def __init__(self, seed, channels=6, size=9):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def below(n):
            return int(torch.randint(n, (), generator=draw))

        self.convs = nn.ModuleList()
        self.steps = []
        unread = [0]
        for place in range(1, size + below(6)):
            kinds = ("conv", "conv", "conv", "add", "add", "relu", "relu", "leaky", *OTHERS)
            kind = kinds[below(len(kinds))] if place > 1 else "conv"
            first = unread[-1] if below(3) else below(place)
            second = unread[0] if below(2) else below(place)
            if kind == "conv":
                kernel = (1, 3)[below(2)]
                channels_in = 3 if first == 0 else channels
                self.convs.append(nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, bias=below(4) > 0))
            elif first == 0 or (kind == "add" and second == 0):
                kind, first, second = "leaky", place - 1, place - 1
            self.steps.append((kind, first, second, len(self.convs) - 1))
            read = {first, second} if kind == "add" else {first}
            unread = [value for value in unread if value not in read] + [place]
        self.unread = [value for value in unread if value]
        self.last, self.linear = nn.Conv2d(channels, channels, 3, 2), nn.Linear(channels, 1)
        for place, parameter in enumerate(self.parameters()):
            parameter.requires_grad_(seed % 3 != 0 or below(2) > 0 or place == 0)

    def forward(self, x):
        values = [x]
        for kind, first, second, index in self.steps:
            h = values[first]
            if kind == "conv":
                values.append(self.convs[index](h))
            elif kind == "add":
                values.append(h + values[second])
            else:
                values.append(OTHERS[kind](h))
        total = sum(values[value] for value in self.unread)
        return self.linear(F.relu(self.last(F.relu(total))).mean((2, 3)))


class Readers(nn.Module):
    """Sums that two others read beside the activation, of which one has one reader and one two; strides."""

    def __init__(self, channels=6, wide=8):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)
        self.down = nn.Conv2d(channels, wide, 4, stride=2, padding=1)
        self.skip = nn.Conv2d(channels, wide, 2, stride=2)
        self.out = nn.Conv2d(wide, channels, 3, stride=(2, 1), padding=(1, 0))

    def forward(self, x):
        stem = self.stem(x)
        total = self.first(F.leaky_relu(stem, 0.1)) + stem
        h = F.relu(total)
        means = (stem.mean((1, 2, 3)), total.mean((1, 2, 3)), self.second(h).mean((1, 2, 3)))
        h = F.relu(self.down(h) + self.skip(total))
        return F.relu(self.out(h)).sum((1, 2, 3)) + sum(means)


class TwoStems(nn.Module):
    """Two convolutions read x."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 3, padding=1)
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        return self.out(F.relu(self.small(x) + self.large(x)).mean((2, 3)))


# The Plan.


@pytest.mark.usefixtures("fused")
def test_the_larger_convolution_goes_with_the_join():
    plan = gnfast.trace(TwoStems(), torch.empty(2, 3, 5, 5))
    assert [node.op.label() for node in plan.nodes][:2] == ["conv2d", "conv2d p1 + add + relu (fused)"]
    node = plan.nodes[1]
    assert node.submodule == "large" and node.inputs == (0, plan.nodes[0].output)
    assert len(node.biases) == 2 and node.operands[1] in node.biases


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    "before",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3)),
    ],
    ids=["groups", "dilation", "transposed", "conv1d"],
)
def test_other_convolutions_stay_alone(before):
    net = nn.Sequential(before, nn.ReLU(), nn.Flatten(), nn.LazyLinear(1)).double()
    x = images(2, 4, 7, 7)
    net(x)
    assert not any(isinstance(node.op, ConvJoin) for node in gnfast.trace(net, x).nodes)
    assert_matches_double_backward(net, x)


@pytest.mark.parametrize("seed", range(30))
def test_costs_are_those_of_the_plan_as_stated(seed):
    net, x = Graph(seed), torch.empty(2, 3, 5, 5)
    stated = tracing.record(net, x, (), {}, rewritten=False, fused=False)[0]
    plan = replace(stated, nodes=fuse.fuse(stated.nodes, stated.output))
    assert any(isinstance(node.op, ConvJoin) for node in plan.nodes)
    assert plan.flops() == stated.flops() and plan.kept_bytes() == stated.kept_bytes()


class Branches(nn.Module):
    """A sum of two convolutions, of which the smaller one has layers of its own before it."""

    def __init__(self):
        super().__init__()
        self.stem, self.large = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.small = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        h = F.relu(self.stem(x))
        return self.linear(F.relu(self.small(h) + self.large(h)).mean((2, 3)))


@pytest.mark.parametrize("name", [name for name, _ in Branches().named_parameters()])
def test_no_more_is_done_for_one_parameter_alone(name, monkeypatch):
    net, x = Branches().double().requires_grad_(False), images(2, 3, 5, 5)
    net.get_parameter(name).requires_grad_()
    stated = tracing.record(net, x, (), {}, rewritten=False, fused=False)[0]
    plan = replace(stated, nodes=fuse.fuse(stated.nodes, stated.output))
    assert plan.flops() == stated.flops() and plan.kept_bytes() == stated.kept_bytes()
    monkeypatch.setattr(plain, "FUSES", True)
    assert_matches_double_backward(net, x)


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_match_double_backward(seed):
    assert_matches_double_backward(Graph(seed).double(), torch.randn(3, 3, 5, 4, dtype=torch.float64))


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize("model", ["dcgan", "resnet", "joints"])
def test_without_the_tuner_nothing_changes(model, monkeypatch):
    net, x = (in_doubles(Joints()), images(3, 3, 5, 7)) if model == "joints" else (critic(model), images(3, 3, 32, 32))

    def step():
        return outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True)

    seen, launches = step(), work(step).launches
    with monkeypatch.context() as patched:
        patched.setattr(fuse, "_with_convolutions", lambda nodes, output: nodes)
        tracing._plan.cache_clear()
        assert not any(isinstance(node.op, ConvJoin) for node in gnfast.trace(net, x).nodes)
        expected = step()
        assert work(step).launches == launches
    tracing._plan.cache_clear()
    assert all(torch.equal(seen[name], value) for name, value in expected.items())


# The engine with kernels that fuse.

FORWARD = {"conv2d", "conv_join_forward", "conv_join_pushforward"}
FUNCTIONS = FORWARD | {"conv2d_input_grad", "conv2d_input_grad_squares", "conv_input_grad_join"}
PADDED = (1, 1), (1, 1), (1, 1), False, (0, 0), 1
"""The arguments of a convolution with padding 1."""


def test_fused_kernels_in_any_graph_match_double_backward(twin):
    for seed in range(60):
        x = images(3, 3, 5, 4)
        assert_matches_double_backward(in_doubles(Graph(seed)), x.contiguous() if seed % 10 == 9 else x)
    assert_matches_double_backward(in_doubles(Readers()), images(3, 3, 8, 8))
    seen = set(twin.calls)
    assert twin.functions.keys() == FUNCTIONS
    assert {("conv_input_grad_join", before, after) for before in (0, 1) for after in (0, 1, 2)} <= seen
    for name in ("conv_join_forward", "conv_join_pushforward"):
        variants = {(terms, keeps) for other, terms, _, keeps in (v for v in seen if len(v) == 4) if other == name}
        assert variants == {(0, False), (0, True), (1, False), (1, True)}


@pytest.mark.parametrize("name", [*NETWORKS, "joints", "readers"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
def test_fused_kernels_match_double_backward(name, layout, twin):
    net = {"joints": Joints, "readers": Readers}.get(name) or NETWORKS[name]
    x = torch.randn(4, 3, 5, 7, dtype=torch.float64).contiguous(memory_format=layout)
    assert_matches_double_backward(net().double().to(memory_format=layout), x)
    if name in ("cnn", "resnet", "joints", "readers"):
        assert bool(twin.calls) == (layout == LAST)


# What each critic step calls, in all three functions of `assert_matches_double_backward`, of which only the first one
# takes the norm where it takes the gradient.
STEPS = {
    "resnet": {
        "conv2d": 2 + 2,
        "conv2d_input_grad": 3,
        "conv_input_grad_join": 7,
        "conv_join_forward": 8,
        "conv_join_pushforward": 8,
    },
    "dcgan": {"conv2d_input_grad": 1, "conv_input_grad_join": 6, "conv_join_forward": 7, "conv_join_pushforward": 7},
    "dcgan, frozen": {"conv2d_input_grad": 1, "conv_input_grad_join": 6, "conv_join_forward": 7},
}


@pytest.mark.parametrize("step", STEPS)
def test_fused_kernels_in_critics(step, twin):
    """A generator's step is one with frozen weights."""
    model, _, frozen = step.partition(", ")
    net, x = critic(model).requires_grad_(not frozen), images(3, 3, 32, 32)
    assert_matches_double_backward(net, x)
    expected = {name: 3 * count for name, count in STEPS[step].items()}
    if model == "dcgan":
        expected |= {"conv2d_input_grad": 2, "conv2d_input_grad_squares": 1}
    assert twin.functions == expected


HEADS = {name: {"method": name} for name in heads.METHODS} | {"options": {"method": "gran", "tau": 1.2, "eps": 0.03}}
HEADS["a head of one's own"] = {"method": heads.Head("own", heads.GN.value, heads.GN.partials, centre=0.5)}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("model", ["dcgan", "resnet", "two stems"])
def test_fused_kernels_under_every_head(model, name, twin):
    net = in_doubles(TwoStems()) if model == "two stems" else critic(model)
    options, x = HEADS[name], images(3, 3, 32, 32)
    expected = outputs_and_gradients(gnfast.normalize_gradient, net, x, impl="reference", **options)
    twin.calls.clear()
    assert_same(outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True, **options), expected)
    # One sum of squares where nothing else reads x.
    assert twin.functions.get("conv2d_input_grad_squares", 0) == (model == "dcgan")


def test_sums_that_the_kernels_do_not_know_are_joined_apart(twin):
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(54, 1)
    )
    assert_matches_double_backward(in_doubles(net), images(2, 3, 5, 5))
    assert twin.functions["conv_join_forward"] == twin.functions["conv_join_pushforward"] == 3
    assert twin.functions["conv2d"] == 6


def test_gradients_that_nothing_fuses_are_computed_once(twin):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), TwoStems())
    gnfast.value_and_input_grad(in_doubles(net), images(2, 3, 6, 6), strict=True)
    assert twin.functions == {"conv2d": 2, "conv_join_forward": 1, "conv2d_input_grad": 3}


# The choice.


def test_no_kernel_competes_unless_asked(use, monkeypatch):
    monkeypatch.delenv("GNFAST_AUTOTUNE", raising=False)
    monkeypatch.setattr(contest, "implementation", lambda *_: pytest.fail("was asked for"))
    given = images(2, 4, 5, 5), (2, 3, 5, 5), images(4, 3, 3, 3), PADDED
    assert not conv.fuses(*given)
    use("conv", "cpu", "torch", "triton")
    assert not conv.fuses(*given)
    use("conv", "cpu", "torch")
    monkeypatch.setenv("GNFAST_AUTOTUNE", "1")
    assert not conv.fuses(*given)


def test_backends_that_compete(monkeypatch):
    monkeypatch.setattr(backend, "_unavailable", lambda name: None)
    for request, expected in {"auto": ("torch", "triton"), "triton": ("triton",), "torch": ("torch",)}.items():
        monkeypatch.setattr(backend, "REQUEST", request)
        monkeypatch.setattr(backend, "CHOSEN", {})
        assert backend.choices("conv", "cuda") == expected
        assert backend.backends()["conv2d"] == {"cuda": expected[0]}
        assert backend.choices("conv", "cpu") == ("torch",)


@pytest.mark.usefixtures("fused")
def test_the_tuner_picks_per_shape_and_the_step_is_right(seconds, use):
    twin = use("conv", "cpu", "torch", "triton", module=ConvTwin())
    net, x = in_doubles(Readers()), images(3, 3, 8, 8)
    # Nothing beats what is there: only the measurements call the twin.
    assert_matches_double_backward(net, x)
    assert choices() == {"tile": {"first"}} | {key: {"apart"} for key in FUNCTIONS}
    twin.calls.clear()
    assert_matches_double_backward(net, x)
    assert not twin.calls
    # Another shape, for which the second configuration is the fastest.
    seconds |= {"first": 0.8, "second": 0.5}
    assert_matches_double_backward(net, images(2, 3, 8, 8))
    assert choices() == {"tile": {"first", "second"}} | {key: {"apart", "second"} for key in FUNCTIONS}
    twin.calls.clear()
    assert_matches_double_backward(net, images(2, 3, 8, 8))
    assert twin.functions.keys() == FUNCTIONS


SPOILT = {
    "raises": lambda t: 1 / 0,
    "off": lambda t: t * 1.001,
    "nan": lambda t: t * torch.nan,
    "rounded": lambda t: t * (1 + 1e-14),
}


@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    ("function", "spoil"),
    # Each function says itself which of its tensors are compared; what else there is, is the same for all.
    [*product(sorted(FUNCTIONS), ("off", "nan")), *product(("conv2d", "conv_join_forward"), ("raises", "rounded"))],
)
def test_a_wrong_candidate_is_never_chosen(function, spoil, seconds, use):
    """Each tensor of each result in turn is spoilt, in the fastest configuration."""
    seconds |= {"right": 0.8, "spoilt": 0.1}
    for place in range(1 + (function in ("conv2d_input_grad_squares", "conv_join_forward", "conv_join_pushforward"))):

        def fault(name, configuration, result, place=place):
            if name != function or configuration != "spoilt":
                return result
            parts = list(result) if isinstance(result, tuple) else [result]
            if parts[place] is not None:
                parts[place] = SPOILT[spoil](parts[place])
            return tuple(parts) if isinstance(result, tuple) else parts[0]

        # The default of the configurations may be the wrong one, too.
        names = ("right", "spoilt") if place else ("spoilt", "right")
        use("conv", "cpu", "torch", "triton", module=ConvTwin(names, fault))
        forget_choices()
        assert_matches_double_backward(in_doubles(Readers()), images(3, 3, 8, 8))
        chosen = choices()
        chosen.pop("tile")
        # What is made of a wrong convolution is not even tried.
        followers = {"conv2d": FORWARD, "conv2d_input_grad": FUNCTIONS - FORWARD}.get(function, {function})
        assert all(names == {"spoilt"} for name, names in chosen.items() if name not in followers)
        # Where the spoilt tensor is not made, nothing is wrong.
        spoilt_too = {"spoilt"} if place or spoil == "rounded" else set()
        others = {"right" if len(followers) > 1 else "apart"} if spoil != "rounded" else set()
        for name in followers:
            assert others <= chosen[name] <= others | spoilt_too


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("keep_sum", [False, True])
def test_signs_near_zero_may_differ_and_others_may_not(keep_sum, slope, seconds, use, monkeypatch):
    x, weight, bias = images(4, 3, 6, 6), images(32, 3, 3, 3), torch.randn(32, dtype=torch.float64)
    total = torch.convolution(x, weight, bias, *PADDED).permute(0, 2, 3, 1).flatten()
    smallest, largest = total.abs().argmin().item(), total.abs().argmax().item()
    flips = {"near zero": smallest, "far from it": largest, "all": None}

    def fault(name, configuration, result):
        if name != "conv_join_forward":
            return result
        y, total, bits = result
        index = flips[configuration]
        if index is None:
            return y, total, torch.full_like(bits, -1)
        flag = torch.zeros_like(bits)
        flag[index // 32] = (1 << index % 32) - (1 << 32 if index % 32 == 31 else 0)
        return y, total, bits ^ flag

    monkeypatch.setitem(contest._TOLERANCE, torch.float64, 1e-3)
    for configuration in flips:
        use("conv", "cpu", "torch", "triton", module=ConvTwin([configuration], fault))
        seconds[configuration] = 0.1
        forget_choices()
        conv.conv_join_forward(x, weight, PADDED, [], [bias], slope, keep_sum)
        expected = "near zero" if configuration == "near zero" else "apart"
        assert choices()["conv_join_forward"] == {expected}


# The kernels.


@pytest.fixture
def ieee():
    """Products of float32 numbers as they are, where PyTorch would let them be rounded to TF32."""
    place = torch.backends.cudnn.conv
    before = place.fp32_precision
    place.fp32_precision = "ieee"
    yield
    place.fp32_precision = before


@pytest.mark.interpreted
@pytest.mark.usefixtures("fused", "ieee")
@pytest.mark.parametrize("model", ["joints", "readers", "cnn"])
def test_interpreted_kernels_under_the_engine(model, use, noted):
    use("conv", "cpu", "triton")
    net = {"joints": lambda: Joints(32), "readers": lambda: Readers(32, 64), "cnn": NETWORKS["cnn"]}[model]()
    net = net.to(memory_format=LAST)
    x = torch.randn(2, 3, 5, 6).contiguous(memory_format=LAST)
    truth = outputs_and_gradients(reference.normalize_gradient, copy.deepcopy(net).double(), x.double())
    fast = outputs_and_gradients(gnfast.normalize_gradient, net, x, strict=True)
    for name, value in truth.items():
        assert relative_error(fast[name].double(), value) <= 2e-5, name
    assert {"conv_join_forward", "conv_join_pushforward", "conv_input_grad_join"} <= noted or model == "cnn"
    assert "conv2d_input_grad_squares" in noted


@pytest.fixture
def noted(monkeypatch):
    """The names of the kernels' functions that have been called."""
    from gnfast.kernels.conv import triton as conv_triton

    calls = set()
    for name in FUNCTIONS:
        function = getattr(conv_triton, name)
        monkeypatch.setattr(
            conv_triton, name, lambda *args, name=name, function=function: calls.add(name) or function(*args)
        )
    return calls


def check_errors(make, dtype, device):
    """Errors of the engine within twice those of plain PyTorch, against float64.

    A sign that rounding turns changes a sample's gradient by far more than rounding does: with many samples, the errors
    are not those of one such event.
    """
    batch = 256 if device == "cuda" else 64
    fast, plain = budget(
        lambda: (in_doubles(make().to(device)), images(batch, 3, 8, 8, device=device)),
        lambda net, x: gnfast.normalize_gradient(net, x, strict=True),
        reference.normalize_gradient,
        lambda net: net.to(dtype),
    )
    assert fast <= 2 * plain, (fast, plain)


LOW = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_low_precision(dtype, twin):
    check_errors(Readers, dtype, "cpu")
    assert twin.functions.keys() == FUNCTIONS


# Compiled once per dtype, as kernels are kept: models and sizes are the same in all that follows.
GPU_CRITICS = {
    "readers": lambda: Readers(32, 64),
    "resnet": lambda: models.build("resnet", resolution=32, width=0.25)[1],
}


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "dtype"), [*(("readers", dtype) for dtype in LOW), ("resnet", torch.bfloat16)])
def test_engine_with_kernels(model, dtype, use, noted):
    use("conv", "cuda", "triton")
    check_errors(GPU_CRITICS[model], dtype, "cuda")
    assert noted == FUNCTIONS - ({"conv2d_input_grad_squares"} if model == "resnet" else set())


def keep_configurations(count, monkeypatch):
    for name in list(CONFIGURATIONS)[count:]:
        monkeypatch.delitem(CONFIGURATIONS, name)


@pytest.mark.gpu
@pytest.mark.usefixtures("tuner")
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_engine_with_the_tuner(dtype, noted, monkeypatch):
    keep_configurations(1, monkeypatch)
    check_errors(GPU_CRITICS["readers"], dtype, "cuda")
    assert noted == FUNCTIONS
    choices = json.loads(autotune.cache_file(torch.device("cuda", 0)).read_text())["choices"]
    assert {json.loads(key)[0][0] for key in choices} >= FUNCTIONS


@pytest.mark.gpu
@pytest.mark.usefixtures("tuner")
@pytest.mark.parametrize("forced", [False, True], ids=["tuned", "triton"])
def test_captured_step_with_the_tuner(forced, use, monkeypatch):
    keep_configurations(2, monkeypatch)
    if forced:
        use("conv", "cuda", "triton")
    net = GPU_CRITICS["readers"]().cuda().to(torch.bfloat16, memory_format=LAST)
    x = images(256, 3, 8, 8, device="cuda").to(torch.bfloat16)

    def step(x):
        net.zero_grad(set_to_none=True)
        f_hat = gnfast.normalize_gradient(net, x, strict=True)
        f_hat.float().square().sum().backward()
        return f_hat, [p.grad for p in net.parameters()]

    captured = CapturedStep(step, "cuda")
    for _ in range(5):
        f_hat, grads = captured(x)
    assert captured.captured
    expected, expected_grads = step(x)
    for actual, wanted in zip([f_hat, *grads], [expected, *expected_grads], strict=True):
        assert relative_error(actual.float(), wanted.float()) <= 2e-2

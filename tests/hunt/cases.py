"""A random critic, how it is called, and what a user can see of the call: by gnfast, and by plain double backward."""

import contextlib
import math
import random
import unittest.mock
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gnfast
from gnfast import FallbackWarning, UnsupportedError
from gnfast.engine import ways
from gnfast.plan.plan import Plan
from gnfast.plan.traced import Traced
from tests.hunt.steps import HOSTILE, MODULE_HOOKS, forget
from tests.random_networks import FAMILIES, Critic, draw_critic

PRECISIONS = ("float64", "float32", "bfloat16", "autocast")


# -------------------------------------------------------------------------------- the truth


def _f_and_g(net: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x as it was differentiated, f, and ∇ₓ f.sum()."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    f = net(x, *args, **kwargs)
    (g,) = torch.autograd.grad(f, x, torch.ones_like(f), create_graph=True)
    return x, f, g


def _norm(g: Tensor) -> Tensor:
    return g.flatten(1).norm(dim=1)


FORMULAS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gn": lambda f, n, to_ones: f / (n + f.abs()),
    "gn1": lambda f, n, to_ones: f / (n + 1),
    "gn0": lambda f, n, to_ones: f / n,
    "gran": lambda f, n, to_ones: f * n / (n**2 + 0.1),
    "gran-shift": lambda f, n, to_ones: f / (n + 0.1),
    "pgn": lambda f, n, to_ones: (1 - f) / (to_ones + (1 - f).abs()),
    "pgn-table": lambda f, n, to_ones: (1 - f) / (n + (1 - f).abs()),
}


def own_normaliser(f: Tensor, n: Tensor) -> Tensor:
    return torch.tanh(f) / (1 + n * n)


def _normalised(method: Any, net, x, *args, **kwargs) -> tuple[Tensor, Tensor]:
    x, f, g = _f_and_g(net, x, *args, **kwargs)
    n, to_ones = (m.view(-1, *[1] * (f.dim() - 1)) for m in (_norm(g), _norm(1 - g)))
    return x, own_normaliser(f, n) if method is own_normaliser else FORMULAS[method](f, n, to_ones)


def _between(real: Tensor, fake: Tensor) -> Tensor:
    place = torch.rand(len(real), *[1] * (real.dim() - 1), dtype=real.dtype)
    return (real + place * (fake - real)).detach()


class Plain:
    """What the functions of gnfast promise, in the words of the papers' code."""

    @staticmethod
    def value_and_input_grad(net, x, *args, **kwargs):
        return _f_and_g(net, x, *args, **kwargs)[1:]

    @staticmethod
    def value_and_grad_norm(net, x, *args, **kwargs):
        _, f, g = _f_and_g(net, x, *args, **kwargs)
        return f, _norm(g)

    @staticmethod
    def normalize_gradient(net, x, *args, method, return_grad_norm=False, **kwargs):
        x, f_hat = _normalised(method, net, x, *args, **kwargs)
        if not return_grad_norm:
            return f_hat
        (g,) = torch.autograd.grad(f_hat, x, torch.ones_like(f_hat), create_graph=True)
        return f_hat, _norm(g)

    @staticmethod
    def r1(net, x, *args, **kwargs):
        return 0.5 * _norm(_f_and_g(net, x, *args, **kwargs)[2]).square().mean()

    @staticmethod
    def one_centered(net, real, fake, *args, **kwargs):
        return (_norm(_f_and_g(net, _between(real, fake), *args, **kwargs)[2]) - 1).square().mean()

    @staticmethod
    def dragan(net, x, *args, **kwargs):
        noisy = x + 0.5 * x.detach().std() * torch.rand_like(x)
        return Plain.one_centered(net, x, noisy, *args, **kwargs)


class _PlainNorm(nn.Module):
    """`GradientNorm` in the same words: global hooks are called for it as well."""

    def __init__(self, net: nn.Module, method: Any) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return Plain.normalize_gradient(self.net, x, *args, method=self.method, **kwargs)


class Engine:
    """The same by gnfast."""

    value_and_input_grad = staticmethod(gnfast.value_and_input_grad)
    value_and_grad_norm = staticmethod(gnfast.value_and_grad_norm)
    normalize_gradient = staticmethod(gnfast.normalize_gradient)
    r1 = staticmethod(gnfast.penalties.r1)
    one_centered = staticmethod(gnfast.penalties.one_centered)
    dragan = staticmethod(gnfast.penalties.dragan)


# -------------------------------------------------------------------------------- a case and its call

CALLS = (
    *["normalize_gradient"] * 5,
    *["value_and_grad_norm", "value_and_input_grad"] * 2,
    *("normalize_gradient, norm", "second derivative", "r1", "one_centered", "dragan", "GradientNorm"),
)
X_KINDS = (*["plain", "requires grad"] * 4, "computed", "hooked", "expanded", "strided", "channels_last", "transposed")
SURROUNDINGS = (*["nothing"] * 20, "no_grad", "inference_mode", "global hook", "rewritten", "accumulated")
GLOBAL_HOOKS = [kind for kind in MODULE_HOOKS if kind != "backward_hook"]


def _hook_everywhere(kind: str) -> Any:
    """A hook on all linear layers that there are."""

    def hook(module: nn.Module, *args: Any) -> Any:
        return MODULE_HOOKS[kind](module, *args) if isinstance(module, nn.Linear) else None

    return getattr(nn.modules.module, f"register_module_{kind}")(hook)


@dataclass
class Case:
    """A critic, what it is given in each step, and how it is called."""

    net: Critic
    xs: list[Tensor]
    labels: Tensor
    call: str
    method: Any
    x_kind: str
    given: str
    backward: str
    surroundings: str
    precision: str = "float64"
    detail: str = ""
    strict: bool = False
    trace_first: bool = False
    two_before_backward: bool = False
    rewrite: bool = True
    frozen: int = 0
    seed: int = 0

    def __str__(self) -> str:
        shown = ("call", "method", "x_kind", "given", "backward", "surroundings", "detail", "precision")
        told = [f"{name}={getattr(self, name)!s}" for name in shown if getattr(self, name)]
        flags = ("strict", "trace_first", "two_before_backward", "rewrite", "frozen")
        told += [f"{name}={getattr(self, name)}" for name in flags if getattr(self, name)]
        return f"{self.net!r}    {len(self.xs)} steps, {', '.join(told)}"


def draw_case(seed: int, precision: str, family: str | None = None, spoil: bool = False) -> Case:
    """The case of a seed, on whatever machine.

    Args:
        family: whose steps alone to draw from; None: those of any of them, and hostile ones.
        spoil: whether one step is to be curved, or to mix samples.
    """
    chance = random.Random(f"{seed} {precision}")
    # Curved critics count twice.
    source = FAMILIES[family or chance.choice([*FAMILIES, "smooth", "coupled", "maps", "modern"])]
    names = source.names
    if precision != "float64":
        names = [name for name in names if name != "cast"]
    if family is None:
        # Hostile steps weigh as much as the others, more, or nothing.
        weight = chance.choice([0, 1, 1, 3])
        names = [*names * max(1, round(len(HOSTILE) / len(names))), *HOSTILE * weight]
    net, x, labels = draw_critic(
        chance, source._replace(names=names), spoil=spoil, longest=chance.choice([3, 5, 7] if not family else [9])
    )
    forget(net)
    call = chance.choice(CALLS)
    method = chance.choice([*FORMULAS, "gn", "gn", own_normaliser]) if call[0] in "nsG" else ""
    x_kind = chance.choice(X_KINDS)
    case = Case(
        net=net,
        xs=[x, *(torch.randn_like(x) for _ in range(chance.choice([0, 0, 1, 2])))],
        labels=labels,
        call=call,
        method=method,
        x_kind="requires grad" if call == "second derivative" else x_kind,
        given=chance.choice([*["a tensor"] * 6, "by keyword", "of x"]),
        backward=chance.choice(["backward", "backward", "grad", "inputs"]),
        surroundings=chance.choice(SURROUNDINGS),
        precision=precision,
        # Two of the penalties draw their points before the network is asked.
        strict=call not in ("one_centered", "dragan") and chance.random() < 0.15,
        trace_first=chance.random() < 0.1,
        two_before_backward=chance.random() < 0.1,
        rewrite=chance.random() < 0.7,
        frozen=chance.choice([0, 0, 0, 0, 2, 3, -2, 1]),
        seed=chance.randrange(1 << 30),
    )
    if any("through data" in str(step.arguments.get("kind")) for step in net.steps):
        # PyTorch itself reads in backward what was put there since, and notices nothing.
        case.two_before_backward = False
    if case.surroundings == "global hook":
        case.detail = chance.choice(GLOBAL_HOOKS)
    if case.surroundings in ("no_grad", "inference_mode"):
        # A value without a graph has no second derivative, its x no hook and no past; what comes from x is a constant.
        case.given = "a tensor" if case.given == "of x" else case.given
        case.call = "normalize_gradient" if case.call == "second derivative" else case.call
        case.x_kind = "plain" if case.x_kind in ("hooked", "computed") else case.x_kind
    if case.surroundings == "rewritten" and any(step.arguments.get("inplace") for step in net.steps):
        case.surroundings = "nothing"
    if any(step.name in ("dropout", "noise", "draws") or "dropout_" in step.arguments.values() for step in net.steps):
        # PyTorch draws a mask in the order of memory, which the recording does not follow.
        case.x_kind = {"expanded": "plain", "strided": "plain", "channels_last": "plain", "transposed": "plain"}.get(
            case.x_kind, case.x_kind
        )
    # 1: all of them, n: every n-th, -n: all but every n-th.
    for place, parameter in enumerate(net.parameters()):
        kept = not case.frozen or (place % abs(case.frozen) == 0) == (case.frozen < 0)
        parameter.requires_grad_(parameter.requires_grad and kept)
        if case.x_kind == "channels_last" and parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return case


LOW = {"float32": torch.float32, "bfloat16": torch.bfloat16, "autocast": torch.float32}


def _x_of(case: Case, place: int, dtype: torch.dtype, nudge: float) -> tuple[Tensor, dict[str, Tensor]]:
    """x of a step as the critic is given it, and the leaves that get its gradient."""
    x = case.xs[place].to(LOW.get(case.precision, dtype)).to(dtype).clone()
    if nudge:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64)
        x = x + (nudge * noise).to(dtype)
    if case.x_kind == "plain":
        return x, {}
    if case.x_kind in ("requires grad", "hooked"):
        x.requires_grad_()
        if case.x_kind == "hooked":
            x.register_hook(lambda grad: grad * 3)
        return x, {"x": x}
    if case.x_kind == "computed":
        z, scale = x.requires_grad_(), torch.full((), 1.2, dtype=dtype).requires_grad_()
        return z * scale, {"z": z, "scale": scale}
    if case.x_kind == "expanded":
        return x[:1].expand_as(x), {}
    if case.x_kind == "strided":
        return torch.stack([x, x + 1], -1)[..., 0], {}
    if case.x_kind == "channels_last" and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    elif x.dim() > 2:
        x = x.mT.contiguous().mT
    return x.requires_grad_(), {"x": x}


def _curved_loss(outputs: tuple[Tensor, ...]) -> Tensor:
    """A scalar that depends on every entry of every output with a weight of its own."""
    total = 0.0
    for output in outputs:
        flat = output.reshape(-1).to(torch.promote_types(output.dtype, torch.float32))
        weights = torch.linspace(0.5, 2, flat.numel(), dtype=flat.dtype)
        total = total + (flat * weights + (flat * 0.3).sin() * weights**2).sum()
    return total


@dataclass
class Seen:
    """What a user sees of one step, by name."""

    numbers: dict[str, Tensor | None]
    state: dict[str, Any]
    fell_back: int = 0
    """How many warnings said so."""
    passes: set[int] = field(default_factory=set)
    """Four, six, or both."""


class WrongVerdict(Exception):
    """What gnfast says of a network is not what it does, or a refusal left traces."""


def run(case: Case, way: type, net: Critic, dtype: torch.dtype, nudge: float = 0.0) -> list[Seen]:
    """What `way` makes of the case, step by step; the network stays changed.

    Args:
        way: `Plain` or `Engine`.
        net: the case's network or a copy of it, in `dtype`.
        nudge: how far x is moved, in standard deviations: what is well conditioned hardly moves with it.
    """
    _set_random(case.seed)
    called = gnfast.rewrite(net) if case.surroundings == "rewritten" and way is Engine else net
    autocast = case.precision == "autocast" and dtype == torch.float32
    seen = []
    for place in range(len(case.xs)):
        passes: set[int] = set()
        with contextlib.ExitStack() as stack:
            if way is Engine:
                noting = partial(_noting, ways.four_passes, passes)
                stack.enter_context(unittest.mock.patch.object(ways, "four_passes", noting))
            stack.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=autocast))
            if case.surroundings == "global hook":
                stack.callback(_hook_everywhere(case.detail).remove)
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            if way is Engine and place == 0 and case.trace_first:
                _trace(case, net, dtype)
            outputs, leaves = _outputs(case, way, called, place, dtype, nudge)
            if case.two_before_backward:
                more, more_leaves = _outputs(case, way, called, (place + 1) % len(case.xs), dtype, nudge)
                outputs, leaves = (*outputs, *more), leaves | {f"second {n}": t for n, t in more_leaves.items()}
            numbers = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
            if any(output.requires_grad for output in outputs):
                numbers |= _gradients(case, net, outputs, leaves)
        fell_back = sum(issubclass(w.category, FallbackWarning) for w in caught)
        seen.append(Seen(numbers, state_of(net), fell_back, passes))
        _update(net, numbers)
    return seen


def _noting(run: Callable[..., Any], passes: set[int], plan: Plan, *args: Any) -> Any:
    passes.add(6 if plan.takes_six else 4)
    return run(plan, *args)


def _update(net: Critic, numbers: dict[str, Tensor | None]) -> None:
    """A small step of the optimiser."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if (grad := numbers.get(f"gradient of {name}")) is not None:
                parameter -= 0.01 * grad.clamp(-1, 1).to(parameter.dtype)


def _set_random(seed: int) -> None:
    # `torch.manual_seed` takes a millisecond where there is no GPU.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (critics that draw from it)


def _outputs(
    case: Case, way: type, net: nn.Module, place: int, dtype: torch.dtype, nudge: float
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    x, leaves = _x_of(case, place, dtype, nudge)
    before = x.detach().clone()
    given = torch.linspace(-1, 1, len(x), dtype=LOW.get(case.precision, dtype)).to(dtype)
    if case.given == "of x":
        given = (0.3 * x).flatten(1).sum(1)
    args, kwargs = ((case.labels,), {"given": given}) if case.given == "by keyword" else ((case.labels, given), {})
    with contextlib.ExitStack() as stack:
        if way is Engine and case.surroundings == "no_grad":
            stack.enter_context(torch.no_grad())
        if way is Engine and case.surroundings == "inference_mode":
            stack.enter_context(torch.inference_mode())
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        result = strictly(case, net, x, args, kwargs) if way is Engine and case.strict else None
        if result is None:
            result = _called(case, way, net, x, args, kwargs)
        if modes != (torch.is_grad_enabled(), torch.is_inference_mode_enabled()):
            raise WrongVerdict("the gradient mode was changed")
    outputs = result if isinstance(result, tuple) else (result,)
    if way is Plain and case.surroundings in ("no_grad", "inference_mode"):
        outputs = tuple(output.detach() for output in outputs)
    if not torch.equal(x.detach(), before):
        raise WrongVerdict("x was changed")
    return outputs, leaves


def strictly(case: Case, net: nn.Module, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The result under `strict`; None where it is refused, which must leave no trace."""
    before = state_of(net)
    try:
        return _called(case, Engine, net, x, args, {**kwargs, "strict": True})
    except UnsupportedError as error:
        if problem := difference(state_of(net), before, 0.0):
            raise WrongVerdict(f"a refusal changed the network: {problem}") from error
        return None


def _called(case: Case, way: type, net: Critic, x: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    call = case.call
    if case.surroundings == "rewritten" and way is Engine and case.seed % 2:
        # The rewritten module under plain double backward; otherwise by the four passes.
        way = Plain
        kwargs.pop("strict", None)
    if way is Engine:
        kwargs = {**kwargs, "rewrite": case.rewrite}
    if call == "GradientNorm" and way is Engine:
        options = {name: kwargs.pop(name) for name in ("rewrite", "strict") if name in kwargs}
        return gnfast.GradientNorm(net, method=case.method, **options)(x, *args, **kwargs)
    if call == "GradientNorm":
        return _PlainNorm(net, case.method)(x, *args, **kwargs)
    if call == "normalize_gradient":
        return way.normalize_gradient(net, x, *args, method=case.method, **kwargs)
    if call == "normalize_gradient, norm":
        return way.normalize_gradient(net, x, *args, method=case.method, return_grad_norm=True, **kwargs)
    if call == "second derivative":
        f_hat = way.normalize_gradient(net, x, *args, method=case.method, **kwargs)
        if not f_hat.requires_grad:
            return f_hat
        (g,) = torch.autograd.grad(f_hat.sum(), x, create_graph=True)
        return f_hat, g
    if call == "one_centered":
        return way.one_centered(net, x, x.detach().flip(-1) * 0.7, *args, **kwargs)
    return getattr(way, call)(net, x, *args, **kwargs)


def _gradients(case: Case, net: Critic, outputs: tuple[Tensor, ...], leaves: dict[str, Tensor]) -> dict[str, Any]:
    loss = _curved_loss(tuple(output for output in outputs if output.requires_grad))
    named = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    wanted = {**leaves, **named}
    if case.surroundings != "accumulated":
        for parameter in named.values():
            parameter.grad = None
    if case.backward == "grad" and wanted:
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        return {f"gradient of {name}": grad for name, grad in zip(wanted, grads, strict=True)}
    if case.backward == "inputs" and wanted:
        loss.backward(inputs=list(wanted.values()))
    else:
        loss.backward()
    return {f"gradient of {name}": None if t.grad is None else t.grad.clone() for name, t in wanted.items()}


def _trace(case: Case, net: Critic, dtype: torch.dtype) -> None:
    before = state_of(net)
    x = _x_of(case, 0, dtype, 0.0)[0]
    gnfast.trace(net, x, case.labels, torch.linspace(-1, 1, len(x), dtype=dtype))
    if problem := difference(state_of(net), before, 0.0):
        raise WrongVerdict(f"trace changed the network: {problem}")


# -------------------------------------------------------------------------------- its state


def random_state() -> dict[str, Any]:
    _, keys, *position = np.random.get_state()  # noqa: NPY002
    numpy = hash((keys.tobytes(), *position))
    return {"torch": torch.default_generator.get_state(), "python": hash(random.getstate()), "numpy": numpy}


def state_of(net: nn.Module) -> dict[str, Any]:
    """A copy of all that a network remembers: parameters, buffers, attributes, generators, how many hooks."""
    state = {"random": random_state()}
    for name, module in net.named_modules():
        for kind in ("_parameters", "_buffers"):
            for key, value in vars(module)[kind].items():
                state[f"{name}.{key}"] = None if value is None else (value.detach().clone(), value.requires_grad)
        for key, value in vars(module).items():
            if (key.startswith("_") and not key.endswith("hooks")) or key in ("labels", "given", "steps", "last_uses"):
                continue
            state[f"{name}.{key}"] = len(value) if key.endswith("hooks") else _remembered(value)
    return state


def _remembered(value: Any) -> Any:
    if isinstance(value, Traced):
        return "no data"
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, (list, tuple)):
        return [_remembered(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _remembered(entry) for key, entry in value.items()}
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def difference(actual: Any, expected: Any, tolerance: float, name: str = "") -> str:
    """The first thing that differs, or ""."""
    if isinstance(actual, str) and actual == "no data":
        # An activation that the forward kept: every use of it raises UnsupportedError.
        return ""
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return f"{name}: {actual.dtype} {tuple(actual.shape)} for {expected.dtype} {tuple(expected.shape)}"
        if not expected.is_floating_point() or not tolerance:
            return "" if torch.equal(actual, expected) else f"{name} differs"
        # Parameters in float32 are updated by what was rounded to it.
        tolerance = max(tolerance, 1e-5) if expected.dtype == torch.float32 else tolerance
        gap = (actual.double() - expected.double()).norm().item()
        return "" if gap <= tolerance * max(expected.double().norm().item(), 1) else f"{name} differs by {gap:.1e}"
    if type(actual) is not type(expected):
        return f"{name}: a {type(actual).__name__} for a {type(expected).__name__}"
    if isinstance(expected, dict):
        if actual.keys() != expected.keys():
            return f"{name}: {sorted(actual.keys() ^ expected.keys())[:3]} on one side only"
        pairs = [(actual[key], expected[key], f"{name} {key}".strip()) for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(actual) != len(expected):
            return f"{name}: {len(actual)} entries for {len(expected)}"
        pairs = [(a, e, name) for a, e in zip(actual, expected, strict=True)]
    elif isinstance(expected, float):
        close = math.isclose(actual, expected, rel_tol=max(tolerance, 1e-12), abs_tol=tolerance)
        return "" if close else f"{name}: {actual} for {expected}"
    else:
        return "" if actual == expected else f"{name}: {actual} for {expected}"
    return next((found for a, e, n in pairs if (found := difference(a, e, tolerance, n))), "")

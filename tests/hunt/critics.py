"""Random critics through gnfast and through plain double backward: value, gradients and state of one to three steps.

A case is exact, or falls back with a warning and agrees, or is turned away with an error of gnfast's own. Everything
else is a failure: numbers that differ, another error where plain PyTorch works, state that advanced twice.
"""

import argparse
import contextlib
import copy
import dataclasses
import itertools
import math
import statistics
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnfast import InputError, UnsupportedError
from tests.hunt import forked
from tests.hunt.cases import LOW, Case, Engine, Plain, Seen, WrongVerdict, difference, draw_case, run
from tests.hunt.tally import FAILED, Hunter, Tally
from tests.random_networks import Critic

FOUR = "exact in four passes"
SIX = "exact in six"
FELL_BACK = "fallen back and right"
RAISED = "raised clearly"
VOID = "of which plain PyTorch makes nothing"
KINK = "ill-conditioned"


@dataclass
class Verdict:
    kind: str
    reason: str = ""


def judge(case: Case) -> Verdict:
    """What becomes of a case."""
    return _judge_in_float64(case) if case.precision == "float64" else _judge_in_low_precision(case)


def _judge_in_float64(case: Case) -> Verdict:
    dtype = torch.float64
    try:
        expected = run(case, Plain, copy.deepcopy(case.net), dtype)
    except Exception as error:
        return Verdict(VOID, _told(error))
    if not finite(expected):
        return Verdict(KINK, "not finite")
    actual = _by_engine(case, copy.deepcopy(case.net), dtype)
    if isinstance(actual, Verdict):
        return actual
    moved = None
    for place, (ours, truth) in enumerate(zip(actual, expected, strict=True)):
        tolerance = 1e-3 if _casts(case) else 1e-9
        if problem := difference(ours.state, truth.state, tolerance, f"state after step {place + 1}:"):
            return Verdict(FAILED, problem)
        for name, error in relative_errors(ours, truth).items():
            if error <= 1e-10 or (error <= _TOLERANCE_OF_CASTS and rounds_to_float32(case, name)):
                continue
            moved = moved or run(case, Plain, copy.deepcopy(case.net), dtype, nudge=1e-8)
            sensitive = relative_errors(moved[place], truth).get(name, 0.0)
            if sensitive > 1e-4:
                return Verdict(KINK, f"{name}, step {place + 1}: {sensitive:.1e}")
            # Rounding may be as large as what 1e-3 of that move does.
            if error > max(1e-9, 1e-3 * sensitive):
                return Verdict(FAILED, f"{name} differs by {error:.1e} in step {place + 1}")
    return Verdict(_way(actual))


_TOLERANCE_OF_CASTS = 1e-4


def _casts(case: Case) -> bool:
    return any(step.name == "cast" or "there and back" in step.arguments.values() for step in case.net.steps)


def rounds_to_float32(case: Case, name: str) -> bool:
    """Whether a cast in the network, or the dtype of a parameter, leaves a number no more exact than that."""
    if _casts(case):
        return True
    parameter = dict(case.net.named_parameters()).get(name.removeprefix("gradient of "))
    return parameter is not None and parameter.dtype == torch.float32


def _judge_in_low_precision(case: Case) -> Verdict:
    low = LOW[case.precision]
    first = _errors_in_low_precision(case, low)
    if isinstance(first, Verdict):
        return first
    ours, theirs, way = first
    regions = any(step.name == "region" and step.arguments["enabled"] for step in case.net.steps)
    unit = torch.finfo(torch.bfloat16 if case.precision == "autocast" or regions else low).eps

    def worse(mine: float, other: float) -> bool:
        return not mine <= 2 * other + 8 * unit

    suspects = [name for name in ours if worse(ours[name], theirs[name])]
    if suspects and (verdict := _suspected(case, low, suspects, worse)):
        return verdict
    return Verdict(way)


_DRAWS = 48


def _suspected(
    case: Case, low: torch.dtype, suspects: list[str], worse: Callable[[float, float], bool]
) -> Verdict | None:
    """What several draws of x show of numbers that were less exact than plain PyTorch's: one may be luck of either."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in suspects}
    for attempt in range(_DRAWS):
        generator = torch.Generator().manual_seed(attempt)
        xs = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in case.xs]
        again = _errors_in_low_precision(dataclasses.replace(case, xs=xs), low)
        if isinstance(again, Verdict):
            continue
        for name in suspects:
            if again[1].get(name, 1.0) < 0.3:
                pairs[name].append((again[0].get(name, 0.0), again[1][name]))
    for name, errors in pairs.items():
        if len(errors) < 4:
            return Verdict(KINK, f"{name} in {case.precision}")
        mine, other = zip(*errors, strict=True)
        a, b = (math.sqrt(statistics.fmean(e * e for e in errors)) for errors in (mine, other))
        if worse(a, b) and worse(statistics.median(mine), statistics.median(other)):
            return Verdict(FAILED, f"{name} is off by {a:.1e}, plain PyTorch by {b:.1e}")
    return None


def _errors_in_low_precision(case: Case, low: torch.dtype) -> Verdict | tuple[dict[str, float], dict[str, float], str]:
    """Our errors and plain PyTorch's against float64 by name, and which way we went; or what came of it instead."""
    rounded = copy.deepcopy(case.net).to(low)
    try:
        expected = run(case, Plain, copy.deepcopy(rounded).double(), torch.float64)
        plain = run(case, Plain, copy.deepcopy(rounded), low)
    except Exception as error:
        return Verdict(VOID, _told(error))
    if not finite(expected) or not finite(plain):
        return Verdict(KINK, "not finite")
    actual = _by_engine(case, rounded, low)
    if isinstance(actual, Verdict):
        return actual
    ours, theirs = {}, {}
    for place, (mine, other, truth) in enumerate(zip(actual, plain, expected, strict=True)):
        if problem := difference(mine.state, other.state, 0.1, f"state after step {place + 1}:"):
            return Verdict(FAILED, problem)
        for errors, seen in ((ours, mine), (theirs, other)):
            # A gradient in which much cancels is as exact as what cancels.
            errors |= {f"{name}, step {place + 1},": e for name, e in relative_errors(seen, truth, floor=0.3).items()}
    if max(theirs.values(), default=0.0) > 0.5:
        return Verdict(KINK, f"plain PyTorch is off by {max(theirs.values()):.1e}")
    return ours, theirs, _way(actual)


def _way(steps: list[Seen]) -> str:
    if any(seen.fell_back for seen in steps):
        return FELL_BACK
    return SIX if any(6 in seen.passes for seen in steps) else FOUR


def _by_engine(case: Case, net: Critic, dtype: torch.dtype) -> list[Seen] | Verdict:
    try:
        return run(case, Engine, net, dtype)
    except (UnsupportedError, InputError) as error:
        return Verdict(RAISED, _told(error))
    except WrongVerdict as error:
        return Verdict(FAILED, str(error))
    except Exception as error:
        return Verdict(FAILED, f"raised {_told(error)}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


def finite(steps: list[Seen]) -> bool:
    return all(t.isfinite().all() for seen in steps for t in seen.numbers.values() if t is not None)


def relative_errors(actual: Seen, expected: Seen, floor: float = 1e-2) -> dict[str, float]:
    """Relative errors by name; those of a gradient that is smaller than `floor` times the largest relative to that."""
    names = actual.numbers.keys() | expected.numbers.keys()
    largest = max((_size(t) for n, t in expected.numbers.items() if n.startswith("gradient")), default=0.0)
    errors, floor = {}, floor * max(largest, 1.0)
    for name in sorted(names):
        ours, truth = actual.numbers.get(name), expected.numbers.get(name)
        if ours is None and truth is None:
            continue
        if ours is not None and truth is not None and ours.shape != truth.shape:
            errors[name] = float("inf")
        elif ours is None or truth is None:
            errors[name] = _size(truth if ours is None else ours) / floor
        else:
            error = _size(ours.double() - truth.double()) / max(_size(truth), floor)
            errors[name] = error if error == error else float("inf")
    return errors


def _size(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else tensor.double().norm().item()


# -------------------------------------------------------------------------------- the smallest critic


def simplest(case: Case) -> Case:
    """The same kind of failure with as few steps and settings as can be had by leaving them out one by one."""
    kind, smaller = judge(case).reason.split()[0], True
    while smaller:
        smaller = False
        for candidate in _smaller(case):
            try:
                verdict = judge(candidate)
            except Exception:
                continue
            if verdict.kind == FAILED and verdict.reason.split()[0] == kind:
                case, smaller = candidate, True
                break
    return case


_PLAIN = {
    "trace_first": False,
    "strict": False,
    "two_before_backward": False,
    "surroundings": "nothing",
    "given": "a tensor",
    "backward": "backward",
    "rewrite": False,
    "frozen": 0,
}


def _smaller(case: Case) -> Iterator[Case]:
    if len(case.xs) > 1:
        yield dataclasses.replace(case, xs=case.xs[:-1])
    for name, value in _PLAIN.items():
        if getattr(case, name) != value:
            yield dataclasses.replace(case, **{name: value})
    for call in ("value_and_input_grad", "value_and_grad_norm"):
        if case.call not in ("value_and_input_grad", call):
            yield dataclasses.replace(case, call=call)
    for kind in ("plain", "requires grad"):
        if case.x_kind not in ("plain", kind):
            yield dataclasses.replace(case, x_kind=kind)
    for place in range(len(case.net.steps) - 2, -1, -1):
        if (net := _without(case.net, place)) is not None:
            yield dataclasses.replace(case, net=net)


def _without(net: Critic, place: int) -> Critic | None:
    """The critic without a step, whose first input stands for its output; it need not run."""
    net = copy.deepcopy(net)
    removed = net.steps.pop(place)
    if any(step.owner == removed.output for step in net.steps):
        return None
    instead = {removed.output: removed.inputs[0]}
    net.steps = [
        dataclasses.replace(step, inputs=tuple(instead.get(value, value) for value in step.inputs))
        for step in net.steps
    ]
    net.weights = nn.ModuleDict({name: w for name, w in net.weights.items() if name != str(removed.output)})
    net.close()
    return net


# -------------------------------------------------------------------------------- the hunter

# How often each precision gets its turn.
_TURNS = (*["float64"] * 4, *["float32"] * 2, "bfloat16", "autocast")
_SECONDS = 60.0
"""For one critic; those that run take milliseconds."""


def _judged(trial: tuple[int, str]) -> Verdict:
    with warnings.catch_warnings():
        # PyTorch's own, of padding and the like.
        warnings.simplefilter("ignore")
        return judge(draw_case(*trial))


def _by_plain_pytorch(trial: tuple[int, str]) -> None:
    """What of a trial gnfast has no part in: PyTorch itself may crash."""
    case = draw_case(*trial)
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        low = LOW.get(case.precision, torch.float64)
        for dtype in (torch.float64, low):
            run(case, Plain, copy.deepcopy(case.net).to(low).to(dtype), dtype)


def _hunt(tally: Tally, seed: int, options: argparse.Namespace) -> None:
    turns = (options.dtype,) if options.dtype else _TURNS
    trials = ((number, turns[number % len(turns)]) for number in itertools.count(seed))
    reasons = Counter()
    for (number, precision), verdict in forked.trials(
        _judged, itertools.takewhile(lambda _: tally.goes_on(), trials), _SECONDS
    ):
        if isinstance(verdict, forked.Died):
            ((_, plain),) = forked.trials(_by_plain_pytorch, [(number, precision)], _SECONDS)
            verdict = Verdict(VOID if isinstance(plain, forked.Died) else FAILED, verdict.how)
        if verdict.kind == FAILED:
            tally.fail(f"--seed {number} --dtype {precision}", verdict.reason, precision)
        else:
            tally.add(verdict.kind, precision)
        if verdict.kind == RAISED:
            reasons[verdict.reason] += 1
    for reason, count in reasons.most_common():
        print(f"{count} raised {reason}")


def _repeat(seed: int, options: argparse.Namespace) -> bool:
    """Judges a critic again, prints it and, where it fails, the smallest one that does."""
    case = draw_case(seed, options.dtype or "float64")
    verdict = judge(case)
    outcome = {FAILED: "", VOID: "not judged: ", KINK: "not judged: "}.get(verdict.kind, "passed: ") + verdict.kind
    print(f"{case}\n{outcome}" + (f": {verdict.reason}" if verdict.reason else ""))
    if verdict.kind == FAILED:
        smallest = simplest(case)
        print(f"\nThe smallest critic that fails: {judge(smallest).reason}\n{smallest}")
    return verdict.kind == FAILED


HUNTER = Hunter(_hunt, _repeat)

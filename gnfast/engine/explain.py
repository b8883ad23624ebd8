"""Why a critic takes the passes that it takes, or none, in sentences."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gnfast.engine.advice import advice
from gnfast.engine.functional import require_critic
from gnfast.engine.recording import require_independent, require_recordable, require_unhooked
from gnfast.io.numbers import counted
from gnfast.plan import Plan, refused, traced
from gnfast.plan.opaque import Refused
from gnfast.plan.plan import CUT_OFF, INDEPENDENT, NORMALISED, Refusal
from gnfast.plan.state import modules_of
from gnfast.plan.table import costs, named_value, passes


@dataclass(frozen=True, eq=False)
class Explanation:
    """The verdict on a critic; `print` it.

    Attributes:
        plan: what was recorded, as of `gnfast.trace`; its `refusals` are what stands in the way of the passes, each
            with submodule, operation, reason and the line of code.
    """

    plan: Plan

    @property
    def accelerated(self) -> bool:
        """Whether the critic goes through the passes."""
        return not self.plan.refusals

    def __str__(self) -> str:
        return "\n".join(_of_passes(self.plan) if self.accelerated else _of_fallback(self.plan))

    __repr__ = __str__


def explain(net: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Explanation:
    """Says whether gnfast accelerates a critic, if not why, what to write instead, and what each way costs.

    Args:
        net: the critic, in the mode (train or eval) in which it is used.
        x: (B, ...) example input, of the shape and dtype that it has in training.
        *args, **kwargs: passed to `net` after x.

    Returns:
        An `Explanation` to be printed. The critic is as it was before the call.

    Raises:
        InputError: as `normalize_gradient`; and whatever the network's own forward raises.
    """
    require_critic(net, x)
    try:
        require_recordable(x, args, kwargs)
        require_unhooked(net, modules_of(net))
        plan, operands = traced(net, x, args, kwargs)
        require_independent(x, operands)
    except Refused as error:
        plan = refused(net, x, error.refusal)
    return Explanation(plan)


def _of_passes(plan: Plan) -> list[str]:
    critic, generator = costs(plan)
    lines = [f"{plan.name} is accelerated: exact in {passes(plan)}, without double backward."]
    frozen = f"generator step, whose critic is frozen, {{}}{generator:.2f}; by double backward {_GENERATOR:.2f}"
    if plan.trainable:
        lines.append(f"A critic step costs {critic:.2f} forwards of the network; by double backward {_CRITIC:.2f}.")
        lines.append(f"A {frozen.format('')}.")
    else:
        lines.append(f"A {frozen.format('costs ')} (this one is frozen).")
    lines.append("This counts convolutions and matrix products; gnfast bench measures the time of a step.")
    if plan.takes_six and (reasons := _reasons_for_six(plan)):
        lines += ["What takes six passes instead of four:", *(f"  - {reason}" for reason in reasons)]
    return lines


def _reasons_for_six(plan: Plan) -> list[str]:
    """The operations from which six passes go down, those of one kind together."""
    places: dict[tuple[str, str], list[str]] = {}
    for node, differentiated in zip(plan.nodes, plan.differentiated, strict=True):
        if differentiated and (node.op.curved or node.mixes):
            why = "its slope depends on x" if node.op.curved else "an entry of its result depends on several samples"
            where = f"submodule {node.submodule!r}" if node.submodule else "the network's own forward"
            places.setdefault((node.op.label(), why), []).append(f"{named_value(node.output)} in {where}")
    reasons = [f"{label} ({_listed(found)}): {why}" for (label, why), found in places.items()]
    return reasons if plan.one_logit else [*reasons, "its output is not one logit for each sample, but several"]


def refused_for(plan: Plan) -> dict[Refusal, str]:
    """The refusals as text; what is refused in several places, as often as one module is used, is said once."""
    found: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in plan.refusals:
        found.setdefault((refusal.operation, refusal.reason), []).append(refusal)
    return {first: f"{first}{_and_in(others)}" for first, *others in found.values()}


def _and_in(others: list[Refusal]) -> str:
    if not others:
        return ""
    return f"; and {counted(len(others), 'more place')}: {_listed([refusal.place for refusal in others])}"


def _listed(places: list[str]) -> str:
    """The first of them."""
    return ", ".join(places[:3] + ["…"] * (len(places) > 3))


def _of_fallback(plan: Plan) -> list[str]:
    useless = [_USELESS[refusal.reason] for refusal in plan.refusals if refusal.reason in _USELESS]
    verdict = "falls back to exact double backward: the same results, without gnfast's speed"
    lines = [f"{plan.name} {f'cannot be normalised: {useless[0]}' if useless else verdict}.", ""]
    for number, (refusal, text) in enumerate(refused_for(plan).items(), 1):
        lines.append(f"{number}. {text}.")
        if words := advice(refusal):
            lines.append(f"   Instead: {words}")
    if useless:
        return lines
    cost = f"a critic step costs {_CRITIC:.2f} forwards, a generator step, whose critic is frozen, {_GENERATOR:.2f}"
    lines += ["", f"By double backward {cost}."]
    if plan.output and plan.stated_flops:
        critic, generator = costs(plan)
        lines.append(f"The passes would take {critic:.2f} and {generator:.2f}, not counting what is named above.")
    return lines


_USELESS = {
    NORMALISED: "it is already",
    INDEPENDENT: "it has no input gradient",
    CUT_OFF: "it has no input gradient, or one of zeros",
}
"""The verdict where double backward does not serve either."""

_CRITIC, _GENERATOR = 6.0, 5.0
"""Forwards of a network that a step by double backward costs."""

"""Plans: what a traced network is, and how one comes about."""

from typing import Any

from torch import Tensor, nn

from gnfast.plan.op import Op
from gnfast.plan.plan import Node, Plan, Refusal
from gnfast.plan.records import records
from gnfast.plan.state import unchanged
from gnfast.plan.tracing import record

__all__ = ["Node", "Op", "Plan", "Refusal", "records", "refused", "trace", "traced"]


def trace(net: nn.Module, x: Tensor, *args: Any, rewrite: bool = True, **kwargs: Any) -> Plan:
    """Records what a network does with x, without computing it.

    Args:
        net: the critic. Its forward runs once, in its present mode (train or eval).
        x: (B, ...) example input; only its shape, dtype and device matter.
        *args, **kwargs: passed to `net` after x.
        rewrite: merge operations where that is exact and cheaper, as the engine does.

    Returns:
        The Plan. `print(plan)` shows each operation with its submodule, shape, FLOPs per pass and bytes kept, and
        either the cost of a step in forwards or everything that was refused and why.
    """
    return traced(net, x, args, kwargs, rewrite)[0]


def traced(
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: bool = True
) -> tuple[Plan, list[Tensor]]:
    """As `trace`, with the recorded operands."""
    with unchanged(net) as before:
        if before.irrevocable:
            return refused(net, x, Refusal("", "forward", before.irrevocable)), []
        return record(net, x, args, kwargs, rewritten=rewrite, explain=True, careful=True)


def refused(net: nn.Module, x: Tensor, refusal: Refusal) -> Plan:
    """The Plan of a call that is refused whatever the network does."""
    return Plan(type(net).__name__, tuple(x.shape[1:]), (), 0, frozenset(), refusals=(refusal,))

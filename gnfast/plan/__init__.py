"""Plans: what a traced network is, and how one comes about."""

from typing import Any

from torch import Tensor, nn

from gnfast.plan.op import Op, records
from gnfast.plan.plan import Node, Plan, Refusal
from gnfast.plan.state import unchanged
from gnfast.plan.tracing import record

__all__ = ["Node", "Op", "Plan", "Refusal", "records", "trace"]


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
    with unchanged(net) as before:
        if before.irrevocable:
            refusal = Refusal("", "forward", before.irrevocable)
            return Plan(type(net).__name__, tuple(x.shape[1:]), (), 0, frozenset(), refusals=(refusal,))
        plan, _ = record(net, x, args, kwargs, rewritten=rewrite, explain=True, careful=True)
    return plan

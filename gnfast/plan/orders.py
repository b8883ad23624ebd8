"""Which nodes of a Plan take part in which passes, some being curved or mixing samples (docs/algorithm.md, Six passes).

A value is *proportional* if the cotangent μ of ⟨a, f⟩ + Σ ḟ, a = ∂L/∂f, is a times the cotangent δ of Σ f: those from
which the logit of each sample is reached by affine operations of that sample alone. A node between proportional values
takes the merged tangent c = t + a·h and needs no μ: these nodes take four passes. All others are *apart*: they take the
tangent t and h, the cotangents δ and μ, and six passes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gnfast.plan.plan import Node, Plan


def proportional(
    nodes: Sequence["Node"], output: int, one_logit: bool, differentiated: Sequence[bool]
) -> frozenset[int]:
    """The proportional values; all but x and those of `nodes` where `one_logit`, one output per sample, is false."""
    apart = set() if one_logit else {output}
    for node, follows in zip(reversed(nodes), reversed(differentiated), strict=True):
        if not follows:
            continue
        outputs = {*node.outputs}
        if not outputs.isdisjoint(apart):
            apart |= outputs
        if node.op.curved or node.mixes or not outputs.isdisjoint(apart):
            apart |= {*node.inputs[node.op.given :]}
    return frozenset({0, output, *(value for node in nodes for value in node.outputs)} - apart)


class Schedule(NamedTuple):
    """What is done with each node, and what is kept for it, where the gradient of x is wanted or not."""

    pushes: tuple[bool, ...]
    """Whether pass 3 needs its output."""
    pulls: tuple[bool, ...]
    """Whether pass 4 goes through it."""
    cotangents: tuple[bool, ...]
    """Whether its δ is kept."""
    values: frozenset[int]
    """The h that are kept."""
    adjoints: frozenset[int]
    """The values of which something below needs μ."""
    again: dict[int, int]
    """By values that are computed again instead, the nodes that do it."""
    pulled_again: dict[int, int]
    """By nodes whose δ is computed again instead, the nodes that do it, which read their outputs."""


def schedule(plan: "Plan", needs_x: bool) -> Schedule:
    """The schedule of a Plan; that of four passes where everything is proportional."""
    producers = {value: index for index, node in enumerate(plan.nodes) for value in node.outputs}
    pulls: list[bool] = []

    def wanted(value: int) -> bool:
        """Whether anything below needs its μ."""
        return value not in plan.proportional and (needs_x if value == 0 else pulls[producers[value]])

    for index, node in enumerate(plan.nodes):
        own = plan.apart[index] and plan.has_param_grads[index]
        pulls.append(plan.differentiated[index] and (own or any(map(wanted, node.inputs))))
    needed: set[int] = set()
    values: set[int] = set()
    pushes = []
    for index in reversed(range(len(plan.nodes))):
        node, apart, has_grads = plan.nodes[index], plan.apart[index], plan.has_param_grads[index]
        push = not needed.isdisjoint(node.outputs)
        pushes.append(push)
        read = node.inputs[node.op.given :] if push and not node.op.detaches else ()
        if node.op.curved and plan.differentiated[index]:
            read = node.inputs if push or pulls[index] else ()
            values.update(node.inputs)
        elif has_grads and not read:
            read = node.inputs[node.op.given :][:1]
        if has_grads and apart:
            values.update(node.inputs[:1])
        needed.update(read)
        if not apart:
            # There the merged tangent begins, which takes h.
            values.update(plan.begins.intersection(read))
    seeds = [any(v in plan.proportional for v in node.outputs) for node in plan.nodes]
    cotangents = [
        has_grads or (pull and (node.op.curved or seed))
        for node, has_grads, pull, seed in zip(plan.nodes, plan.has_param_grads, pulls, seeds, strict=True)
    ]
    adjoints = frozenset(v for node in plan.nodes for v in node.inputs if wanted(v))
    again = _again(plan, producers, values)
    pulled_again = {
        producers[node.inputs[0]]: index
        for index, node in enumerate(plan.nodes)
        if node.op.cheap
        and node.op.curved
        and pulls[index]
        and node.inputs[0] in producers
        and plan.is_read_once(node.inputs[0])
    }
    pulled_again = {n: r for n, r in pulled_again.items() if cotangents[n] and _is_plain(plan.nodes[n])}
    cotangents = tuple(keep and index not in pulled_again for index, keep in enumerate(cotangents))
    kept = frozenset(values - again.keys())
    return Schedule(tuple(reversed(pushes)), tuple(pulls), cotangents, kept, adjoints, again, pulled_again)


def _again(plan: "Plan", producers: dict[int, int], values: set[int]) -> dict[int, int]:
    """Those of `values` that cheap nodes compute from the others, what lies between, and the nodes."""
    found: dict[int, int] = {}
    kept = plan.curved_inputs & values
    kept |= {v for v in values - kept if v not in producers or not plan.nodes[producers[v]].op.cheap}

    def nodes_to(value: int) -> dict[int, int] | None:
        """By values, the nodes that lead to this one; None where there is no way."""
        if value in kept:
            return {}
        if value not in producers or not plan.nodes[producers[value]].op.cheap:
            return None
        ways = [nodes_to(v) for v in plan.nodes[producers[value]].inputs]
        return None if None in ways else {value: producers[value], **{v: n for way in ways for v, n in way.items()}}

    for value in sorted(values - kept):
        found |= nodes_to(value) or {}
    return found


def _is_plain(node: "Node") -> bool:
    return not node.op.curved and len(node.outputs) == 1

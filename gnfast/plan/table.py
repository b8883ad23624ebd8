"""The text of a printed Plan."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnfast.plan.plan import Plan


def render(plan: "Plan") -> str:
    """The Plan as a table: operation, submodule, shapes, MFLOP of each pass, bytes kept; then the verdict."""
    totals = plan.flops()
    shown = [name for name in totals if totals[name] or name != "second reverse"]
    header = ("", "operation", "submodule", "output", *(_COLUMNS.get(name, name) for name in shown), "kept")
    rows = [("x", "", "", _shape(plan.input_shape), *[""] * (len(shown) + 1))]
    for index, node in enumerate(plan.nodes):
        flops = plan._node_flops(index)
        inputs = "" if node.inputs == (node.output - 1,) else "  ← " + ", ".join(named_value(i) for i in node.inputs)
        rows.append(
            (
                ", ".join(map(named_value, node.outputs)),
                node.op.label() + inputs,
                node.submodule or "·",
                _shape(node.output_shape),
                *(_mega(flops[name]) for name in shown),
                _bytes(plan._node_bytes(index)),
            )
        )
    rows.append(("", "total", "", "", *(_mega(totals[name]) for name in shown), _bytes(plan.kept_bytes())))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row):
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[4:], widths[4:], strict=True)]
        return "  ".join(left + right).rstrip()

    rule = "─" * len(line(header).ljust(sum(widths) + 2 * (len(widths) - 1)))
    title = f"{plan.name}: {len(plan.nodes)} operations on x (B, {', '.join(map(str, plan.input_shape))})"
    table = [title, rule, line(header), rule, *map(line, rows[:-1]), rule, line(rows[-1])]
    if plan.refusals:
        verdict = ["Falls back to exact double backward:", *(f"  - {refusal}" for refusal in plan.refusals)]
    else:
        verdict = _verdict(plan, totals)
    return "\n".join([*table, *verdict])


_COLUMNS = {"input gradient": "input grad"}


def _verdict(plan: "Plan", totals: dict[str, int]) -> list[str]:
    critic, generator = costs(plan)
    verdict = [
        f"Exact in {passes(plan)}: a critic step costs {critic:.2f} forwards of the network, a generator step "
        f"{generator:.2f}.",
        "MFLOP and bytes are per sample.",
    ]
    if totals["forward"] < plan.stated_flops:
        verdict.append(
            f"Rewrites shrink a forward from {_mega(plan.stated_flops)} to {_mega(totals['forward'])} MFLOP."
        )
    return verdict


def costs(plan: "Plan") -> tuple[float, float]:
    """Of a critic step and a generator step, in forwards of the network as it states them."""
    forward = max(plan.stated_flops, 1)
    return sum(plan.flops().values()) / forward, plan.generator_flops() / forward


def passes(plan: "Plan") -> str:
    """ "four passes", or how many where."""
    if not plan.takes_six:
        return "four passes"
    if plan.halves is not None:
        return f"four passes up to {named_value(plan.halves[0].output)}, of which the output is a function"
    apart = [node.outputs[0] for node, apart in zip(plan.nodes, plan.apart, strict=True) if apart]
    if not apart or plan.output == apart[-1]:
        return "six passes"
    return f"six passes from {named_value(apart[-1])} down, four above"


def named_value(index: int) -> str:
    """The name of a value in the table."""
    return f"%{index}" if index else "x"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "1"


def _mega(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count else "·"


def _bytes(count: int) -> str:
    if not count:
        return "·"
    power = min(int(math.log(count, 1024)), 3)
    return f"{count / 1024**power:,.1f} {('B', 'KiB', 'MiB', 'GiB')[power]}"

"""The text of a printed Plan."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnfast.plan.plan import Plan


def render(plan: "Plan") -> str:
    """The Plan as a table: operation, submodule, shapes, MFLOP of each pass, bytes kept; then the verdict."""
    header = ("", "operation", "submodule", "output", "forward", "input grad", "tangent", "weights", "kept")
    rows = [("x", "", "", _shape(plan.input_shape), "", "", "", "", "")]
    for index, node in enumerate(plan.nodes):
        flops = plan._node_flops(index)
        inputs = "" if node.inputs == (node.output - 1,) else "  ← " + ", ".join(_value(i) for i in node.inputs)
        rows.append(
            (
                ", ".join(map(_value, node.outputs)),
                node.op.label() + inputs,
                node.submodule or "·",
                _shape(node.output_shape),
                *(_mega(count) for count in flops.values()),
                _bytes(plan._node_bytes(index)),
            )
        )
    totals = plan.flops()
    rows.append(("", "total", "", "", *(_mega(count) for count in totals.values()), _bytes(plan.kept_bytes())))
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
        forward = max(plan.stated_flops, 1)
        critic = sum(totals.values()) / forward
        generator = (totals["forward"] + totals["input gradient"]) / forward
        verdict = [
            f"Exact in four passes: a critic step costs {critic:.2f} forwards of the network, a generator step "
            f"{generator:.2f}.",
            "MFLOP and bytes are per sample.",
        ]
        if totals["forward"] < plan.stated_flops:
            verdict.append(
                f"Rewrites shrink a forward from {_mega(plan.stated_flops)} to {_mega(totals['forward'])} MFLOP."
            )
    return "\n".join([*table, *verdict])


def _value(index: int) -> str:
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

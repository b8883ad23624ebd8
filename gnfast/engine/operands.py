"""x and the recorded operands as a Plan's nodes take them, and the gradients of the latter, each way in one call."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.kernels import operands as kernels
from gnfast.kernels.operands import Form
from gnfast.plan.plan import Plan

Made = tuple[tuple[int, int, Form], ...]
"""Slot, slot of the recorded operand that it is made of, and how."""


def made_of(plan: Plan, recorded: Sequence[Tensor], channels_last: bool) -> Made:
    """The operands that differ from the recorded ones: in their dtype, folded, or in their memory format.

    Args:
        channels_last: whether kernels of convolutions are to be stored so.
    """
    return _made_of(plan, tuple([t.dtype for t in recorded]), channels_last)


def prepare(plan: Plan, made: Made, x: Tensor, recorded: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """x in the dtype in which the passes begin, and what is made of the recorded operands."""
    sources, forms = [recorded[origin] for _, origin, _ in made], [form for *_, form in made]
    if plan.entry is None:
        return x, kernels.prepare(sources, forms)
    x, *new = kernels.prepare([x, *sources], [Form(plan.entry), *forms])
    return x, new


def by_slot(plan: Plan, made: Made, recorded: Sequence[Tensor | None], new: Sequence[Tensor]) -> list[Tensor | None]:
    """The operands of the nodes; `new` is what `prepare` made."""
    operands = [*recorded, *[None] * len(plan.derived)]
    for (slot, *_), operand in zip(made, new, strict=True):
        operands[slot] = operand
    return operands


def gradients(
    plan: Plan, made: Made, recorded: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of the recorded operands, each in its operand's dtype, from those of all slots; None for 0."""
    results: list[Tensor | None] = [*grads[: len(recorded)]]
    if not made and all(g is None or g.dtype == t.dtype for g, t in zip(results, recorded, strict=True)):
        return results
    forms = {slot: (origin, form) for slot, origin, form in made}
    results = [None] * len(recorded)
    found: list[tuple[int, Tensor]] = []
    rest: list[tuple[int, Tensor, Form]] = []
    for slot, grad in enumerate(grads):
        if grad is None:
            continue
        origin, form = forms.get(slot, (slot, Form(grad.dtype)))
        source = recorded[origin]
        in_order = slot not in forms or grad.stride() == source.stride()
        if form.fold is None and grad.dtype == source.dtype and in_order:
            found.append((origin, grad))
        else:
            rest.append((origin, grad, form))
    given = [grad for _, grad, _ in rest], [recorded[origin] for origin, *_ in rest], [form for *_, form in rest]
    found += zip([origin for origin, *_ in rest], kernels.gradients(*given), strict=True)
    for origin, grad in found:
        results[origin] = grad if results[origin] is None else results[origin] + grad
    return results


@functools.lru_cache(maxsize=256)
def _made_of(plan: Plan, dtypes: tuple[torch.dtype, ...], channels_last: bool) -> Made:
    """As `made_of`, for recorded operands of these dtypes."""
    origins = [*range(len(dtypes)), *(derived.slot for derived in plan.derived)]
    folds = [*[None] * len(dtypes), *(derived.fold for derived in plan.derived)]
    forms = [
        (slot, origin, Form(plan.dtypes[origin], fold, channels_last and slot in plan.kernels))
        for slot, (origin, fold) in enumerate(zip(origins, folds, strict=True))
        if slot in plan.slots
    ]
    return tuple(entry for entry in forms if entry[2] != Form(dtypes[entry[1]]))

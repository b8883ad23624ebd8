"""Recordings that are kept, for networks of which the user promises that they do the same on every call (`static`).

A recording stands for as long as everything is as it was that can be seen without running the network: its modules,
their classes and the attributes of both, parameters and buffers by identity, train or eval, the form of all arguments,
what is around the call.
"""

import contextlib
import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from gnfast.engine import recording
from gnfast.engine.graphed import Call, Pairs, has_graphs
from gnfast.engine.guard import Guard, form_of_call, hooked, is_comparable, is_ordinary
from gnfast.errors import UnsupportedError
from gnfast.plan.constants import Program
from gnfast.plan.plan import Plan
from gnfast.plan.state import Before, modules_of, random_states, unchanged

_MOST = 16
"""Recordings kept per network: train and eval, critic and generator steps, sizes of batches."""
_MOST_WITH_GRAPHS = 4
"""Recordings that may hold the memory of CUDA graphs, and kinds of result for which each of them may."""


class Kept:
    """A recording that is kept, and what it takes to run its passes."""

    def __init__(self, key: Any, mode: Any, guard: Guard, plan: Plan, program: Program, places: list[int]) -> None:
        self.key, self.mode, self.guard, self.plan = key, mode, guard, plan
        self._program, self._places = program, places
        self._fixed = [program.is_fixed(place) for place in places]
        self.pairs: defaultdict[Any, Pairs] = defaultdict(Pairs)

    def operands(self, given: list[Tensor]) -> list[Tensor] | None:
        """The recorded operands as they are now, `given` being the tensors among the arguments.

        None if their shapes are no longer those that were recorded.
        """
        now = self._program.run(given)
        return now and [now[place] for place in self._places]

    def run(self, call: Call, x: Tensor, operands: list[Tensor], *form: Any) -> Any:
        """call(x, operands), on a GPU by replays; `form` is what else decides what the call does."""
        if not has_graphs(x.device):
            return call(x, operands)
        backends = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.matmul.fp32_precision
        backends += torch.backends.cudnn.deterministic, torch.backends.cudnn.conv.fp32_precision
        # Memory that is used again is in order on one stream alone.
        key = form, backends, torch.cuda.current_stream(x.device).cuda_stream
        if key not in self.pairs and len(self.pairs) >= _MOST_WITH_GRAPHS:
            return call(x, operands)
        return self.pairs[key].run(call, x, operands, self._fixed)


class _Known:
    """What is known of a network: recordings that are kept, the last used first, and why others cannot be."""

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self._reasons: dict[Any, tuple[str, int]] = {}

    def use(self, kept: Kept) -> None:
        """Puts a recording first; those of the same form that no longer stand go."""
        others = [k for k in self.kept if (k.key, k.mode) != (kept.key, kept.mode)]
        self.kept = [kept, *others][:_MOST]
        for other in self.kept[_MOST_WITH_GRAPHS:]:
            other.pairs.clear()

    def refuse(self, form: Any, reason: str) -> str:
        """Notes why a recording of this form could not be kept, and returns what was noted first."""
        if len(self._reasons) >= _MOST:
            self._reasons.clear()
        return self._reasons.setdefault(form, (reason, 0))[0]

    def reason(self, form: Any) -> str | None:
        """Why it is not to be tried to keep one; None if it is: at first, then ever more rarely.

        It may have been for something that has gone since: a hook, a first call that initialises.
        """
        reason, calls = self._reasons.get(form, (None, 0))
        if reason is not None:
            self._reasons[form] = reason, calls + 1
        return reason if calls & (calls - 1) else None


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, _Known]" = weakref.WeakKeyDictionary()


def plan_for(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    strict: bool,
    rewrite: bool,
    normed: bool = False,
) -> tuple[Plan, list[Tensor], Kept | str]:
    """As `recording.plan_for`; and the recording that is kept, or why this one cannot be.

    Raises:
        Refused: as there.
        UnsupportedError: `strict`, and it cannot be kept; the network is as it was before the call.
    """
    given: list[Tensor] = []
    key = form_of_call(x, args, kwargs, rewrite, given)
    known, ordinary = _KNOWN.setdefault(net, _Known()), is_ordinary()
    for kept in known.kept if ordinary else ():
        if kept.key == key and (held := kept.guard.tensors(net)) is not None:
            recording.require_recordable(x, args, kwargs)
            recording.require_independent(x, (*given, *held))
            recording.require_norm(kept.plan, normed)
            if (operands := kept.operands(given)) is not None:
                known.use(kept)
                return kept.plan, operands, kept
    modules = [*modules_of(net)]
    mode = (*(m.training for m in modules), *(p.requires_grad for m in modules for p in m.parameters(recurse=False)))
    reason = known.reason((key, mode)) if ordinary else ""
    if reason is not None and not (reason and strict):
        return *recording.plan_for(net, x, args, kwargs, rewrite, normed), reason
    with unchanged(net) if strict else contextlib.nullcontext(Before()) as before:
        plan, operands, kept = _keep(net, x, args, kwargs, rewrite, normed, key, mode, given)
        if isinstance(kept, Kept):
            known.use(kept)
        elif strict:
            raise UnsupportedError(f"static: {type(net).__name__} has to be recorded on every call: {kept}")
        else:
            kept = known.refuse((key, mode), kept)
        before.accepted = True
    return plan, operands, kept


def _keep(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rewrite: bool,
    normed: bool,
    key: Any,
    mode: Any,
    given: list[Tensor],
) -> tuple[Plan, list[Tensor], Kept | str]:
    """As `plan_for`, by running the forward and watching what else it does."""
    guard = Guard(net)
    held = guard.tensors(net)
    program, states = Program(net, x.device, given, held or ()), random_states(x.device, guard.values)
    plan, operands = recording.plan_for(net, x, args, kwargs, rewrite, normed, watch=program)
    moved = random_states(x.device, guard.values) != states
    if plan.writes:
        # Counting its calls, too, batch norm writes in place, which says less.
        return plan, operands, _of_statistics(net)
    if reason := _reason(net, guard, program, moved, key, given, hooked=held is None or hooked(modules_of(net))):
        return plan, operands, reason
    places = [program.place(operand) for operand in operands]
    unknown = next((t for t, place in zip(operands, places, strict=True) if place is None), None)
    if unknown is not None:
        return plan, operands, f"where its tensor of shape {tuple(unknown.shape)} comes from is not to be seen"
    program.close(places)
    kept = Kept(key, mode, guard, plan, program, places)
    again = kept.operands(given)
    if again is None or not _same(again, operands):
        return plan, operands, "what it computes without x is not the same when it is computed again"
    return plan, operands, kept


def _reason(
    net: nn.Module, guard: Guard, program: Program, moved: bool, key: Any, given: list[Tensor], hooked: bool
) -> str:
    """Why a recording that was just made cannot be kept; empty if it can. `hooked`: before its forward, or after."""
    if guard.opaque:
        return f"{guard.opaque} in place of a module's dict hides its changes"
    if hooked:
        return "it has forward hooks, which are to run on every call"
    held = guard.tensors(net)
    if held is None:
        return "its forward changes attributes of its modules or of their classes"
    if any(tensor is other for tensor in given for other in held):
        return "an argument is one of its own tensors"
    if moved:
        return "its forward draws at random"
    if not is_comparable(key):
        return "an argument of a kind that cannot be compared may decide what it does"
    return program.refusal


def _of_statistics(net: nn.Module) -> str:
    """Why a network that updates running statistics cannot be kept, and what to do about it."""
    named = ((name, m) for name, m in net.named_modules() if isinstance(m, _NormBase) and m.training)
    layers = [f"submodule {name!r}" for name, m in named if m.running_mean is not None] or ["normalisation"]
    where = layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"
    instead = "they do not in eval mode, or with track_running_stats=False"
    return f"running statistics change on every call, in {where}: {instead}"


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        a.requires_grad == b.requires_grad and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(tensors, others, strict=True)
    )

"""Recordings that are kept, for networks of which the user promises that they do the same on every call (`static`).

A recording stands for as long as everything is as it was that can be seen without running the network: its modules,
their classes and the attributes of both, parameters and buffers by identity, train or eval, the form of all arguments,
what is around the call.
"""

import contextlib
import itertools
import operator
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn

from gnfast.engine import recording
from gnfast.engine.graphed import Call, Pairs, has_graphs
from gnfast.errors import UnsupportedError
from gnfast.interop import surroundings
from gnfast.plan.constants import Program
from gnfast.plan.plan import Plan
from gnfast.plan.state import PLAIN, Before, capturing, modules_of, random_states, unchanged
from gnfast.plan.traced import Traced

_MOST = 16
"""Recordings kept per network: train and eval, critic and generator steps, sizes of batches."""
_MOST_WITH_GRAPHS = 4
"""Recordings that may hold the memory of CUDA graphs, and kinds of result for which each of them may."""
_BASES = nn.Module, object
"""Classes that are everybody's, and not looked into."""


class _Guard:
    """What a network consists of, its classes included; no reference to the network itself."""

    def __init__(self, net: nn.Module) -> None:
        modules = [*modules_of(net)]
        dicts: list[Any] = [d for m in modules for d in (m.__dict__, m._parameters, m._buffers, m._modules)]
        self.opaque = next((type(d).__name__ for d in dicts if not isinstance(d, dict)), "")
        self._children, self._kinds = modules[1:], [*map(type, modules)]
        kinds = dict.fromkeys(kind for known in self._kinds for kind in known.__mro__ if kind not in _BASES)
        self._dicts = [] if self.opaque else [*dicts, *map(vars, kinds)]
        self._names = [*itertools.chain.from_iterable(self._dicts)]
        self._views = [d.values() for d in self._dicts]
        self._hooks = [
            hooks
            for m in modules
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ]
        self.values = [*self._read()]
        held = (value for value in self.values if isinstance(value, Tensor) and type(value) is not Traced)
        # What a lazy module has no values for has no form either; such a module has hooks.
        self.tensors = [value for value in held if not nn.parameter.is_lazy(value)]
        self._forms = self._read_forms()

    def stands(self, net: nn.Module) -> bool:
        """Whether the network is what it was, as far as can be seen."""
        return (
            [*itertools.chain.from_iterable(self._dicts)] == self._names
            and all(map(operator.is_, self._read(), self.values))
            and self._read_forms() == self._forms
            and [type(net), *map(type, self._children)] == self._kinds
            and not self.hooked()
        )

    def hooked(self) -> bool:
        """Whether it has hooks, which are to run on every call."""
        return any(self._hooks) or torch_modules._has_any_global_hook()

    def _read(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._views)

    def _read_forms(self) -> list[Any]:
        return [
            (t.requires_grad, t.dtype, t.device, t.shape, t.layout != torch.strided or t.stride()) for t in self.tensors
        ]


class Kept:
    """A recording that is kept, and what it takes to run its passes."""

    def __init__(self, key: Any, mode: Any, guard: _Guard, plan: Plan, program: Program, places: list[int]) -> None:
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
    net: nn.Module, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], strict: bool, rewrite: bool
) -> tuple[Plan, list[Tensor], Kept | str]:
    """As `recording.plan_for`; and the recording that is kept, or why this one cannot be.

    Raises:
        Refused: as there.
        UnsupportedError: `strict`, and it cannot be kept; the network is as it was before the call.
    """
    given: list[Tensor] = []
    form = _form((args, kwargs), given)
    around = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), surroundings.autocast_dtype(x.device.type)
    around += (torch.get_default_dtype(),)
    key = x.shape, x.dtype, x.device, x.requires_grad, type(x), rewrite, around, form
    known = _KNOWN.setdefault(net, _Known())
    ordinary = surroundings.saved_tensor_hooks() is None and not capturing()
    for kept in known.kept if ordinary else ():
        if kept.key == key and kept.guard.stands(net):
            recording.require_recordable(x, args, kwargs)
            recording.require_independent(x, (*given, *kept.guard.tensors))
            if (operands := kept.operands(given)) is not None:
                known.use(kept)
                return kept.plan, operands, kept
    modules = [*modules_of(net)]
    mode = (*(m.training for m in modules), *(p.requires_grad for m in modules for p in m.parameters(recurse=False)))
    reason = known.reason((key, mode)) if ordinary else ""
    if reason is not None and not (reason and strict):
        return *recording.plan_for(net, x, args, kwargs, rewrite), reason
    with unchanged(net) if strict else contextlib.nullcontext(Before()) as before:
        plan, operands, kept = _keep(net, x, args, kwargs, rewrite, key, mode, given)
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
    key: Any,
    mode: Any,
    given: list[Tensor],
) -> tuple[Plan, list[Tensor], Kept | str]:
    """As `plan_for`, by running the forward and watching what else it does."""
    guard = _Guard(net)
    program, states = Program(net, x.device, given, guard.tensors), random_states(x.device, guard.values)
    plan, operands = recording.plan_for(net, x, args, kwargs, rewrite, watch=program)
    moved = random_states(x.device, guard.values) != states
    if reason := _reason(net, guard, program, moved, key, given):
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


def _reason(net: nn.Module, guard: _Guard, program: Program, moved: bool, key: Any, given: list[Tensor]) -> str:
    """Why a recording that was just made cannot be kept; empty if it can."""
    if guard.opaque:
        return f"a {guard.opaque} in place of a module's dict hides its changes"
    if guard.hooked():
        return "it has forward hooks, which are to run on every call"
    if not guard.stands(net):
        return "its forward changes attributes of its modules or of their classes"
    if any(tensor is held for tensor in given for held in guard.tensors):
        return "an argument is one of its own tensors"
    if moved:
        return "its forward draws at random"
    if not _is_plain(key):
        return "an argument of a kind that cannot be compared may decide what it does"
    return program.refusal


_OTHER = object()


def _form(value: Any, given: list[Tensor]) -> Any:
    """What of an argument may decide what a network does; its tensors, whose values may not, are added to `given`."""
    kind = type(value)
    if (kind is Tensor or kind is nn.Parameter) and value.layout == torch.strided:
        given.append(value)
        # Of one that comes twice, nothing shows later which of the two was read.
        first = next(place for place, tensor in enumerate(given) if tensor is value)
        return kind, first, value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    if kind is tuple or kind is list:
        return kind, *[_form(entry, given) for entry in value]
    if kind is dict:
        return kind, *[(name, _form(entry, given)) for name, entry in value.items()]
    if kind is float or kind is complex:
        # Zeros have signs.
        return kind, repr(value)
    return (kind, value) if kind in PLAIN else _OTHER


def _is_plain(form: Any) -> bool:
    return form is not _OTHER and not (type(form) is tuple and not all(map(_is_plain, form)))


def _same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    return all(
        a.requires_grad == b.requires_grad and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(tensors, others, strict=True)
    )

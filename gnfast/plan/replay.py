"""The calls of a network's last recording: one that comes again, in its place and as it was, gives the same node.

Nothing is taken for granted of a forward, which runs as always. Each of its calls is compared with the one in its place
in the last recording by everything that recording it would read; where they are the same, recording has nothing to work
out. From the first one on that gives another node, all are recorded anew.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gnfast.interop.surroundings import saved_tensor_hooks
from gnfast.plan.op import Shape
from gnfast.plan.operands import PLAIN_TENSORS, Operands
from gnfast.plan.plan import Node
from gnfast.plan.state import PLAIN, is_fixed
from gnfast.plan.traced import Traced


class Call(NamedTuple):
    """A call that did nothing but append one node, which is determined by what is noted here."""

    func: Callable[..., Any]
    kinds: tuple[type, ...]
    """The types of its arguments."""
    names: tuple[str, ...]
    """Of the last of them, which came by name."""
    values: tuple[tuple[int, int], ...]
    """Which arguments are traced, and their values."""
    operands: tuple[tuple[int, int, Any], ...]
    """Which are other tensors, their slots and forms."""
    others: tuple[tuple[int, Any], ...]
    """Which are neither, and what they are."""
    extent: Shape
    dtype: torch.dtype
    is_view: bool


class Script:
    """The nodes of a network's last recording, and the calls that they came of, where those were that simple."""

    def __init__(self) -> None:
        # Of one size of batch: what is accepted there, a reshape by numbers say, may not be elsewhere. Together, for
        # recordings on several threads.
        self.last: tuple[int, Sequence[tuple[Node, Call | None]]] = 0, ()


class Replay:
    """Follows a script for as long as a recording gives its nodes, and writes the next one."""

    def __init__(self, script: Script | None, batch: int, operands: Operands) -> None:
        self._script, self._batch, self._operands = script, batch, operands
        size, steps = script.last if script is not None else (0, ())
        self._ahead = steps if size == batch else ()
        self._hooks = saved_tensor_hooks()
        self.steps: list[tuple[Node, Call | None]] = []

    def __bool__(self) -> bool:
        return self._script is not None

    def keep(self) -> None:
        """The recording was accepted."""
        self._script.last = self._batch, tuple(self.steps)

    def again(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Node, Call, bool, Traced] | None:
        """The call that came here last time, if this is the same: its node, what was noted of it, whether its result
        requires a gradient, and the last traced argument. None if it has to be recorded.
        """
        place = len(self.steps)
        if place >= len(self._ahead) or (call := self._ahead[place][1]) is None or call.func is not func:
            return None
        given = (*args, *kwargs.values()) if kwargs else args
        if (*map(type, given),) != call.kinds or (*kwargs,) != call.names or not self._is_ordinary():
            return None
        for index, wanted in call.others:
            # Zeros have signs.
            if (value := given[index]) is not wanted and (type(value) not in PLAIN or repr(value) != repr(wanted)):
                return None
        tracked = False
        with torch._C.DisableTorchFunctionSubclass():
            for index, wanted in call.values:
                value = given[index]
                if value.value != wanted or value.grad_fn is not None:
                    return None
                tracked = tracked or value.tracked
        first = len(self._operands.tensors)
        for index, slot, form in call.operands:
            tensor = given[index]
            if self._operands.slot(tensor, tensor.dtype) != slot or _form(tensor) != form:
                self._operands.forget(first)
                return None
            tracked = tracked or tensor.requires_grad
        self.steps.append(self._ahead[place])
        return self._ahead[place][0], call, tracked, value

    def note(self, node: Node) -> None:
        """A node was recorded."""
        place = len(self.steps)
        if place >= len(self._ahead) or self._ahead[place][0] is not node:
            self._ahead = ()
        self.steps.append((node, None))

    def learn(
        self, before: int, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """A call was recorded, when there were `before` nodes: notes what it was, if it was simple enough."""
        given = (*args, *kwargs.values())
        if len(self.steps) != before + 1 or type(result) is not Traced or not self._is_ordinary():
            return
        node = self.steps[-1][0]
        places = dict(enumerate(given))
        traced = {i: value for i, value in places.items() if type(value) is Traced}
        tensors = {i: value for i, value in places.items() if isinstance(value, Tensor) and i not in traced}
        others = {i: value for i, value in places.items() if i not in traced and i not in tensors}
        slots = {i: self._operands.known(tensor) for i, tensor in tensors.items()}
        simple = (
            result.value == node.output
            and not node.op.detaches
            and all(result is not value for value in traced.values())
            and {value.value for value in traced.values()} == {*node.inputs}
            # The contents of indices and masks may have been read; those of weights have not.
            and all(tensor.is_floating_point() and type(tensor) in PLAIN_TENSORS for tensor in tensors.values())
            and {*slots.values()} == {slot for slot in node.operands if slot is not None}
            and all(map(is_fixed, others.values()))
            and (result.views is None or len(traced) == 1)
        )
        if simple:
            call = Call(
                func,
                tuple(map(type, given)),
                tuple(kwargs),
                tuple((i, value.value) for i, value in traced.items()),
                tuple((i, slots[i], _form(tensor)) for i, tensor in tensors.items()),
                tuple(others.items()),
                result.extent,
                result.scalar,
                result.views is not None,
            )
            self.steps[-1] = node, call

    def _is_ordinary(self) -> bool:
        """Whether nothing around the call has a say in what it is recorded as."""
        return (
            torch.is_grad_enabled()
            and not torch._C._is_any_autocast_enabled()
            and not torch.is_inference_mode_enabled()
            and saved_tensor_hooks() == self._hooks
        )


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.layout, tensor.requires_grad

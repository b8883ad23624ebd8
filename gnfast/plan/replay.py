"""The calls of a network's last recording: one that comes again, in its place and as it was, gives the same node.

Nothing is taken for granted of a forward, which runs as always. Each of its calls is compared with the one in its place
in the last recording by everything that recording it would read; where they are the same, recording has nothing to work
out. From the first one on that gives another node, all are recorded anew.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gnfast.interop.surroundings import saved_tensor_hooks
from gnfast.plan.plan import Node
from gnfast.plan.traced import Traced

if TYPE_CHECKING:
    from gnfast.plan.recorder import Recorder

_PLAIN = frozenset([int, float, bool, str, type(None)])


class Call(NamedTuple):
    """A call that did nothing but append one node, which is determined by what is noted here."""

    func: Callable[..., Any]
    args: tuple[tuple[type, Any], ...]
    """Per argument its type, and: a traced tensor's value, another one's (slot, shape, dtype), or what it is."""
    names: tuple[str, ...]
    """Of the last of them, which came by name."""
    dtype: torch.dtype
    is_view: bool


class Script:
    """The nodes of a network's last recording, and the calls that they came of, where those were that simple."""

    def __init__(self) -> None:
        self.batch = 0
        self.steps: Sequence[tuple[Node, Call | None]] = ()


class Replay:
    """Follows a script for as long as a recording gives its nodes, and writes the next one."""

    def __init__(self, recorder: "Recorder", script: Script | None) -> None:
        self._recorder = recorder
        self._script = script
        # What is accepted of one batch size, a reshape by numbers say, may not be of another.
        known = script is not None and script.batch == recorder.batch
        self._ahead: Sequence[tuple[Node, Call | None]] = script.steps if known else ()
        self.steps: list[tuple[Node, Call | None]] = []

    def __bool__(self) -> bool:
        return self._script is not None

    def keep(self) -> None:
        """The recording was accepted."""
        self._script.batch, self._script.steps = self._recorder.batch, tuple(self.steps)

    def again(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced | None:
        """What the call returns if it is the one that came here last time; None if it has to be recorded."""
        place = len(self.steps)
        if place >= len(self._ahead) or (call := self._ahead[place][1]) is None or call.func is not func:
            return None
        given = (*args, *kwargs.values()) if kwargs else args
        if len(given) != len(call.args) or (*kwargs,) != call.names or not self._ordinary():
            return None
        recorder = self._recorder
        operands, tracked, fresh, parent = recorder.operands, False, [], None
        with torch._C.DisableTorchFunctionSubclass():
            for value, (kind, wanted) in zip(given, call.args, strict=True):
                if type(value) is not kind:
                    return None
                if kind is Traced:
                    if value.value != wanted or value.grad_fn is not None:
                        return None
                    parent, tracked = value, tracked or value.tracked
                elif kind is nn.Parameter or kind is Tensor:
                    slot, place_of = wanted[0], operands.known(value)
                    if place_of is None:
                        place_of = len(operands.tensors) + len(fresh)
                        fresh.append(value)
                    if place_of != slot or (value.shape, value.dtype, value.layout) != wanted[1:]:
                        return None
                    tracked = tracked or value.requires_grad
                elif value is not wanted and (kind not in _PLAIN or value != wanted):
                    return None
        for value in fresh:
            operands.slot(value)
        step = self._ahead[place]
        result = recorder.append(step[0], (recorder.batch, *step[0].output_shape), call.dtype, tracked)
        self.steps.append(step)
        return parent.shares_memory_with(result) if call.is_view else result

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
        if len(self.steps) != before + 1 or type(result) is not Traced or not self._ordinary():
            return
        node, recorder = self.steps[-1][0], self._recorder
        values = [value for value in given if type(value) is Traced]
        tensors = [value for value in given if isinstance(value, Tensor) and type(value) is not Traced]
        slots = [recorder.operands.known(tensor) for tensor in tensors]
        simple = (
            result.value == node.output
            and not node.op.detaches
            and all(result is not value for value in values)
            and {value.value for value in values} == {*node.inputs}
            # The contents of indices and masks may have been read; those of weights have not.
            and all(tensor.is_floating_point() and type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)
            and set(slots) == {slot for slot in node.operands if slot is not None}
            and all(type(value) in (Traced, Tensor, nn.Parameter, tuple, *_PLAIN) for value in given)
            and (result.views is None or len(values) == 1)
        )
        if simple:
            told = tuple((type(value), self._description(value)) for value in given)
            call = Call(func, told, tuple(kwargs), result.scalar, result.views is not None)
            self.steps[-1] = node, call

    def _description(self, value: Any) -> Any:
        if type(value) is Traced:
            return value.value
        if isinstance(value, Tensor):
            return self._recorder.operands.known(value), value.shape, value.dtype, value.layout
        return value

    def _ordinary(self) -> bool:
        """Whether nothing around the call has a say in what it is recorded as."""
        return (
            torch.is_grad_enabled()
            and not torch._C._is_any_autocast_enabled()
            and not torch.is_inference_mode_enabled()
            and saved_tensor_hooks() == self._recorder.hooks
        )

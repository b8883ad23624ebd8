"""What a forward may change beside its result, to be put back when a recording of it is thrown away."""

import contextlib
import functools
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gnfast.errors import UnsupportedError
from gnfast.plan.trace import Traced

_Undo = Callable[[], None]
# Of other objects than these, what they refer to is looked into, to this depth and up to so many entries.
_DEPTH, _ENTRIES = 3, 1000
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size])
_OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, nn.Module)
_MODULE = frozenset(nn.Module().__dict__)


@contextlib.contextmanager
def unchanged(net: nn.Module, weights: bool = True) -> Iterator[Callable[[], None]]:
    """Puts back, unless the yielded function is called, what the network's forward changes.

    That is: buffers, parameters and tensors that are attributes of a module, whether written in place or through
    `.data`; what a module's attributes refer to, with the contents of lists, dicts, sets and simple objects; random
    states, PyTorch's, NumPy's and Python's own and those of generators among the attributes.

    While a CUDA graph is captured nothing can be put back, since copies would become part of the graph: what was drawn
    stays drawn, and a change of a parameter or buffer raises.

    Args:
        weights: put back also what was written in place into parameters that require a gradient.

    Raises:
        UnsupportedError: a forward that is thrown away during a capture has changed the network.
    """
    before = _Versions(net) if capturing() else _Snapshot(net, weights)
    accepted = False

    def accept() -> None:
        nonlocal accepted
        accepted = True

    try:
        yield accept
    finally:
        if not accepted:
            before.restore()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the present stream."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class _Versions:
    """In place of a snapshot, where none can be taken."""

    def __init__(self, net: nn.Module) -> None:
        self.tensors = [(t, t._version) for t in (*net.parameters(), *net.buffers()) if not t.is_inference()]

    def restore(self) -> None:
        if any(tensor._version != version for tensor, version in self.tensors):
            raise UnsupportedError(
                "a network with state was refused while a CUDA graph was captured; call it before, outside the graph"
            )


class _Snapshot:
    """Taken on every call, hence in bulk."""

    def __init__(self, net: nn.Module, weights: bool) -> None:
        self.dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.undos: list[_Undo] = [
            functools.partial(torch.set_rng_state, torch.get_rng_state()),
            functools.partial(random.setstate, random.getstate()),
            functools.partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002 (the user's own may be old)
        ]
        if torch.cuda.is_initialized():
            self.undos.append(functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
        self._seen: set[int] = set()
        for module in net.modules():
            parameters, buffers, attributes = module._parameters, module._buffers, module.__dict__
            for entries in (parameters, buffers, module._modules, attributes):
                # Those of a ScriptModule are no dicts, and its Python cannot reassign them.
                if type(entries) is dict:
                    self.dicts.append((entries, entries.copy()))
            for parameter in parameters.values():
                if weights or (parameter is not None and not parameter.requires_grad):
                    self._keep(parameter)
            for buffer in buffers.values():
                self._keep(buffer)
            for name, value in attributes.items():
                if name not in _MODULE:
                    self._keep(value)

    def restore(self) -> None:
        with torch.no_grad():
            for entries, before in self.dicts:
                if entries.keys() != before.keys() or any(entries[key] is not before[key] for key in before):
                    entries.clear()
                    entries.update(before)
            for tensor, memory, value in self.tensors:
                if tensor.data_ptr() != memory.data_ptr() or tensor.shape != memory.shape:
                    tensor.data = memory
                if not torch.equal(memory, value):
                    memory.copy_(value)
            for undo in self.undos:
                undo()

    def _keep(self, value: Any, depth: int = _DEPTH) -> None:
        """Notes what would put `value` back as it is."""
        if type(value) in _PLAIN or isinstance(value, _OPAQUE) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        inside: Collection[Any] = ()
        if isinstance(value, Tensor):
            # What a forward has kept of an earlier recording holds no data.
            if isinstance(value, Traced):
                return
            if not (value.is_inference() or nn.parameter.is_lazy(value)) and value.layout == torch.strided:
                # Shares the memory that the tensor has now, and not its version: graphs that hold it stay valid.
                memory = value.data
                self.tensors.append((value, memory, memory.clone()))
        elif isinstance(value, torch.Generator):
            self.undos.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self.undos.append(functools.partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self.undos.append(functools.partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            bits = value.bit_generator
            self.undos.append(functools.partial(setattr, bits, "state", bits.state))
        elif isinstance(value, np.ndarray):
            self.undos.append(functools.partial(np.copyto, value, value.copy()))
        elif isinstance(value, dict):
            self.dicts.append((value, value.copy()))
            inside = value.values()
        elif isinstance(value, list):
            self.undos.append(functools.partial(value.__setitem__, slice(None), value.copy()))
            inside = value
        elif isinstance(value, (set, deque, bytearray)):
            self.undos.append(functools.partial(_refill, value, value.copy()))
            inside = value
        elif isinstance(value, tuple):
            inside = value
        elif isinstance(own := getattr(value, "__dict__", None), dict):
            self.dicts.append((own, own.copy()))
            inside = own.values()
        if depth and len(inside) <= _ENTRIES:
            for entry in inside:
                self._keep(entry, depth - 1)


def _refill(value: Any, before: Any) -> None:
    value.clear()
    (value.update if isinstance(value, set) else value.extend)(before)

"""What a forward may change besides its result, to be put back when a recording of it is thrown away."""

import contextlib
import copyreg
import functools
import io
import pickle
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gnfast.errors import UnsupportedError
from gnfast.plan.stateless import is_stateless
from gnfast.plan.traced import Traced

_Undo = Callable[[], None]
# Of other objects than these, what they refer to is looked into, to a depth and up to so many entries each.
_THOROUGH, _QUICK = (6, 100_000), (3, 1000)
PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.Size])
"""Kinds of values that cannot change."""
_OPAQUE = (type, FunctionType, BuiltinFunctionType, MethodType, ModuleType, io.IOBase)
_MODULE = [*nn.Module().__dict__]


def is_fixed(value: Any) -> bool:
    """Whether it is for good what it is: a tuple may hold lists, arrays and tensors."""
    return all(map(is_fixed, value)) if type(value) is tuple else type(value) in PLAIN


def _refill(value: Any, before: Any) -> None:
    value.clear()
    (value.update if isinstance(value, set) else value.extend)(before)


class _Contents(NamedTuple):
    """What can be put back by itself: how to copy what such an object holds, and how to give that back to it."""

    get: Callable[[Any], Any]
    put: Callable[[Any, Any], None]
    random: bool = False


@contextlib.contextmanager
def unchanged(net: nn.Module, thorough: bool = True, modules: Iterable[nn.Module] | None = None) -> Iterator["Before"]:
    """Puts back, unless what it yields is set to `accepted`, what the network's forward changes.

    That is: buffers, parameters and tensors that are attributes of a module, whether written in place or through
    `.data`; what a module's attributes refer to, with the contents of lists, dicts, sets and simple objects; random
    states, PyTorch's, NumPy's and Python's own and those of generators among the attributes.

    Nobody can put back what an iterator has given: where an attribute leads to one, `irrevocable` names it.

    While a CUDA graph is captured nothing can be put back, since copies would become part of the graph: what was drawn
    stays drawn, and a change of a parameter or buffer raises UnsupportedError.

    Of a network whose code is known to change none of this, nothing is noted.

    Args:
        thorough: put back also what was written in place into parameters that require a gradient, what is deep inside
            of attributes or among very many, attributes of classes, and modules that are not submodules.
        modules: those of the network, where they are known.
    """
    modules = modules or [*modules_of(net)]
    if capturing():
        before = _Versions(net)
    else:
        before = _Snapshot(modules, thorough) if thorough or not is_stateless(modules) else Before()
    try:
        yield before
    finally:
        if not before.accepted:
            before.restore()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on the present stream."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def modules_of(net: nn.Module) -> Iterator[nn.Module]:
    """Its modules, each once: `net.modules()` without the names that it puts together on its way."""
    modules, seen = [net], {id(net)}
    for module in modules:
        yield module
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)


def random_states(device: torch.device, owned: Iterable[Any] = ()) -> list[Any]:
    """Where random numbers stand: PyTorch's, on the CPU and the device, NumPy's, Python's, those of `owned` generators.

    Args:
        owned: what a network owns, generators and other.
    """
    known = [(_contents(type(value)), value) for value in owned]
    own = [pickle.dumps(contents.get(value)) for contents, value in known if contents and contents.random]
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return [*(state.tolist() for state in states), name, keys.tolist(), rest, random.getstate(), own]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    """Each tensor's values in memory of their own, in as few kernels as can be."""
    # Those of other kinds have rules of their own.
    if any(type(tensor) is not Tensor for tensor in tensors):
        return [tensor.clone() for tensor in tensors]
    results = [torch.empty_like(tensor) for tensor in tensors]
    if results:
        with torch.no_grad():
            torch._foreach_copy_(results, tensors)
    return results


class Before:
    """What is known of a network before its forward; nothing is put back once that is `accepted`."""

    accepted = False
    irrevocable = ""
    stateless = True
    """Whether all code of the network is known, to change nothing and not to be compiled."""

    def restore(self) -> None:
        """Puts all back."""


class _Versions(Before):
    """In place of a snapshot, where none can be taken."""

    stateless = False

    def __init__(self, net: nn.Module) -> None:
        self.tensors = [(t, t._version) for t in (*net.parameters(), *net.buffers()) if not t.is_inference()]

    def restore(self) -> None:
        if any(tensor._version != version for tensor, version in self.tensors):
            raise UnsupportedError(
                "a network with state was refused while a CUDA graph was captured; call it before, outside the graph"
            )


class _Snapshot(Before):
    """Taken on every call, hence in bulk."""

    stateless = False

    def __init__(self, modules: Iterable[nn.Module], thorough: bool) -> None:
        self.undos: list[_Undo] = [functools.partial(torch.set_rng_state, torch.get_rng_state())]
        if torch.cuda.is_initialized():
            self.undos.append(functools.partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
        self._thorough = thorough
        self._depth, self._entries = _THOROUGH if thorough else _QUICK
        self.dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self.undos += [
            functools.partial(random.setstate, random.getstate()),
            functools.partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002 (the user's own may be old)
        ]
        self._seen: set[int] = set()
        self._held: list[Tensor] = []
        for module in modules:
            self._keep_module(module)
        # What shares the memory that a tensor has now, and not its version: graphs that hold it stay valid.
        memories = [tensor.data for tensor in self._held]
        self.tensors = list(zip(self._held, memories, copies(memories), strict=True))

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

    def _keep_module(self, module: nn.Module) -> None:
        self._seen.add(id(module))
        parameters, buffers, attributes = module._parameters, module._buffers, module.__dict__
        for entries in (parameters, buffers, module._modules, attributes):
            # Those of a ScriptModule are not dicts, and its Python cannot reassign them.
            if type(entries) is dict:
                self.dicts.append((entries, entries.copy()))
        for parameter in parameters.values():
            if self._thorough or (parameter is not None and not parameter.requires_grad):
                self._keep(parameter, self._depth)
        for buffer in buffers.values():
            self._keep(buffer, self._depth)
        for name in _own_names(attributes):
            value = attributes[name]
            kind = type(value)
            if kind not in PLAIN and not (kind is tuple and PLAIN.issuperset(map(type, value))):
                self._keep(value, self._depth)
        if self._thorough:
            for kind in type(module).__mro__:
                self._keep_class(kind)

    def _keep_class(self, kind: type) -> None:
        if kind.__module__.partition(".")[0] in ("torch", "builtins", "gnfast") or id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        values = _values_of(kind)
        self.undos.append(functools.partial(_reset_class, kind, values))
        for value in values.values():
            self._keep(value, self._depth)

    def _keep(self, value: Any, depth: int) -> None:
        """Notes what would put `value` back as it is."""
        if type(value) in PLAIN or isinstance(value, _OPAQUE) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        inside: Collection[Any] = ()
        if isinstance(value, Tensor):
            # What a forward has kept of an earlier recording holds no data.
            if isinstance(value, Traced):
                return
            if not (nn.parameter.is_lazy(value) or value.is_inference()) and value.layout == torch.strided:
                self._held.append(value)
        elif isinstance(value, nn.Module):
            if self._thorough:
                self._keep_module(value)
                inside = value._modules.values()
        elif isinstance(value, dict):
            self.dicts.append((value, value.copy()))
            inside = value.values()
        elif contents := _contents(type(value)):
            self.undos.append(functools.partial(contents.put, value, contents.get(value)))
            inside = value if isinstance(value, (list, set, deque)) else ()
        elif isinstance(value, tuple):
            inside = value
        elif isinstance(value, Iterator):
            self.irrevocable = f"a {type(value).__name__} among its attributes, which would be asked twice for its next"
        else:
            if isinstance(own := getattr(value, "__dict__", None), dict):
                self.dicts.append((own, own.copy()))
                inside = [*own.values()]
            slots = {n: getattr(value, n) for n in copyreg._slotnames(type(value)) if hasattr(value, n)}
            if slots:
                self.undos.append(functools.partial(_reset_slots, value, slots))
                inside = [*inside, *slots.values()]
        if depth and len(inside) <= self._entries:
            for entry in inside:
                self._keep(entry, depth - 1)


@functools.lru_cache
def _contents(kind: type) -> _Contents | None:
    # Here, because naming NumPy's generators imports them.
    known = {
        torch.Generator: _Contents(torch.Generator.get_state, torch.Generator.set_state, random=True),
        random.Random: _Contents(random.Random.getstate, random.Random.setstate, random=True),
        np.random.RandomState: _Contents(np.random.RandomState.get_state, np.random.RandomState.set_state, random=True),
        np.random.Generator: _Contents(
            lambda g: g.bit_generator.state, lambda g, state: setattr(g.bit_generator, "state", state), random=True
        ),
        np.ndarray: _Contents(lambda array: array.copy(), np.copyto),
        **dict.fromkeys((list, set, deque, bytearray), _Contents(lambda value: value.copy(), _refill)),
    }
    return next((contents for base, contents in known.items() if issubclass(kind, base)), None)


def _own_names(attributes: Mapping[str, Any]) -> list[str]:
    """Those of a module's attributes that not every module has; these usually come first."""
    names, count = [*attributes], len(_MODULE)
    return names[count:] if names[:count] == _MODULE else [name for name in names if name not in _MODULE]


def _values_of(kind: type) -> dict[str, Any]:
    """The attributes of a class that are neither methods nor properties."""
    return {n: v for n, v in vars(kind).items() if not (n.startswith("__") or hasattr(v, "__get__"))}


def _reset_class(kind: type, before: Mapping[str, Any]) -> None:
    now = _values_of(kind)
    for name in now.keys() - before.keys():
        delattr(kind, name)
    for name, value in before.items():
        if name not in now or now[name] is not value:
            setattr(kind, name, value)


def _reset_slots(value: Any, before: Mapping[str, Any]) -> None:
    for name, content in before.items():
        object.__setattr__(value, name, content)

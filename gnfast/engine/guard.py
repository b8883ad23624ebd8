"""What a recording that is kept depends on, so that it can be seen whether it stands: the network, and the call."""

import itertools
import operator
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from types import FunctionType, MemberDescriptorType
from typing import Any

import torch
import torch.nn.modules.module as torch_modules
from torch import Tensor, nn

from gnfast.interop import surroundings
from gnfast.plan.state import PLAIN, capturing, modules_of
from gnfast.plan.traced import Traced

_BASES = nn.Module, object
"""Classes that are everybody's, and not looked into."""
_DICTS = frozenset([dict, OrderedDict])
_EVERYBODYS = [*nn.Module().__dict__]
"""Attributes that every module has, usually the first: of these, what their dicts hold is looked at, and `training`."""


class Guard:
    """What a network consists of: its modules, their classes, the attributes of both, the forms of its tensors.

    It holds neither the network nor its modules and tensors, but other attributes, which may lead there.
    """

    def __init__(self, net: nn.Module) -> None:
        modules = [*modules_of(net)]
        self._others = [weakref.ref(module) for module in modules[1:]]
        self._kinds, self._training = [*map(type, modules)], [module.training for module in modules]
        kinds = dict.fromkeys(kind for known in self._kinds for kind in known.__mro__ if kind not in _BASES)
        self._classes, count = [*map(vars, kinds)], len(_EVERYBODYS)
        self._skipped = [count if [*vars(module)][:count] == _EVERYBODYS else 0 for module in modules]
        contents = _contents(modules)
        in_slots = any(type(value) is MemberDescriptorType for known in self._classes for value in known.values())
        others = (f"a {kind.__name__}" for kind in map(type, contents) if kind not in _DICTS)
        self.opaque = "__slots__" if in_slots else next(others, "")
        """What a module has in place of a dict, which hides its changes; empty if there is none."""
        self._names, values = ([], []) if self.opaque else self._read(modules, contents)
        # What a lazy module has no values for has no form either; such a module has hooks.
        self._places = [
            place
            for place, value in enumerate(values)
            if isinstance(value, Tensor) and type(value) is not Traced and not nn.parameter.is_lazy(value)
        ]
        tensors = [values[place] for place in self._places]
        self._ids, self._types, self._forms = [*map(id, values)], [*map(type, tensors)], [*map(_form_of, tensors)]
        # Those of objects that are held are not given out again. Modules are seen to go, and with a tensor in the place
        # of another like it a recording is the same.
        self.values = [value for value in values if not isinstance(value, (Tensor, nn.Module))]
        self._functions = [value for value in self.values if type(value) is FunctionType]
        self._code = [*map(_code, self._functions)]
        seen = {*map(id, modules)}
        self._hidden = [weakref.ref(v) for v in values if isinstance(v, nn.Module) and id(v) not in seen]
        """Modules that are attributes, but no submodules."""

    def tensors(self, net: nn.Module) -> list[Tensor] | None:
        """The tensors among the attributes, in their order; None if the network is not what it was, as far as seen."""
        modules = [net, *[other() for other in self._others]]
        if [*map(type, modules)] != self._kinds or [m.training for m in modules] != self._training or hooked(modules):
            return None
        contents = _contents(modules)
        if not _DICTS.issuperset(map(type, contents)) or any(hidden() is None for hidden in self._hidden):
            return None
        names, values = self._read(modules, contents)
        if names != self._names or [*map(id, values)] != self._ids:
            return None
        tensors = [values[place] for place in self._places]
        # Functions may get other code in place (a notebook's autoreload). What has the place of a tensor that has gone,
        # and its address, may be of any type.
        same = all(map(operator.is_, map(_code, self._functions), self._code))
        same = same and [*map(type, tensors)] == self._types and [*map(_form_of, tensors)] == self._forms
        return tensors if same else None

    def _read(self, modules: list[nn.Module], contents: list[Any]) -> tuple[list[Any], list[Any]]:
        """All names, and how many there are in each place, or one could go from a place to the next; all values."""
        attributes = [*map(vars, modules)]
        others = [d for d in (*contents, *self._classes) if d]
        values = self._own([d.values() for d in attributes]), *[d.values() for d in others]
        sizes = map(len, (*attributes, *contents))
        return [*itertools.chain(self._own(attributes), *others, sizes)], [*itertools.chain(*values)]

    def _own(self, attributes: list[Iterable[Any]]) -> Iterator[Any]:
        own = map(itertools.islice, attributes, self._skipped, itertools.repeat(None))
        return itertools.chain.from_iterable(own)


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether there are hooks, which are to run on every call."""
    hooks = itertools.chain.from_iterable([_hooks(module.__dict__) for module in modules])
    return any(hooks) or bool(torch_modules._has_any_global_hook())


def form_of_call(
    x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], rewrite: bool, given: list[Tensor]
) -> tuple[Any, ...]:
    """What of a call may decide what a network does; the tensors among the arguments are added to `given`."""
    around = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), surroundings.autocast_dtype(x.device.type)
    around += (torch.get_default_dtype(),)
    of_x = x.shape, x.dtype, x.device, x.requires_grad, type(x)
    return *of_x, rewrite, around, _form((args, kwargs), given) if args or kwargs else ()


def is_comparable(form: Any) -> bool:
    """Whether a form says all that there is to say."""
    return form is not _OTHER and not (type(form) is tuple and not all(map(is_comparable, form)))


def is_ordinary() -> bool:
    """Whether nothing around a call asks for its forward to run."""
    return surroundings.saved_tensor_hooks() is None and not capturing()


_code = operator.attrgetter("__code__")
_hooks = operator.itemgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _contents(modules: Iterable[nn.Module]) -> list[Any]:
    return [d for m in modules for d in (m._parameters, m._buffers, m._modules)]


def _form_of(tensor: Tensor) -> tuple[Any, ...]:
    strides = tensor.layout != torch.strided or tensor.stride()
    return tensor.requires_grad, tensor.dtype, tensor.device, tensor.shape, strides


_OTHER = object()


def _form(value: Any, given: list[Tensor]) -> Any:
    """As `form_of_call`, for arguments; of tensors, whose values decide nothing, all but these."""
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

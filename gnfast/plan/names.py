"""The names under which users know what is recorded: functions, the submodules that call them, lines of code."""

import os
import sys
import weakref
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

_TRACING = "gnfast.plan.tracing"
_NAMES: "weakref.WeakKeyDictionary[nn.Module, dict[int, str]]" = weakref.WeakKeyDictionary()


def function_name(func: Callable[..., Any]) -> str:
    """ "F.relu", "Tensor.add", "torch.cat", "torch.special.i1", "Tensor.data"."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
        return f"Tensor.{name}"
    if getattr(torch.nn.functional, name, None) is func:
        return f"F.{name}"
    room, _, rest = name.partition("_")
    if room in ("special", "linalg", "fft") and getattr(getattr(torch, room), rest, None) is func:
        return f"torch.{room}.{rest}"
    return f"torch.{name}" if getattr(torch, name, None) is func else f"Tensor.{name}"


def custom_name(function: type[torch.autograd.Function]) -> str:
    """ "Halve (model.py:12)", a custom autograd Function and where its forward is written."""
    return f"{function.__name__} ({shown(function.forward.__code__)})"


def applications(net: nn.Module) -> dict[str, tuple[str, str]]:
    """By `custom_name`, the custom autograd Functions whose forward is running: which submodule applies them, and where
    in the network's own code (as `users_line`)."""
    found, frame = {}, sys._getframe(1)
    while frame is not None and (name := frame.f_globals.get("__name__")) != _TRACING:
        if name == "torch.autograd.function" and frame.f_code.co_name == "apply":
            found[custom_name(frame.f_locals["cls"])] = submodule_name(net, frame.f_back), users_line(frame.f_back)
        frame = frame.f_back
    return found


def submodule_name(net: nn.Module, frame: FrameType | None = None) -> str:
    """Dotted name of the submodule whose forward is running, found on the Python stack, from `frame` if given.

    Looking at the stack, unlike module hooks, leaves the user's modules alone and other threads undisturbed.
    """
    frame = frame or sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                names = _NAMES.get(net)
                if names is None or id(module) not in names:
                    names = _NAMES[net] = {id(m): name for name, m in net.named_modules()}
                return names.get(id(module), type(module).__name__)
        frame = frame.f_back
    return ""


def shown(code: CodeType, line: int | None = None) -> str:
    """ "model.py:31", a line of code, its first if none is given."""
    return f"{code.co_filename.removeprefix(os.getcwd() + os.sep)}:{line or code.co_firstlineno}"


def users_line(frame: FrameType | None = None) -> str:
    """ "model.py:31", the line of the network's own code that runs; empty where it is PyTorch's or gnfast's."""
    frame = frame or sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        # What called the network is not its code.
        if name == _TRACING:
            return ""
        if name.partition(".")[0] not in ("gnfast", "torch"):
            return shown(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""

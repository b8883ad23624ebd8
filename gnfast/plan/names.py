"""The names under which users know what is recorded: functions, the submodules that call them, lines of code."""

import os
import sys
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
from torch import nn

_NAMES: "weakref.WeakKeyDictionary[nn.Module, dict[int, str]]" = weakref.WeakKeyDictionary()


def function_name(func: Callable[..., Any]) -> str:
    """ "F.relu", "Tensor.add", "torch.cat", "Tensor.data"."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
        return f"Tensor.{name}"
    if getattr(torch.nn.functional, name, None) is func:
        return f"F.{name}"
    return f"torch.{name}" if getattr(torch, name, None) is func else f"Tensor.{name}"


def submodule_name(net: nn.Module) -> str:
    """Dotted name of the submodule whose forward is running, found on the Python stack.

    Looking at the stack, unlike module hooks, leaves the user's modules alone and other threads undisturbed.
    """
    frame = sys._getframe(1)
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


def users_line() -> str:
    """ "model.py:31", the line of the network's own code that runs; empty where it is PyTorch's or gnfast's."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        # What called the network is not its code.
        if name == "gnfast.plan.tracing":
            return ""
        if name.partition(".")[0] not in ("gnfast", "torch"):
            return shown(frame.f_code, frame.f_lineno)
        frame = frame.f_back
    return ""

"""What torch.compile leaves as the Python that it is."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def uncompiled(reason: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """`torch.compiler.disable`, but that imports the compiler: two seconds for all who never compile."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        disabled = torch._disable_dynamo(function)

        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            return (disabled if "torch._dynamo" in sys.modules else function)(*args, **kwargs)

        # As the compiler marks its own: it then gives the reason.
        call._torchdynamo_disable, call._torchdynamo_disable_msg = True, reason
        return call

    return decorate

"""Functions that PyTorch states in Python, of other functions: these are what is recorded."""

import functools
from types import FunctionType
from typing import Any

import torch.nn.functional as F

from gnfast.plan.op import records


@functools.cache
def _body(function: FunctionType) -> FunctionType:
    """The function without its question whether a tensor has rules of its own, for which it would ask the recorder."""
    no = {name: lambda *tensors: False for name in function.__code__.co_names if name.startswith("has_torch_function")}
    body = FunctionType(function.__code__, function.__globals__ | no, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


@records(F.normalize, F.local_response_norm, F.multi_head_attention_forward, told=True)
def _stated(function, trace, *args: Any, **kwargs: Any) -> Any:
    return _body(function)(*args, **kwargs)

"""Functions that PyTorch states in Python, of other functions: these are what is recorded."""

import functools
import inspect
from types import FunctionType
from typing import Any

import torch.nn.functional as F

from gnfast.plan.records import records


@functools.cache
def _body(function: FunctionType) -> FunctionType:
    """The function without its question whether a tensor has rules of its own, for which it would ask the recorder."""
    no = {name: lambda *tensors: False for name in function.__code__.co_names if name.startswith("has_torch_function")}
    body = FunctionType(function.__code__, function.__globals__ | no, function.__name__, function.__defaults__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


_signature = functools.cache(inspect.signature)


@records(F.multi_head_attention_forward)
def _multi_head(trace, *args: Any, **kwargs: Any) -> Any:
    """As PyTorch states it, or batch first where nothing is special: all that it does is then of each sample alone."""
    given = _signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    given = given.arguments
    masks = given["key_padding_mask"], given["attn_mask"], given["bias_k"], given["static_k"], given["static_v"]
    dropped = given["training"] and given["dropout_p"] > 0
    special = dropped or given["need_weights"] or given["add_zero_attn"] or given["use_separate_proj_weight"]
    query, key, value = given["query"], given["key"], given["value"]
    if special or any(mask is not None for mask in masks) or query.dim() < 3:
        return _body(F.multi_head_attention_forward)(*args, **kwargs)
    weight, bias = given["in_proj_weight"], given["in_proj_bias"]
    num_heads = given["num_heads"]
    if query is key is value:
        packed = F.linear(query.transpose(0, 1), weight, bias)
        heads = packed.unflatten(-1, (3, num_heads, -1)).transpose(1, 3).unbind(2)
    else:
        biases = [None] * 3 if bias is None else bias.chunk(3)
        inputs = (t.transpose(0, 1) for t in (query, key, value))
        parts = (F.linear(*given) for given in zip(inputs, weight.chunk(3), biases, strict=True))
        heads = [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts]
    joined = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    return F.linear(joined, given["out_proj_weight"], given["out_proj_bias"]).transpose(0, 1), None


@records(F.normalize, F.local_response_norm, told=True)
def _stated(function, trace, *args: Any, **kwargs: Any) -> Any:
    return _body(function)(*args, **kwargs)

"""What PyTorch says of a call without data, asked once per kind of call: errors, shapes and dtypes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gnfast.plan.op import Context, Op, Shape
from gnfast.plan.plan import Node


class Like(NamedTuple):
    """Stands for a tensor of this shape and dtype."""

    shape: Shape
    dtype: torch.dtype

    def on_meta(self) -> Tensor:
        """One without data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def has_complex(given: Any) -> bool:
    """Whether there is a tensor of complex numbers among the arguments, in lists and tuples too."""
    if isinstance(given, Like):
        return given.dtype.is_complex
    return isinstance(given, (tuple, list)) and any(map(has_complex, given))


@functools.lru_cache(maxsize=8192)
def require_accepted(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], with_dtypes: bool
) -> None:
    """Raises what PyTorch raises for these arguments.

    Without dtypes under autocast, which would convert what does not fit, and which meta tensors do not have.
    """

    def tensors(value: Any) -> Any:
        if isinstance(value, Like):
            widens = value.dtype.is_floating_point and not with_dtypes
            return Like(value.shape, torch.float32 if widens else value.dtype).on_meta()
        return tuple(map(tensors, value)) if type(value) is tuple else value

    try:
        with torch._C._DisableTorchDispatch():
            func(*tensors(args), **{name: tensors(value) for name, value in kwargs})
    except (NotImplementedError, RuntimeError) as error:
        # Some functions need data, or need it where a number comes as a tensor.
        if not isinstance(error, NotImplementedError) and "meta tensors" not in str(error):
            raise


@functools.lru_cache(maxsize=8192)
def node_of(
    op: Op,
    inputs: tuple[tuple[int, Like], ...],
    operands: tuple[tuple[int, Like] | None, ...],
    output: int,
    submodule: str,
    batch: int,
    mixes: bool = False,
) -> tuple[Node, Like]:
    """The node, the same object for the same arguments, and its output's shape and dtype.

    Inputs come as values, operands as slots, each with its shape and dtype.
    """
    if _holds_tensor(tuple(vars(op).values())):
        raise TypeError(f"{type(op).__name__}: got a tensor for one of its numbers, whose value may change")
    # Whatever counts or logs operations is to see those that are run, and sees this only the first time.
    with torch._C._DisableTorchDispatch():
        context = Context([o and o[1].on_meta() for o in operands])
        y, _ = op.forward(context, *(like.on_meta() for _, like in inputs))
    shapes = *(like.shape for _, like in inputs), tuple(y.shape)
    wholes = tuple(None if shape[:1] == (batch,) else shape for shape in shapes)
    is_whole = any(whole is not None for whole in wholes)
    # What is taken as a constant may be of any shape, and a single sample's number may lack its axis.
    mixes = mixes or any(not (whole is None or (whole == () and batch == 1)) for whole in wholes[op.given :])
    node = Node(
        op,
        tuple(value for value, _ in inputs),
        tuple(o and o[0] for o in operands),
        output,
        tuple(like.shape[1:] for _, like in inputs),
        tuple(o and o[1].shape for o in operands),
        tuple(y.shape[1:]),
        y.element_size(),
        submodule,
        mixes=mixes,
        wholes=wholes if is_whole else (),
        batch=batch if is_whole else 1,
    )
    return node, Like(tuple(y.shape), y.dtype)


def result_of(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Like | None:
    """What a function returns for these tensors; None where it needs their data, or returns other than a tensor."""
    try:
        args, kwargs = tree_map_only(Tensor, lambda t: Like(t.shape, t.dtype).on_meta(), (args, kwargs))
        result = func(*args, **kwargs)
    except Exception:
        return None
    return Like(tuple(result.shape), result.dtype) if isinstance(result, Tensor) else None


def _holds_tensor(value: Any) -> bool:
    return any(map(_holds_tensor, value)) if type(value) is tuple else isinstance(value, Tensor)


@functools.lru_cache(maxsize=4096)
def widened(function: Callable[..., Any], args: tuple[Any, ...], device: torch.device, low: torch.dtype) -> torch.dtype:
    """The dtype that `function` gives under autocast: asked of PyTorch, whose lists differ by device and version."""
    given = (torch.zeros(a.shape, dtype=a.dtype, device=device) if isinstance(a, Like) else a for a in args)
    with torch.autocast(device.type, dtype=low):
        result = function(*given)
    return (result if isinstance(result, Tensor) else result[0]).dtype

"""What happens to PyTorch's functions while a network is recorded: nodes, or reasons for refusing."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

import gnfast.plan.ops  # noqa: F401  (fills RECORDERS)
from gnfast.errors import InputError, UnsupportedError
from gnfast.interop.surroundings import autocast_dtype, saved_tensor_hooks
from gnfast.plan.aliases import ALIASES
from gnfast.plan.curved import CurvedCall, Place
from gnfast.plan.in_place import in_place
from gnfast.plan.names import applications, function_name, submodule_name, users_line
from gnfast.plan.op import Op, Shape, frozen
from gnfast.plan.opaque import Opaque, Refused, of_custom
from gnfast.plan.operands import Operands, converted, is_floating
from gnfast.plan.ops.copies import Cast, Detach
from gnfast.plan.ops.given import Constant
from gnfast.plan.ops.spectra import ComplexCall, by_autograd
from gnfast.plan.plan import Node, Refusal
from gnfast.plan.records import RECORDERS, SELF_CHECKED
from gnfast.plan.replay import Replay, Script
from gnfast.plan.traced import METADATA, Traced, has_own_rules
from gnfast.plan.unseen import Like, has_complex, node_of, require_accepted, result_of, widened

_REQUIRES_GRAD = Tensor.requires_grad.__get__


class Recorder:
    """Collects the nodes, operands and refusals of one run of a network's forward; arguments as for `trace.record`."""

    def __init__(
        self, net: nn.Module, x: Tensor, explain: bool, careful: bool = False, script: Script | None = None
    ) -> None:
        self.net, self.explain = net, explain
        self.batch = x.shape[0]
        self.device = x.device
        self.nodes: list[Node] = []
        self.operands = Operands(careful)
        self.refusals: list[Refusal] = []
        self.open = True
        self.operation = ""
        self.output = 0
        self.stacks: dict[int, Sequence[Tensor]] = {}
        """What values that are stacks along a new first axis were made of: reductions over it are per sample."""
        self.applied: dict[int, dict[str, tuple[str, str]]] = {}
        """Of values from the forward of a custom autograd Function: where that is applied, by `names.applications`."""
        self.custom: Refusal | None = None
        self.has_complex = False
        self._values = 0
        self._hooks = saved_tensor_hooks()
        self.replay = Replay(script, self.batch, self.operands)
        self.input = self._new_value(x.shape, x.dtype)

    # ---- what PyTorch's functions do with a traced tensor

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a PyTorch function does when one of its arguments is traced."""
        if self.open and (known := self.replay.again(func, args, kwargs)) is not None:
            node, call, tracked, tensor = known
            result = self.append(node, call.extent, call.dtype, tracked)
            return tensor.shares_memory_with(result) if call.is_view else result
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func == _REQUIRES_GRAD:
            # One of PyTorch's own observers hangs hooks on what requires a gradient, for which there is nothing to see.
            asking = sys._getframe(2).f_globals.get("__name__")
            return args[0].tracked and asking != "torch.utils.module_tracker"
        if func is Tensor.__len__:
            return args[0].shape[0]
        if func is Tensor.__repr__:
            return f"Traced(value={args[0].value}, shape={tuple(args[0].shape)})"
        if not self.open:
            raise UnsupportedError(
                f"{function_name(func)}: got a tensor that holds no data, which the forward of "
                f"{type(self.net).__name__} or a hook kept while gnfast recorded it; wanted one with data "
                "(impl='reference' lets a network keep its activations)"
            )
        outer, self.operation = self.operation, function_name(func)
        try:
            return self._recorded(func, args, kwargs)
        finally:
            self.operation = outer

    def _recorded(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = self._signature(args)
        named = tuple([(name, self._signature(value)) for name, value in kwargs.items()]) if kwargs else ()
        if torch.is_inference_mode_enabled():
            self.refuse("in inference mode, from which nothing returns to autograd")
        if kwargs and kwargs.get("out", self) is None:
            del kwargs["out"]
        known = ALIASES.get(func, func)
        recorder = RECORDERS.get(known) or in_place(known)
        if self.has_complex and has_complex(given):
            recorder = functools.partial(by_autograd, known)
        if recorder is None:
            return self._opaque(func, args, kwargs, "not an operation that the passes know")
        if known not in SELF_CHECKED:
            require_accepted(func, given, named, autocast_dtype(self.device.type) is None)
        if self.replay:
            before = len(self.nodes)
            result = recorder(self, *args, **kwargs)
            self.replay.learn(before, func, args, kwargs, result)
            return result
        if not self.explain:
            return recorder(self, *args, **kwargs)
        try:
            return recorder(self, *args, **kwargs)
        except Refused as error:
            return self._opaque(func, args, kwargs, error.refusal.reason)

    def _signature(self, value: Any) -> Any:
        """Arguments with a `Like` in place of each tensor, which has to be one that can be recorded."""
        kind = type(value)
        if kind is int or value is None:
            return value
        if kind is Traced:
            self.require_recorded(value)
            return Like(value.extent, value.scalar)
        if isinstance(value, Tensor):
            if has_own_rules(kind):
                self.refuse(f"a {kind.__name__}, a subclass of Tensor with rules of its own")
            if value.layout != torch.strided:
                self.refuse(f"a tensor of layout {value.layout}")
            return Like(tuple(value.shape), value.dtype)
        return tuple([self._signature(entry) for entry in value]) if isinstance(value, (tuple, list)) else value

    # ---- what recorders of operations call

    def emit(
        self, op: Op, inputs: Sequence[Tensor], operands: Sequence[Tensor | None] = (), mixes: bool = False
    ) -> Traced:
        """Appends y = op(inputs; operands) and returns y.

        `mixes`: an entry of y depends on other samples than its own. It need not be said of curved ops, nor where
        axis 0 of an input or of y is not the batch's.
        """
        # Those of PyTorch itself change nothing.
        if (hooks := saved_tensor_hooks()) != self._hooks and not (hooks and hooks[0].__module__.startswith("torch.")):
            self.refuse("saved_tensors_hooks, which may change what its backward reads")
        for tensor in inputs:
            if not self.depends_on_x(tensor):
                self.refuse("its input does not depend on x while another argument does")
        for tensor in operands:
            if self.depends_on_x(tensor):
                self.refuse("its weight depends on x, so the product is not piecewise linear")
        dtype = autocast_dtype(self.device.type) if op.autocasts else None
        if dtype is None and op.promotes:
            dtypes = {t.scalar for t in inputs} | {t.dtype for t in operands if is_floating(t) and t.dim()}
            dtype = functools.reduce(torch.promote_types, dtypes) if len(dtypes) > 1 else None
        if dtype is not None:
            # Autocast leaves float64 alone.
            inputs = [t if t.scalar == torch.float64 else self.cast(t, dtype) for t in inputs]
        if not (op.detaches or type(op) is ComplexCall or all(t.scalar.is_floating_point for t in inputs[op.given :])):
            if any(t.tracked for t in inputs) or any(t is not None and t.requires_grad for t in operands):
                self.refuse("integers or truth values that depend on x")
            op = Constant(op)
        dtypes = [t if t is None else converted(t.dtype, dtype) for t in operands]
        given = zip(operands, dtypes, strict=True)
        node, (shape, dtype) = node_of(
            op,
            tuple([(t.value, Like(t.extent, t.scalar)) for t in inputs]),
            tuple([t if t is None else (self.operands.slot(t, d), Like(tuple(t.shape), d)) for t, d in given]),
            self._values,
            # Nobody reads a Plan that is made to be run.
            "" if self.replay else submodule_name(self.net),
            self.batch,
            mixes and self.batch > 1,
        )
        if dtype.is_complex and type(op) is not ComplexCall:
            self.refuse("complex numbers")
        parents = any(t.tracked for t in inputs) or any(o is not None and o.requires_grad for o in operands)
        tracked = parents and not op.detaches
        result = self.append(node, shape, dtype, tracked)
        if not torch.is_grad_enabled():
            self.applied[result.value] = applications(self.net)
        self.replay.note(node)
        # What is computed under no_grad is a constant for autograd, whatever it was computed from.
        return self.emit(Detach(), [result]) if tracked and not torch.is_grad_enabled() else result

    def emit_view(self, op: Op, tensor: Traced, mixes: bool = False) -> Traced:
        """As `emit`, for an op whose result shares memory with its input in PyTorch."""
        return tensor.shares_memory_with(self.emit(op, [tensor], mixes=mixes))

    def curved(
        self, function: Callable[..., Tensor], *args: Any, _as: Callable[[Op], Op] | None = None, **kwargs: Any
    ) -> Traced:
        """Appends y = function(*args, **kwargs) as a `CurvedCall` of the tensors among them, x-dependent and others.

        Or as what `_as` makes of that call.
        """
        tensors = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        inputs = [t for t in tensors.values() if self.depends_on_x(t)]
        operands = [t for t in tensors.values() if not self.depends_on_x(t)]
        places = {id(t): Place(index) for index, t in enumerate((*inputs, *operands))}
        args, kwargs = tree_map_only(Tensor, lambda t: places[id(t)], (args, kwargs))
        op = CurvedCall(function, frozen(args), frozen(kwargs))
        if low := autocast_dtype(self.device.type):
            likes = [Like(tuple(t.shape), t.dtype) for t in (*inputs, *operands)]
            dtype = widened(CurvedCall.value, (op, (), *likes), self.device, low)
            if dtype.is_floating_point:
                inputs = [self.cast(t, dtype) if t.scalar.is_floating_point else t for t in inputs]
                operands = [t.to(dtype) if is_floating(t) else t for t in operands]
        return self.emit(op if _as is None else _as(op), inputs, operands)

    def append(self, node: Node, shape: Shape, dtype: torch.dtype, tracked: bool) -> Traced:
        """Appends a node and returns its output."""
        self.nodes.append(node)
        self._values += 1
        self.has_complex |= dtype.is_complex
        return Traced(self, self._values - 1, shape, dtype, tracked)

    def cast(self, tensor: Traced, dtype: torch.dtype) -> Traced:
        """The value in another dtype; itself where it has that dtype."""
        if tensor.scalar == dtype:
            return tensor
        op = Cast(tensor.scalar, dtype)
        follows = tensor.scalar.is_floating_point and dtype.is_floating_point
        return self.emit(op if follows else Constant(op), [tensor])

    def autocast(self, function: Callable[..., Tensor], tensor: Traced, *args: Any) -> Traced:
        """`tensor` in the dtype in which autocast runs `function`; `args` suit a tensor of size 1 in every axis."""
        return self.cast(tensor, self.autocasts_to(function, tensor, *args))

    def autocasts_to(self, function: Callable[..., Tensor], tensor: Traced, *args: Any) -> torch.dtype:
        """The dtype of `autocast`'s result."""
        low = autocast_dtype(self.device.type)
        small = Like((1,) * tensor.dim(), tensor.scalar)
        return widened(function, (small, *args), self.device, low) if low else tensor.scalar

    def runs_low(self, function: Callable[..., Tensor], *args: Any) -> bool:
        """Whether autocast is on and runs `function` of these arguments in low precision."""
        low = autocast_dtype(self.device.type)
        # What it does with an axis may depend on whether that has one entry, and on no more.
        small = (Like(tuple([min(n, 2) for n in a.shape]), a.dtype) if isinstance(a, Tensor) else a for a in args)
        return low is not None and widened(function, tuple(small), self.device, low) == low

    def copy(self, tensor: Traced) -> Traced:
        """The same value in memory of its own."""
        if tensor.tracked and not torch.is_grad_enabled():
            return self.emit(Detach(), [tensor])
        return Traced(self, tensor.value, tensor.extent, tensor.scalar, tensor.tracked)

    def maybe_copy(self, tensor: Traced) -> Traced:
        """The same value in memory of which it depends on the layout whether it is shared."""
        if tensor.tracked and not torch.is_grad_enabled():
            self.refuse("under no_grad, it depends on the memory format whether derivatives follow the result")
        return tensor.shares_memory_with(self.copy(tensor))

    def rebind(self, tensor: Tensor, result: Traced) -> Tensor:
        """Makes `tensor` stand for `result`, as an in-place operation does."""
        if not self.depends_on_x(tensor):
            self.refuse("it writes an x-dependent value into a tensor that does not depend on x")
        if result.extent != tensor.extent:
            self.refuse(f"in place, a result of shape {result.extent} does not fit {tensor.extent}")
        if tensor is self.input:
            self.refuse("it changes x in place")
        if tensor.views is not None and len(tensor.views) > 1:
            self.refuse("it changes in place a tensor of which views are in use")
        if tensor.tracked and not torch.is_grad_enabled():
            self.refuse("under no_grad, it changes in place a value and not its derivative")
        if result.tracked and not tensor.tracked:
            with torch._C.DisableTorchFunctionSubclass():
                tensor.requires_grad_()
        tensor.value, tensor.tracked = self.cast(result, tensor.scalar).value, result.tracked
        return tensor

    def depends_on_x(self, value: Any) -> bool:
        return isinstance(value, Traced)

    # ---- refusals

    def refuse(self, reason: str, operation: str = "") -> NoReturn:
        """Leaves the recording: the network goes through double backward, and `reason` is reported."""
        raise Refused(Refusal(submodule_name(self.net), operation or self.operation, reason, users_line()))

    def batched(self, tensor: Traced, dims: int) -> Traced:
        """The tensor if it has `dims` axes, else with one before the others, as PyTorch takes a single sample.

        Raises InputError where that sample would be the whole x, which lacks its batch axis.
        """
        if tensor.dim() >= dims:
            return tensor
        if self.depends_on_x(tensor) and self.input.dim() < dims and tensor.shape[0] == self.batch:
            raise InputError(
                f"x: {self.operation} in submodule {submodule_name(self.net)!r} got {tensor.dim()} axes, "
                f"{tuple(tensor.shape)}; wanted {dims} with the batch in axis 0 (a single sample is x[None])"
            )
        return tensor.unsqueeze(0)

    def require_tensor(self, constant: Any) -> None:
        """Refuses a constant that is neither a number nor a tensor."""
        if not isinstance(constant, Tensor):
            self.refuse(f"an argument of type {type(constant).__name__}")

    def require_recorded(self, tensor: Traced) -> None:
        """Refuses what a custom autograd Function has returned; when explaining, goes on for the other places."""
        if tensor.noted or not (name := tensor.custom_function()):
            return
        if not (place := self.applied.get(tensor.value, {}).get(name)):
            self.refuse(f"its input comes from the custom autograd function {name}")
        self.custom = of_custom(name, place)
        if not self.explain:
            raise Refused(self.custom)
        tensor.noted = tensor.tracked = True
        self.refusals.append(self.custom)

    def close(self) -> None:
        """Ends the recording. What was compared goes at once, though traced tensors keep the recorder for a while."""
        self.open = False
        self.operands.close()
        # Else the two would refer to each other, and only the garbage collector would free what they hold.
        self.input = None

    def _opaque(self, func: Callable[..., Any], args: Any, kwargs: Any, reason: str) -> Any:
        """Refuses; when explaining, notes the refusal and goes on with what the function says its shape would be."""
        if not self.explain:
            self.refuse(reason)
        refusal = Refusal(submodule_name(self.net), self.operation, reason, users_line())
        self.refusals.append(refusal)
        inputs = [value for value in (*args, *kwargs.values()) if self.depends_on_x(value)]
        result = result_of(func, args, kwargs)
        if result is None:
            raise Refused(refusal)
        output = self._new_value(result.shape, result.dtype, result.dtype.is_floating_point)
        values, shapes = tuple(v.value for v in inputs), tuple(v.extent[1:] for v in inputs)
        self.nodes.append(
            Node(Opaque(self.operation), values, (), output.value, shapes, (), output.extent[1:], 0, refusal.submodule)
        )
        return output

    def _new_value(self, shape: Sequence[int], dtype: torch.dtype, tracked: bool = True) -> Traced:
        self._values += 1
        return Traced(self, self._values - 1, tuple(shape), dtype, tracked)

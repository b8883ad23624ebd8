"""From an `nn.Module` to a Plan: run its forward once with a tensor that records instead of computing.

The network's own Python runs on every call, so control flow on shapes, `train()`/`eval()`, replaced submodules, forward
hooks and parametrised weights act as they would without gnfast, and each weight is read exactly once, in order. What
the recording cannot express exactly is refused by name.

No recording is kept for the next call: a forward is arbitrary Python and may depend on anything (counters, the clock,
attributes, random numbers), and nothing short of running it shows that it would do the same again. Where Python's time
matters, `gnfast.CapturedStep` replays a whole step without it.
"""

import contextlib
import functools
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

import gnfast.plan.ops  # noqa: F401  (fills RECORDERS)
from gnfast.errors import InputError, UnsupportedError
from gnfast.kernels.backend import implementation
from gnfast.plan.fuse import fuse
from gnfast.plan.op import RECORDERS, SELF_CHECKED, Op, Shape, autocast_dtype
from gnfast.plan.ops.detach import Detach
from gnfast.plan.ops.shape import Cast
from gnfast.plan.plan import Derived, Node, Plan, Refusal
from gnfast.plan.rewrite import rewrite


class Refused(UnsupportedError):
    """Raised inside the network's forward to leave it; carries the Refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Traced(Tensor):
    """An x-dependent tensor without data: shape, dtype and device are real, and every operation on it is recorded."""

    recorder: "Recorder"
    value: int
    extent: Shape
    """The shape, without the detour of `.shape` through `__torch_function__`."""
    scalar: torch.dtype
    """The dtype, likewise."""
    views: "weakref.WeakSet[Traced] | None"
    """The tensors that share this one's memory, itself included; None while there is no other."""
    tracked: bool
    """Whether it requires a gradient in PyTorch: derivatives follow it. So that a custom autograd Function shows as
    its grad_fn, it does here as well."""

    @staticmethod
    def __new__(cls, recorder: "Recorder", value: int, shape: Shape, dtype: torch.dtype, tracked: bool) -> "Traced":
        traced = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=recorder.device, requires_grad=tracked
        )
        traced.recorder, traced.value, traced.extent, traced.scalar = recorder, value, shape, dtype
        traced.views, traced.tracked = None, tracked
        return traced

    __hash__ = object.__hash__

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return _recorder(args, kwargs).call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        _recorder(args, kwargs).refuse("this operation bypasses recording", operation=str(func))


def _recorder(args: Any, kwargs: Any) -> "Recorder":
    tensors = _tensors((*args, *(kwargs or {}).values()))
    return next(tensor for tensor in tensors if isinstance(tensor, Traced)).recorder


# What may be asked of a traced tensor without touching its values.
_METADATA = frozenset(
    [
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda")),
        *(getattr(Tensor, name).__get__ for name in ("is_cpu", "is_sparse", "is_meta")),
        *(getattr(Tensor, name) for name in ("size", "dim", "ndimension", "numel", "nelement", "is_floating_point")),
        *(getattr(Tensor, name) for name in ("is_complex", "is_contiguous", "stride", "element_size", "get_device")),
        *(torch.is_floating_point, torch.is_complex, torch.numel),
    ]
)


_REQUIRES_GRAD = Tensor.requires_grad.__get__


class Recorder:
    """Collects the nodes, operands and refusals of one run of a network's forward."""

    def __init__(self, net: nn.Module, x: Tensor, explain: bool, careful: bool = False) -> None:
        self.net = net
        self.batch = x.shape[0]
        self.device = x.device
        self.explain = explain
        self.nodes: list[Node] = []
        self.operands: list[Tensor] = []
        self.refusals: list[Refusal] = []
        self.open = True
        self._slots: dict[int, int] = {}
        self._versions: list[int] = []
        self._contents: list[Tensor] | None = [] if careful else None
        self._sources: list[Tensor] = []
        self._converted_from: dict[int, Tensor] = {}
        self._values = 0
        self._operation = ""
        self._packs = _packs()
        self.input = self._new_value(x.shape, x.dtype)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a PyTorch function does when one of its arguments is traced."""
        if func in _METADATA:
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
                f"{_name_of(func)}: this tensor was recorded by gnfast's trace of {type(self.net).__name__} and holds "
                "no data; the forward (or a hook) kept it beyond the call. Use impl='reference' to keep activations."
            )
        outer, self._operation = self._operation, _name_of(func)
        try:
            given = self._signature(args)
            named = tuple([(name, self._signature(value)) for name, value in kwargs.items()]) if kwargs else ()
            if torch.is_inference_mode_enabled():
                self.refuse("in inference mode, from which nothing returns to autograd")
            recorder = RECORDERS.get(func) or _in_place(func)
            if recorder is None:
                return self._opaque(func, args, kwargs, "not an operation that the four passes know")
            if func not in SELF_CHECKED:
                _run_on_meta(func, given, named, autocast_dtype(self.device.type) is None)
            if not self.explain:
                return recorder(self, *args, **kwargs)
            try:
                return recorder(self, *args, **kwargs)
            except Refused as error:
                return self._opaque(func, args, kwargs, error.refusal.reason)
        finally:
            self._operation = outer

    def emit(self, op: Op, inputs: Sequence[Tensor], operands: Sequence[Tensor | None] = ()) -> Traced:
        """Appends y = op(inputs; operands) and returns y."""
        if (packs := _packs()) is not self._packs and not (packs and packs.__module__.startswith("torch.")):
            self.refuse("saved_tensors_hooks, which may change what its backward reads")
        for tensor in inputs:
            if not self.depends_on_x(tensor):
                self.refuse("its input does not depend on x while another argument does")
        for tensor in operands:
            if self.depends_on_x(tensor):
                self.refuse("its weight depends on x, so the product is not piecewise linear")
        if op.autocasts and (low := autocast_dtype(self.device.type)):
            inputs, operands = self._converted(inputs, operands, low)
        elif op.promotes:
            dtypes = {t.scalar for t in inputs} | {t.dtype for t in operands if _is_floating(t) and t.dim()}
            if len(dtypes) > 1:
                inputs, operands = self._converted(inputs, operands, functools.reduce(torch.promote_types, dtypes))
        node, shape, dtype = _node(
            op,
            tuple((t.value, t.extent, t.scalar) for t in inputs),
            tuple(None if t is None else (self._slot(t), tuple(t.shape), t.dtype) for t in operands),
            self._values,
            _submodule_name(self.net),
        )
        if not shape or shape[0] != self.batch:
            self.refuse(f"its output of shape {shape} does not keep the batch of {self.batch} in axis 0")
        self.nodes.append(node)
        parents = any(t.tracked for t in inputs) or any(o is not None and o.requires_grad for o in operands)
        tracked = parents and not op.detaches
        result = self._new_value(shape, dtype, tracked)
        # What is computed under no_grad is a constant for autograd, whatever it was computed from.
        return self.emit(Detach(), [result]) if tracked and not torch.is_grad_enabled() else result

    def cast(self, tensor: Traced, dtype: torch.dtype) -> Traced:
        """The value in another floating-point dtype; itself where it has that dtype."""
        return tensor if tensor.scalar == dtype else self.emit(Cast(tensor.scalar, dtype), [tensor])

    def autocast(self, function: Callable[..., Tensor], tensor: Traced, *args: Any) -> Traced:
        """`tensor` in the dtype in which autocast runs `function`; `args` suit a tensor of size 1 in every axis."""
        low = autocast_dtype(self.device.type)
        if not low:
            return tensor
        small = _Like((1,) * tensor.dim(), tensor.scalar)
        return self.cast(tensor, _widened(function, (small, *args), self.device, low))

    def runs_low(self, function: Callable[..., Tensor], *args: Any) -> bool:
        """Whether autocast is on and runs `function` of these arguments in low precision."""
        low = autocast_dtype(self.device.type)
        # What it does with an axis may depend on whether that has one entry, and on no more.
        small = (_Like(tuple([min(n, 2) for n in a.shape]), a.dtype) if isinstance(a, Tensor) else a for a in args)
        return low is not None and _widened(function, tuple(small), self.device, low) == low

    def emit_view(self, op: Op, tensor: Traced) -> Traced:
        """As `emit`, for an op whose result shares memory with its input in PyTorch."""
        return self._share(tensor, self.emit(op, [tensor]))

    def copy(self, tensor: Traced) -> Traced:
        """The same value in memory of its own."""
        if tensor.tracked and not torch.is_grad_enabled():
            return self.emit(Detach(), [tensor])
        return Traced(self, tensor.value, tensor.extent, tensor.scalar, tensor.tracked)

    def maybe_copy(self, tensor: Traced) -> Traced:
        """The same value in memory of which it depends on the layout whether it is shared."""
        if tensor.tracked and not torch.is_grad_enabled():
            self.refuse("under no_grad, it depends on the memory format whether derivatives follow the result")
        return self._share(tensor, self.copy(tensor))

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

    def refuse(self, reason: str, operation: str | None = None) -> NoReturn:
        """Leaves the recording: the network goes through double backward, and `reason` is reported."""
        raise Refused(Refusal(_submodule_name(self.net), operation or self._operation, reason))

    def depends_on_x(self, value: Any) -> bool:
        return isinstance(value, Traced)

    def require_batched(self, tensor: Tensor, dims: int) -> None:
        """Raises InputError for an input that lacks its batch axis, which PyTorch would take for a single sample."""
        if self.depends_on_x(tensor) and tensor.dim() < dims:
            where = _submodule_name(self.net)
            raise InputError(
                f"x: {self._operation} in submodule {where!r} got {tensor.dim()} axes, {tuple(tensor.shape)}; "
                f"wanted {dims} with the batch in axis 0 (a single sample is x[None])"
            )

    def require_constant_within_sample(self, constant: Any, tensor: Tensor) -> None:
        """Refuses a constant that is no tensor, or whose axes would line up with the wrong axes of `tensor`."""
        if not isinstance(constant, Tensor):
            self.refuse(f"an argument of type {type(constant).__name__}")
        if constant.dim() > tensor.dim():
            self.refuse(f"a constant of shape {tuple(constant.shape)} has more axes than {tuple(tensor.shape)}")

    def _share(self, tensor: Traced, view: Traced) -> Traced:
        if tensor.views is None:
            tensor.views = weakref.WeakSet([tensor])
        view.views = tensor.views
        view.views.add(view)
        return view

    def _require_recorded(self, tensor: Traced) -> None:
        """Refuses what a custom autograd Function has returned: its backward need not be that of its forward."""
        with torch._C.DisableTorchFunctionSubclass():
            function = tensor.grad_fn
        if function is not None:
            self.refuse(f"its input comes from the custom autograd function {function.name()}")

    def _require_ordinary(self, tensor: Tensor) -> None:
        """Refuses a constant that the passes would not use as PyTorch does."""
        if has_own_rules(type(tensor)):
            self.refuse(f"a {type(tensor).__name__}, a subclass of Tensor with rules of its own")
        if tensor.layout != torch.strided:
            self.refuse(f"a tensor of layout {tensor.layout}")

    def _signature(self, value: Any) -> Any:
        """Arguments with a `_Like` in place of each tensor, which has to be one that can be recorded."""
        kind = type(value)
        if kind is int or value is None:
            return value
        if kind is Traced:
            self._require_recorded(value)
            return _Like(value.extent, value.scalar)
        if isinstance(value, Tensor):
            self._require_ordinary(value)
            return _Like(tuple(value.shape), value.dtype)
        return tuple([self._signature(entry) for entry in value]) if isinstance(value, (tuple, list)) else value

    def _converted(
        self, inputs: Sequence[Traced], operands: Sequence[Tensor | None], dtype: torch.dtype
    ) -> tuple[list[Traced], list[Tensor | None]]:
        """Inputs and floating-point operands in one dtype; autocast leaves float64 alone."""
        keep = torch.float64 if dtype != torch.float64 else None
        inputs = [t if t.scalar == keep else self.cast(t, dtype) for t in inputs]
        converted = [t.to(dtype) if _is_floating(t) and t.dtype != keep else t for t in operands]
        self._converted_from |= {id(t): s for t, s in zip(converted, operands, strict=True) if t is not s}
        return inputs, converted

    def _new_value(self, shape: Sequence[int], dtype: torch.dtype, tracked: bool = True) -> Traced:
        traced = Traced(self, self._values, tuple(shape), dtype, tracked)
        self._values += 1
        return traced

    def _slot(self, operand: Tensor) -> int:
        # Tensors are held in self.operands, so that an id is not given out twice.
        slot_id = id(operand)
        slot = self._slots.setdefault(slot_id, len(self.operands))
        if slot == len(self.operands):
            self.operands.append(operand)
            self._versions.append(_version(operand))
            if self._contents is not None:
                self._contents.append(operand.detach().clone())
            self._sources.append(self._converted_from.pop(slot_id, operand))
        return slot

    def require_unchanged_operands(self) -> None:
        """Refuses a forward that has changed an operand in place after its use: the passes would read new values."""
        contents = self._contents or [None] * len(self.operands)
        for operand, version, content in zip(self.operands, self._versions, contents, strict=True):
            if _version(operand) != version or not (content is None or _same(operand, content)):
                self.refuse(f"the forward changes in place a tensor of shape {tuple(operand.shape)} that it has used")

    def close(self) -> None:
        """Ends the recording. What was compared goes at once, though traced tensors keep the recorder for a while."""
        self.open, self._contents = False, None

    def _opaque(self, func: Callable[..., Any], args: Any, kwargs: Any, reason: str) -> Any:
        """Refuses; when explaining, notes the refusal and goes on with what the function says its shape would be."""
        if not self.explain:
            self.refuse(reason)
        submodule = _submodule_name(self.net)
        refusal = Refusal(submodule, self._operation, reason)
        self.refusals.append(refusal)
        try:
            result = func(*_on_meta(args), **_on_meta(kwargs))
            assert isinstance(result, Tensor)
        except Exception:
            raise Refused(refusal) from None
        output = self._new_value(result.shape, result.dtype, result.dtype.is_floating_point)
        inputs = [value for value in (*args, *kwargs.values()) if self.depends_on_x(value)]
        shapes = tuple(value.extent[1:] for value in inputs)
        values = tuple(value.value for value in inputs)
        self.nodes.append(
            Node(Opaque(self._operation), values, (), output.value, shapes, (), output.extent[1:], 0, submodule)
        )
        return output


@dataclass(frozen=True)
class Opaque(Op):
    """Stands in an explained Plan for an operation that was refused."""

    operation: str

    def label(self) -> str:
        return f"✗ {self.operation}"


def record(
    net: nn.Module,
    x: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rewritten: bool = True,
    fused: bool | None = None,
    explain: bool = False,
    careful: bool = False,
) -> tuple[Plan, list[Tensor], Shape]:
    """Runs the network's forward on a traced x.

    Args:
        rewritten: merge operations where that is exact and cheaper.
        fused: put what lies between matrix products into one operation; None where x's device has a kernel for it.
        explain: note what is refused and go on, for a Plan to be printed.
        careful: refuse as well a network that writes into what it has used by `.data` or numpy, which PyTorch does not
            count: by comparing contents, which takes a copy of each operand.

    Returns:
        the Plan, all its operands in the order of their slots, and the shape of the network's output.

    Raises:
        Refused: the network is outside what the four passes do exactly (with `explain`: only the Plan says so).
    """
    recorder = Recorder(net, x, explain, careful)
    output, shape = 0, ()
    try:
        # With gradients on, as for double backward: a custom autograd Function leaves no mark without them.
        with torch.inference_mode(False), torch.enable_grad(), _without_compiled_code():
            result = net(recorder.input, *args, **kwargs)
        recorder._operation = "its output"
        if not isinstance(result, Traced):
            recorder.refuse(f"a {type(result).__name__} that does not depend on x")
        recorder._require_recorded(result)
        recorder.require_unchanged_operands()
        output, shape = result.value, result.extent
        if not _reaches_x(recorder.nodes, output):
            recorder.refuse("it does not depend on x in a way that derivatives follow")
        if not shape or shape[0] != recorder.batch or math.prod(shape) != recorder.batch:
            recorder.refuse(f"shape {shape} is not one logit per sample of x {tuple(x.shape)}")
    except Refused as error:
        if not explain:
            raise
        if error.refusal not in recorder.refusals:
            recorder.refusals.append(error.refusal)
    except Exception as error:
        if not explain or isinstance(error, InputError):
            raise
        if not recorder.refusals:
            # The network's own errors come from here. Beyond a refusal the recording goes by guesses.
            net(x.clone(), *args, **kwargs)
        reason = f"recording it raised {type(error).__name__}: {error}"
        recorder.refusals.append(Refusal("", "forward", reason))
    finally:
        recorder.close()
    trainable = frozenset(slot for slot, operand in enumerate(recorder.operands) if operand.requires_grad)
    plan = _plan(
        type(net).__name__,
        tuple(x.shape[1:]),
        tuple(recorder.nodes),
        len(recorder.operands),
        output,
        trainable,
        tuple(recorder.refusals),
        rewritten,
        implementation("join", x.device.type).FUSES if fused is None else fused,
    )
    return plan, plan.operands(recorder.operands, recorder._sources), shape


_recordings = 0
_first_or_last = threading.Lock()
_compilers_stance = contextlib.ExitStack()


@contextlib.contextmanager
def _without_compiled_code() -> Iterator[None]:
    """Lets what torch.compile wrapped run as the Python that it was.

    The compiler's stance is the process's: of recordings on several threads the last puts it back, or it would stay.
    """
    global _recordings
    # Importing the compiler takes seconds; without it, nothing can have been compiled.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _first_or_last:
        if _recordings == 0:
            _compilers_stance.enter_context(torch.compiler.set_stance("force_eager"))
        _recordings += 1
    try:
        yield
    finally:
        with _first_or_last:
            _recordings -= 1
            if _recordings == 0:
                _compilers_stance.close()


@functools.lru_cache(maxsize=256)
def _plan(
    name: str,
    input_shape: Shape,
    nodes: tuple[Node, ...],
    slots: int,
    output: int,
    trainable: frozenset[int],
    refusals: tuple[Refusal, ...],
    rewritten: bool,
    fused: bool,
) -> Plan:
    """One Plan per structure: what it works out for itself serves every later call."""
    kept = nodes if refusals else _reachable(nodes, output)
    stated_flops = sum(node.flops for node in kept)
    derived: tuple[Derived, ...] = ()
    if rewritten and not refusals:
        kept, derived = rewrite(kept, output, slots)
    if fused and not refusals:
        kept = fuse(kept, output)
    trainable |= {slots + index for index, d in enumerate(derived) if d.slot in trainable}
    return Plan(name, input_shape, kept, output, trainable, derived, stated_flops, refusals)


def _reachable(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes on which the output depends, in order."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if node.output in needed:
            needed.update(node.inputs)
            kept.append(node)
    return tuple(reversed(kept))


def _reaches_x(nodes: Sequence[Node], output: int) -> bool:
    """Whether some derivative of the output arrives at x."""
    reached = {output}
    for node in reversed(nodes):
        if node.output in reached and not node.op.detaches:
            reached.update(node.inputs)
    return 0 in reached


@functools.lru_cache(maxsize=8192)
def _node(
    op: Op,
    inputs: tuple[tuple[int, Shape, torch.dtype], ...],
    operands: tuple[tuple[int, Shape, torch.dtype] | None, ...],
    output: int,
    submodule: str,
) -> tuple[Node, Shape, torch.dtype]:
    """The node, the same object for the same arguments; its output's shape and dtype from a run without data."""
    on_meta = [torch.empty(shape, dtype=dtype, device="meta") for _, shape, dtype in inputs]
    constants = [None if o is None else torch.empty(o[1], dtype=o[2], device="meta") for o in operands]
    # Whatever counts or logs operations is to see those that are run, and sees this only the first time.
    with torch._C._DisableTorchDispatch():
        y, _ = op.forward(on_meta, constants, overwrite=False)
    node = Node(
        op,
        tuple(value for value, *_ in inputs),
        tuple(None if o is None else o[0] for o in operands),
        output,
        tuple(shape[1:] for _, shape, _ in inputs),
        tuple(None if o is None else o[1] for o in operands),
        tuple(y.shape[1:]),
        y.element_size(),
        submodule,
    )
    return node, tuple(y.shape), y.dtype


class _Like(NamedTuple):
    """Stands for a tensor of this shape and dtype."""

    shape: Shape
    dtype: torch.dtype


@functools.lru_cache(maxsize=8192)
def _run_on_meta(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], with_dtypes: bool
) -> None:
    """Runs a function without data, for the errors that it raises.

    Without dtypes under autocast, which would convert what does not fit, and which meta tensors do not have.
    """

    def tensors(value: Any) -> Any:
        if isinstance(value, _Like):
            dtype = value.dtype if with_dtypes or not value.dtype.is_floating_point else torch.float32
            return torch.empty(value.shape, dtype=dtype, device="meta")
        return tuple(map(tensors, value)) if type(value) is tuple else value

    try:
        with torch._C._DisableTorchDispatch():
            func(*tensors(args), **{name: tensors(value) for name, value in kwargs})
    except (NotImplementedError, RuntimeError) as error:
        # Some functions cannot do without data, nor any with a number that comes as a tensor.
        if not isinstance(error, NotImplementedError) and "meta tensors" not in str(error):
            raise


@functools.cache
def _in_place(func: Callable[..., Any]) -> Callable[..., Any] | None:
    """What records `relu_` and the like: its twin that is not in place, whose result the tensor then stands for."""
    name = getattr(func, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    owners = [owner for owner in (Tensor, torch, torch.nn.functional) if getattr(owner, name, None) is func]
    if not owners:
        # Somebody else's, whatever it does.
        return None
    twins = [getattr(owner, name[:-1], None) for owner in (*owners, torch.nn.functional, torch, Tensor)]
    recorder = next((RECORDERS[twin] for twin in twins if twin in RECORDERS), None)

    def rebound(trace: Recorder, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # As autocast leaves it alone.
        low = autocast_dtype(trace.device.type)
        with torch.autocast(trace.device.type, enabled=False) if low else contextlib.nullcontext():
            return trace.rebind(input, recorder(trace, input, *args, **kwargs))

    return recorder and rebound


def _packs() -> Callable[[Tensor], Any] | None:
    """What tensors go through that autograd saves: the innermost hook; those of PyTorch itself change nothing."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks and hooks[0]


def _version(tensor: Tensor) -> int:
    # Inference tensors have no version, and cannot be saved for a backward either.
    return 0 if tensor.is_inference() else tensor._version


def _same(tensor: Tensor, content: Tensor) -> bool:
    """Whether all entries are equal, NaN to NaN too."""
    if torch.equal(tensor, content):
        return True
    return tensor.isnan().equal(content.isnan()) and torch.equal(tensor.nan_to_num(), content.nan_to_num())


@functools.lru_cache(maxsize=4096)
def _widened(
    function: Callable[..., Any], args: tuple[Any, ...], device: torch.device, low: torch.dtype
) -> torch.dtype:
    """The dtype that `function` gives under autocast: asked of PyTorch, whose lists differ by device and version."""
    given = (torch.zeros(a.shape, dtype=a.dtype, device=device) if isinstance(a, _Like) else a for a in args)
    with torch.autocast(device.type, dtype=low):
        result = function(*given)
    return (result if isinstance(result, Tensor) else result[0]).dtype


def _is_floating(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, (tuple, list)):
        return type(value)(map(_on_meta, value))
    if isinstance(value, dict):
        return {key: _on_meta(entry) for key, entry in value.items()}
    return value


@functools.lru_cache
def has_own_rules(kind: type[Tensor]) -> bool:
    """Whether a subclass of Tensor decides itself what PyTorch's functions do with it."""
    own = kind.__torch_function__
    plain = torch._C._disabled_torch_function_impl, Tensor.__torch_function__.__func__
    return getattr(own, "__func__", own) not in plain


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments, lists and tuples included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _name_of(func: Callable[..., Any]) -> str:
    """The name under which users know a function: "F.relu", "Tensor.add", "torch.cat", "Tensor.data"."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        name = getattr(getattr(func, "__self__", None), "__name__", name)
        return f"Tensor.{name}"
    if getattr(torch.nn.functional, name, None) is func:
        return f"F.{name}"
    return f"torch.{name}" if getattr(torch, name, None) is func else f"Tensor.{name}"


_NAMES: "weakref.WeakKeyDictionary[nn.Module, dict[int, str]]" = weakref.WeakKeyDictionary()


def _submodule_name(net: nn.Module) -> str:
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

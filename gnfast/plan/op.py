"""What an operation of a Plan is: four methods over batched tensors, and the PyTorch functions that record it."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gnfast.plan.trace import Recorder

Operands = Sequence[Tensor | None]
Shape = tuple[int, ...]


class Contribution(NamedTuple):
    """A part of a value's cotangent."""

    tensor: Tensor
    owned: bool
    """Whether it is referred to from nowhere else, so that it may be overwritten."""

    def with_squares(self, centre: float) -> tuple[Tensor, Tensor | None]:
        """The tensor, and float64 (B, parts) that add up to ‖tensor − centre‖² per sample, where they are known."""
        return self.tensor, None


class Pending:
    """A part of a value's cotangent that is computed by whatever takes it, together with what comes next.

    Stands for a `Contribution` in fresh memory. A pullback may return one in place of a tensor.
    """

    owned: ClassVar[bool] = True

    @property
    def tensor(self) -> Tensor:
        """The cotangent on its own."""
        raise NotImplementedError

    def joined(
        self, before: Sequence[Tensor], after: Sequence[Tensor], bits: Tensor, strides: tuple[int, ...], slope: float
    ) -> Tensor:
        """mask · (tensor + Σ before) + Σ after, as `gnfast.kernels.join.join_pullback` has it."""
        raise NotImplementedError

    def with_squares(self, centre: float) -> tuple[Tensor, Tensor | None]:
        """As `Contribution.with_squares`."""
        raise NotImplementedError


def summed(contributions: Sequence[Contribution | Pending]) -> Contribution:
    """Their sum, in the memory of the first if that may be."""
    total = Contribution(contributions[0].tensor, contributions[0].owned)
    for term in contributions[1:]:
        if total.owned:
            total.tensor.add_(term.tensor)
        else:
            total = Contribution(total.tensor + term.tensor, True)
    return total


class Op:
    """One operation y = op(h) that is affine in the x-dependent tensors h once its mask is fixed.

    A subclass is a frozen dataclass of the call's static arguments, so equal calls are equal ops. *Inputs* are the
    x-dependent tensors, all with the batch in dimension 0; *operands* are everything else that is a tensor: weights,
    biases, constants. Write the op as y = L h + k. Then

    ========== ============================================ =============================================
    method     computes                                     used by
    ========== ============================================ =============================================
    forward    y, and the mask that fixes L                 pass 1
    pullback   Lᵀ δ for the cotangent δ = ∂f/∂y             pass 2, down to the input gradient
    pushforward L c + s·k for the merged tangent c          pass 3, up from c₀ = s·x + ∂L/∂g
    param_grad ∂⟨δ, L c + s·k⟩/∂operand                     pass 3, the gradient of each operand
    ========== ============================================ =============================================

    where s (B,) is ∂L/∂f per sample. `overwrite=True` allows a method to write its result into its first argument.
    """

    is_view: ClassVar[bool] = False
    """Whether forward and pushforward may return a tensor that shares memory with an input."""

    mask_bits: ClassVar[float] = 0
    """Bits per output entry that forward saves."""

    shares_cotangent: ClassVar[bool] = False
    """Whether pullback may return a tensor that shares memory with the cotangent, or with itself (expanded)."""

    own_operands: ClassVar[int | None] = None
    """How many operands, from the first, it takes the gradients of; other nodes take the others'. None for all."""

    param_inputs: ClassVar[int | None] = None
    """How many inputs, from the first, `param_grad` reads; None for all."""

    promotes: ClassVar[bool] = False
    """Whether tensors of different dtypes meet in the widest one; else PyTorch's own rule for the forward decides."""

    autocasts: ClassVar[bool] = False
    """Whether autocast runs it in low precision."""

    detaches: ClassVar[bool] = False
    """Whether no derivative passes through it: it has no pullback, and its pushforward reads no tangents."""

    prefers_channels_last: ClassVar[bool] = False
    """Whether it is faster on (B, C, H, W) tensors that are stored with their channels innermost."""

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Any]:
        """Returns y and what pullback and pushforward need to know about the mask (None where L is constant)."""
        raise NotImplementedError

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor | Pending]:
        """Returns the cotangent of each input; `shapes` are the inputs' shapes, batch included."""
        raise NotImplementedError

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        """Returns L c + s·k; `scale` is s (B,), None for 0."""
        raise NotImplementedError

    def param_grad(
        self,
        cotangent: Tensor,
        tangents: Sequence[Tensor],
        operands: Operands,
        saved: Any,
        scale: Tensor | None,
        needs: Sequence[bool],
    ) -> Sequence[Tensor | None]:
        """Returns the gradient of each operand for which `needs` is true; None elsewhere."""
        return [None] * len(operands)

    def forward_all(
        self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool
    ) -> tuple[Sequence[Tensor], Any]:
        """`forward` for every output of the node, of which most have one."""
        y, saved = self.forward(inputs, operands, overwrite)
        return (y,), saved

    def gather(self, received: Sequence[Sequence[Contribution | Pending]], saved: Any) -> Contribution:
        """The cotangent that `pullback` takes, from what the readers of each output have contributed."""
        return summed(received[0])

    def pushforward_all(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Sequence[Tensor]:
        """`pushforward` for every output of the node."""
        return (self.pushforward(tangents, operands, saved, scale, overwrite),)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        """Floating-point operations of one forward per sample (convolutions and matrix products).

        Input and output shapes come without the batch axis, operands' as they are.
        """
        return 0

    def label(self) -> str:
        """The name and arguments that a printed Plan shows."""
        return type(self).__name__


class LinearMap(Op):
    """An op without operands, mask or constants: forward and pushforward are the same linear map."""

    def apply(self, *inputs: Tensor) -> Tensor:
        """L h."""
        raise NotImplementedError

    def adjoint(self, cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
        """Lᵀ δ per input; as autograd has it, unless a subclass knows better."""
        return adjoint(self.apply, cotangent, shapes)

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, None]:
        return self.apply(*inputs), None

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
        return self.adjoint(cotangent, shapes)

    def pushforward(
        self, tangents: Sequence[Tensor], operands: Operands, saved: Any, scale: Tensor | None, overwrite: bool
    ) -> Tensor:
        return self.apply(*tangents)


@dataclass(frozen=True)
class LinearCall(LinearMap):
    """A PyTorch function that is linear in its first argument, with hashable static arguments after it."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    # Some of these functions return views, and so do some of their adjoints.
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def apply(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *self.args, **dict(self.kwargs))

    def label(self) -> str:
        given = [*map(str, self.args), *(f"{name}={value}" for name, value in self.kwargs)]
        return " ".join([self.function.__name__, *given])


RECORDERS: dict[Callable[..., Any], Callable[..., Any]] = {}
SELF_CHECKED: set[Callable[..., Any]] = set()
"""Those of which the recorder asks PyTorch itself, or where there is nothing to ask."""

# What PyTorch's functions call their arguments, by NumPy's names for them, which they take as well.
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}


def records(
    *functions: Callable[..., Any], self_checked: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `recorder(trace, *args, **kwargs)` as what happens when traced code calls one of the functions.

    Unless it is `self_checked`, it sees only arguments that PyTorch has accepted, on tensors without data.
    """
    if self_checked:
        SELF_CHECKED.update(functions)

    def register(recorder: "Callable[[Recorder, ...], Any]") -> Callable[..., Any]:
        own = inspect.signature(recorder).parameters
        renamed = {given: name for given, name in _NUMPY_NAMES.items() if name in own and given not in own}

        def called(trace: "Recorder", *args: Any, **kwargs: Any) -> Any:
            # Once per operation and call of a network: most come without names.
            if kwargs:
                kwargs = {renamed.get(name, name): value for name, value in kwargs.items()}
            return recorder(trace, *args, **kwargs)

        for function in functions:
            RECORDERS[function] = called
        return recorder

    return register


def adjoint(linear: Callable[..., Tensor], cotangent: Tensor, shapes: Sequence[Shape]) -> Sequence[Tensor]:
    """Lᵀ δ per input of a linear map, by autograd."""
    with torch.inference_mode(False), torch.enable_grad():
        # What a linear map's backward reads of its input is shape and layout.
        inputs = [torch.zeros_like(stand_in(cotangent, shape)).requires_grad_() for shape in shapes]
        return torch.autograd.grad(linear(*inputs), inputs, _without_inference_mode(cotangent))


def kept(constant: Tensor) -> Tensor:
    """A constant that is added, safe from being written to until pass 3 reads it: PyTorch keeps none of these.

    What requires a gradient stays itself, and is guarded by its version.
    """
    if constant.requires_grad:
        return constant
    # What is expanded stays so.
    once = constant[tuple(slice(0, 1 if stride == 0 else None) for stride in constant.stride())]
    return once.clone().expand(constant.shape)


def kept_bias(bias: Tensor | None) -> Tensor | None:
    """As `kept`, but for Parameters: those of a critic that is frozen as a whole are not worth a copy per layer."""
    return kept(bias) if type(bias) is Tensor else bias


def per_sample(scale: Tensor, like: Tensor) -> Tensor:
    """The (B,) tensor with as many trailing axes as `like` has, in its dtype."""
    return scale.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def stand_in(cotangent: Tensor, shape: Shape) -> Tensor:
    """Memory of the input's shape, in the cotangent's layout, for a backward function that takes an input.

    Data gradients read nothing of their input but shape and layout, so its pages are never touched. An expanded scalar
    would be made contiguous first, which costs as much as a pass over it.
    """
    layout = torch.channels_last if len(shape) == 4 and is_channels_last(cotangent) else torch.contiguous_format
    return torch.empty(shape, dtype=cotangent.dtype, device=cotangent.device, memory_format=layout)


def _without_inference_mode(t: Tensor) -> Tensor:
    return t.clone() if t.is_inference() else t


def frozen(value: Any) -> Any:
    """A hashable twin of static arguments: lists become tuples."""
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def is_channels_last(t: Tensor) -> bool:
    """Whether a tensor is a (B, C, H, W) one stored with its channels innermost, and not both ways at once."""
    return t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The low precision of autocast where it is on; devices without autocast (meta) have it off."""
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if on else None

"""What an operation of a Plan is: four methods over tensors, and the PyTorch functions that record it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gnfast.kernels.layout import is_channels_last

if TYPE_CHECKING:
    from gnfast.plan.fused import Pending

Shape = tuple[int, ...]


class Context(NamedTuple):
    """What a pass hands to an operation besides the tensors that it works on."""

    operands: Sequence[Tensor | None] = ()
    saved: Any = None
    """What forward returned besides y: whatever fixes the mask. Not set in pass 1."""
    overwrite: bool = False
    """Whether a method may write its result into the first tensor that it works on."""
    shapes: Sequence[Shape] = ()
    """Of the inputs, batch included; set in pass 2."""
    scale: Tensor | None = None
    """s (B,) = ∂L/∂f per sample, None for 0; set in pass 3."""
    needs: Sequence[bool] = ()
    """Per operand, whether its gradient is wanted; set for `param_grad`."""
    biases: Sequence[Tensor] = ()
    """What a fused operation adds for the layers before it, which take the gradients."""
    inputs: Sequence[Tensor] = ()
    """h, for curved ops in passes 2 to 4."""
    total: Tensor | None = None
    """For `param_grad`, a gradient of the first operand to which it may add this one, instead of returning it."""


class ScaledSum(NamedTuple):
    """The gradient (C,) of a bias, Σ s_i δ_i over all axes but one: yet to be computed, with those of other layers."""

    cotangent: Tensor | None
    """None for (B, 1) ones."""
    axis: int


class Op:
    """One operation y = op(h) that is affine in the x-dependent tensors h once its mask is fixed.

    A subclass is a frozen dataclass of the call's static arguments, so equal calls are equal ops. *Inputs* are the
    x-dependent tensors, mostly with the batch in dimension 0; *operands* are everything else that is a tensor: weights,
    biases, constants. Write the op as y = L h + k. Then

    ========== ============================================ =============================================
    method     computes                                     used by
    ========== ============================================ =============================================
    forward    y, and the mask that fixes L                 pass 1
    pullback   Lᵀ δ for the cotangent δ = ∂f/∂y             pass 2, down to the input gradient
    pushforward L c + s·k for the merged tangent c          pass 3, up from c₀ = s·x + ∂L/∂g
    param_grad ∂⟨δ, L c + s·k⟩/∂operand                     pass 3, the gradient of each operand
    ========== ============================================ =============================================

    where s is the context's `scale`. Ops that stand for several nodes of a Plan are `gnfast.plan.fused.Fused`; those
    that are not affine are `gnfast.plan.curved.Curved`.
    """

    curved: ClassVar[bool] = False
    """Whether its second derivative is not zero."""

    is_view: ClassVar[bool] = False
    """Whether forward and pushforward may return a tensor that shares memory with an input."""

    mask_bits: ClassVar[float] = 0
    """Bits per output entry that forward saves."""

    shares_cotangent: ClassVar[bool] = False
    """Whether pullback may return a tensor that shares memory with the cotangent, or with itself (expanded)."""

    homogeneous: ClassVar[bool] = False
    """Whether a positive factor of all inputs comes out as a factor of y."""

    is_layer: ClassVar[bool] = False
    """Whether it is W h + b with operands (W, b) and an attribute `adds_bias`, so that b may be added later."""

    promotes: ClassVar[bool] = False
    """Whether tensors of different dtypes meet in the widest one; else PyTorch's own rule for the forward decides."""

    autocasts: ClassVar[bool] = False
    """Whether autocast runs it in low precision."""

    products: ClassVar[tuple[float, ...]] = (1, 1, 1, 1, 1)
    """How many products as large as the forward's there are in the forward, the input gradient, the tangent, the second
    reverse and the weight gradients: there are more of two x-dependent tensors."""

    cheap: ClassVar[bool] = False
    """Whether y and Jᵀ δ cost so little that they are computed again rather than kept, if what they need is kept."""

    bends_early: ClassVar[bool] = False
    """Whether a curved op without operands adds to μ in pass 3 already (`pushed_and_bent`); δ and t are not kept."""

    saves_output: ClassVar[bool] = False
    """Whether what forward saves shares memory with y."""

    writes: ClassVar[tuple[int, ...]] = ()
    """The operands to which forward writes, running statistics; no other method reads them."""

    detaches: ClassVar[bool] = False
    """Whether no derivative passes through it: it has no pullback, and its pushforward reads no tangents."""

    given: ClassVar[int] = 0
    """How many of its first inputs it takes as constants: no derivative follows them, and no tangent is read."""

    zeros_below: ClassVar[bool] = False
    """Whether autograd's second derivative of it by h is zeros, which then go on down, rather than none at all."""

    takes_ones: ClassVar[bool] = False
    """Whether pullback and param_grad take None for a cotangent (B, 1) of ones; pullback gives an expanded one then."""

    prefers_channels_last: ClassVar[bool] = False
    """Whether it is faster on (B, C, H, W) tensors that are stored with their channels innermost."""

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        """Returns y and what the other methods need to know about the mask (None where L is constant)."""
        raise NotImplementedError

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence["Tensor | Pending"]:
        """Returns the cotangent of each input."""
        raise NotImplementedError

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        """Returns L c + s·k."""
        raise NotImplementedError

    def again(self, ctx: Context, *inputs: Tensor) -> Tensor:
        """y once more, by the mask that forward saved, for `cheap` ops and `memory="low"`; writes to no operand."""
        return self.forward(ctx, *inputs)[0]

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | ScaledSum | None]:
        """Returns the gradient of each operand for which `ctx.needs` is true, None elsewhere, in any dtype.

        `tangent` is that of the first input: operands with gradients meet no other input.
        """
        return [None] * len(ctx.operands)

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        """Floating-point operations of one forward per sample (convolutions and matrix products).

        Input and output shapes come without the batch axis, operands' as they are.
        """
        return 0

    def label(self) -> str:
        """The name and arguments that a printed Plan shows."""
        return type(self).__name__.lower()


class LinearMap(Op):
    """An op without mask or constants: its forward is its pushforward; its pullback is autograd's or a faster one."""

    homogeneous: ClassVar[bool] = True

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        return self.pushforward(ctx, *inputs), None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            inputs = [torch.empty_like(stand_in(cotangent, shape)).requires_grad_() for shape in ctx.shapes]
            given = (cotangent, *ctx.operands)
            seed, *operands = (t if t is None or not t.is_inference() else t.clone() for t in given)
            return torch.autograd.grad(self.pushforward(ctx._replace(operands=operands), *inputs), inputs, seed)


@dataclass(frozen=True)
class LinearCall(LinearMap):
    """A PyTorch function that is linear in its first argument; static ones follow, then operands (indices, say)."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()
    transposed: "LinearCall | None" = None
    """The adjoint, where that is another such call."""
    # Some of these functions return views, and so do some of their adjoints.
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        back = self.transposed
        return super().pullback(ctx, cotangent) if back is None else (back.pushforward(ctx, cotangent),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return self.function(*tangents, *self.args, *ctx.operands, **dict(self.kwargs))

    def label(self) -> str:
        given = [*map(str, self.args), *(f"{name}={value}" for name, value in self.kwargs)]
        return " ".join([self.function.__name__, *given])


class Combination(Op):
    """An op that is linear in several parts together: a sum, a choice, a concatenation.

    A subclass says by `fixed`, in order, which parts are operands instead of inputs.
    """

    fixed: tuple[bool, ...]
    promotes: ClassVar[bool] = True

    @property
    def homogeneous(self) -> bool:
        return not any(self.fixed)

    def combine(self, ctx: Context, *parts: Tensor) -> Tensor:
        """y."""
        raise NotImplementedError

    def shares(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        """The cotangent of each part, before the sum over the axes along which that part was expanded."""
        raise NotImplementedError

    def constants(self, operands: Sequence[Tensor]) -> Sequence[Tensor | float]:
        """The parts that are not inputs: the operands, or the last of them."""
        return operands

    def forward(self, ctx: Context, *inputs: Tensor) -> tuple[Tensor, Any]:
        return self.combine(ctx, *self._in_order(inputs, self.constants(ctx.operands))), None

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        shares = zip(self.shares(ctx, cotangent), self.fixed, strict=True)
        of_inputs = [share for share, fixed in shares if not fixed]
        return [share.sum_to_size(shape) for share, shape in zip(of_inputs, ctx.shapes, strict=True)]

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        constants = self.constants(ctx.operands)
        if ctx.scale is None:
            # The constants may widen the shape.
            constants = [k.new_zeros(()).expand_as(k) if isinstance(k, Tensor) else 0.0 for k in constants]
        else:
            scale = per_sample(ctx.scale, tangents[0])
            constants = [scale * k for k in constants]
        return self.combine(ctx, *self._in_order(tangents, constants))

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | None]:
        grads: list[Tensor | None] = [None] * len(ctx.operands)
        if ctx.scale is not None and any(ctx.needs):
            shares = self.shares(ctx, cotangent * per_sample(ctx.scale, cotangent))
            of_constants = [share for share, fixed in zip(shares, self.fixed, strict=True) if fixed]
            for place, share in enumerate(of_constants, len(grads) - len(of_constants)):
                if ctx.needs[place]:
                    grads[place] = share.sum_to_size(ctx.operands[place].shape)
        return grads

    def _in_order(self, inputs: Sequence[Tensor], constants: Sequence[Tensor | float]) -> list[Tensor]:
        inputs, constants = iter(inputs), iter(constants)
        return [next(constants) if fixed else next(inputs) for fixed in self.fixed]


def kept(constant: Tensor) -> Tensor:
    """A constant that is added, safe from being written to until pass 3 reads it: PyTorch keeps none of these.

    What requires a gradient stays itself, and is guarded by its version.
    """
    if constant.requires_grad:
        return constant
    # What is expanded stays so.
    return constant[tuple(slice(0, 1 if s == 0 else None) for s in constant.stride())].clone().expand(constant.shape)


def kept_bias(bias: Tensor | None) -> Tensor | None:
    """As `kept`, but for Parameters: those of a critic that is frozen as a whole are not worth a copy per layer."""
    return kept(bias) if type(bias) is Tensor else bias


def per_sample(scale: Tensor, like: Tensor) -> Tensor:
    """The (B,) tensor with as many trailing axes as `like` has, in its dtype."""
    return _along(scale, like.dim() - 1, like.dtype)


def per_channel(bias: Tensor, like: Tensor) -> Tensor:
    """The (C,) tensor along axis 1 of `like`, in its dtype."""
    return _along(bias, like.dim() - 2, like.dtype)


def _along(values: Tensor, further: int, dtype: torch.dtype) -> Tensor:
    # To be asked to do nothing takes PyTorch as long as a small operation.
    values = values if values.dtype == dtype else values.to(dtype)
    # Of what has no axes, there is one.
    return values.view(-1, *[1] * further) if further >= 0 else values.view(())


def stand_in(cotangent: Tensor, shape: Shape) -> Tensor:
    """Memory of the input's shape, in the cotangent's layout, for a backward function that takes an input.

    Data gradients read nothing of their input but shape and layout, so its pages are never touched. An expanded scalar
    would be made contiguous first, which costs as much as a pass over it.
    """
    layout = torch.channels_last if len(shape) == 4 and is_channels_last(cotangent) else torch.contiguous_format
    return torch.empty(shape, dtype=cotangent.dtype, device=cotangent.device, memory_format=layout)


def axes_of(tensor: Tensor, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The axes of `tensor` that `dim` names, counted from the left, all for None."""
    every = range(tensor.dim())
    if not every:
        return ()
    dims = every if dim is None or dim == () else (dim,) if isinstance(dim, int) else dim
    return tuple(sorted({every[d] for d in dims}))


def frozen(value: Any) -> Any:
    """A hashable twin of static arguments: lists become tuples, dicts tuples of their entries in order."""
    if isinstance(value, dict):
        return tuple((name, frozen(entry)) for name, entry in sorted(value.items()))
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value

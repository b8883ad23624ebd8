"""What an operation of a Plan is: four methods over batched tensors, and the PyTorch functions that record it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gnfast.plan.trace import Recorder

Operands = Sequence[Tensor | None]
Shape = tuple[int, ...]


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

    def forward(self, inputs: Sequence[Tensor], operands: Operands, overwrite: bool) -> tuple[Tensor, Any]:
        """Returns y and what pullback and pushforward need to know about the mask (None where L is constant)."""
        raise NotImplementedError

    def pullback(
        self, cotangent: Tensor, operands: Operands, saved: Any, shapes: Sequence[Shape], overwrite: bool
    ) -> Sequence[Tensor]:
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

    def flops(self, operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        """Floating-point operations of one forward per sample (convolutions and matrix products; shapes without B)."""
        return 0

    def label(self) -> str:
        """The name and arguments that a printed Plan shows."""
        return type(self).__name__


RECORDERS: dict[Callable[..., Any], Callable[..., Any]] = {}


def records(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers `recorder(trace, *args, **kwargs)` as what happens when traced code calls one of the functions."""

    def register(recorder: "Callable[[Recorder, ...], Any]") -> Callable[..., Any]:
        for function in functions:
            RECORDERS[function] = recorder
        return recorder

    return register


def per_sample(scale: Tensor, like: Tensor) -> Tensor:
    """The (B,) tensor with as many trailing axes as `like` has, in its dtype."""
    return scale.to(like.dtype).reshape(-1, *[1] * (like.dim() - 1))


def stand_in(cotangent: Tensor, shape: Shape) -> Tensor:
    """Memory of the input's shape (B, C, H, W), in the cotangent's layout, for a backward function that takes an input.

    Data gradients read nothing of their input but shape and layout, so its pages are never touched. An expanded scalar
    would be made contiguous first, which costs as much as a pass over it.
    """
    layout = torch.channels_last if is_channels_last(cotangent) else torch.contiguous_format
    return torch.empty(shape, dtype=cotangent.dtype, device=cotangent.device, memory_format=layout)


def is_channels_last(t: Tensor) -> bool:
    """Whether a (B, C, H, W) tensor is stored with its channels innermost, and not both ways at once."""
    return t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()

"""f̂ of a small multilayer perceptron in two kernels, forward and backward (`gnfast.kernels.mlp.triton`)."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.engine.heads import Head
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.kernels.backend import implementation
from gnfast.kernels.head import Formula
from gnfast.kernels.mlp import Chain, fits
from gnfast.plan.chain import chain_of
from gnfast.plan.plan import Plan

_chain = functools.lru_cache(maxsize=256)(chain_of)


def chain_for_kernels(plan: Plan, head: Head, operands: Sequence[Tensor], device_type: str) -> Chain | None:
    """The Plan as what the two kernels take; None where the passes are to run operation by operation."""
    if head.formula is None or implementation("mlp", device_type) is None:
        return None
    chain = _chain(plan)
    if chain is None:
        return None
    weights = [operands[slot] for slot in chain.weights]
    return chain if fits([tuple(weight.shape) for weight in weights], weights[0].dtype) else None


def normalized(chain: Chain, head: Head, keep: bool, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """f̂ (B,), differentiable once."""
    return _TwoKernels.apply(chain, head.formula, keep, x, *operands)


class _TwoKernels(torch.autograd.Function):
    """(x, operands) ↦ f̂ (B,)."""

    @staticmethod
    def forward(ctx, chain: Chain, formula: Formula, keep: bool, x: Tensor, *operands: Tensor) -> Tensor:
        kernels = implementation("mlp", x.device.type)
        ctx.chain, ctx.formula, ctx.kernels = chain, formula, kernels
        f_hat, *saved = kernels.forward(formula, chain.slope, _rows(x), *_layers(chain, operands), keep)
        ctx.save_for_backward(x, *saved, *operands)
        return f_hat

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, g, partials, masks, deltas, *operands = ctx.saved_tensors
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        grad_x, of_weights, of_biases = ctx.kernels.backward(
            *(ctx.formula, ctx.chain.slope, grad, _rows(x), g, partials, masks, deltas),
            *(*_layers(ctx.chain, operands), needs_x, any(needs)),
        )
        grads: list[Tensor | None] = [None] * len(operands)
        if any(needs):
            pairs = [*zip(ctx.chain.weights, of_weights, strict=True), *zip(ctx.chain.biases, of_biases, strict=True)]
            for slot, gradient in pairs:
                if slot is not None and needs[slot]:
                    grads[slot] = gradient.to(operands[slot].dtype)
        return None, None, None, None if grad_x is None else grad_x.reshape(x.shape), *grads


def _layers(chain: Chain, operands: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    biases = [None if slot is None else operands[slot] for slot in chain.biases]
    return [operands[slot] for slot in chain.weights], biases


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), math.prod(x.shape[1:]))

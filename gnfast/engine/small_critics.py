"""f̂ of a small multilayer perceptron in two kernels, forward and backward (`gnfast.kernels.mlp.triton`)."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gnfast.engine.heads import Head
from gnfast.engine.once_differentiable import once_differentiable
from gnfast.kernels.backend import implementation
from gnfast.kernels.head import Formula
from gnfast.kernels.mlp import Chain, fits
from gnfast.plan.ops.activation import LeakyReLU
from gnfast.plan.ops.join import Join
from gnfast.plan.ops.linear import Linear
from gnfast.plan.ops.shape import Reshape
from gnfast.plan.plan import Plan


@functools.lru_cache(maxsize=256)
def chain_of(plan: Plan) -> Chain | None:
    """The Plan as a chain of linear layers with one kind of activation between them; None if it is anything else."""
    weights, biases, slopes = [], [], set()
    value, after_linear = 0, False
    for node in plan.nodes:
        if node.inputs != (value,) or node.further_outputs:
            return None
        value = node.output
        if isinstance(node.op, Reshape) and (not weights or node is plan.nodes[-1]):
            continue
        if isinstance(node.op, Linear) and not after_linear and len(node.input_shapes[0]) == 1:
            weights.append(node.operands[0])
            biases.append(node.operands[1])
            after_linear = True
        elif isinstance(node.op, (LeakyReLU, Join)) and after_linear:
            slopes.add(node.op.slope)
            after_linear = False
        else:
            return None
    if not after_linear or len(slopes) != 1 or len(set(weights)) < len(weights) or value != plan.output:
        return None
    return Chain(slopes.pop(), tuple(weights), tuple(biases))


def chain_for_kernels(plan: Plan, head: Head, operands: Sequence[Tensor], device_type: str) -> Chain | None:
    """The Plan as what the two kernels take; None where the passes are to run operation by operation."""
    if head.formula is None or implementation("mlp", device_type) is None or (chain := chain_of(plan)) is None:
        return None
    weights = [operands[slot] for slot in chain.weights]
    return chain if fits([tuple(weight.shape) for weight in weights], weights[0].dtype) else None


class TwoKernels(torch.autograd.Function):
    """(x, operands) ↦ f̂ (B,), differentiable once."""

    @staticmethod
    def forward(ctx, chain: Chain, formula: Formula, keep: bool, x: Tensor, *operands: Tensor) -> Tensor:
        kernels = implementation("mlp", x.device.type)
        ctx.chain, ctx.formula, ctx.kernels = chain, formula, kernels
        f_hat, *saved = kernels.forward(formula, chain.slope, x.flatten(1), *_layers(chain, operands), keep)
        ctx.save_for_backward(x, *saved, *operands)
        return f_hat

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, g, partials, masks, deltas, *operands = ctx.saved_tensors
        _, _, _, needs_x, *needs = ctx.needs_input_grad
        grad_x, of_weights, of_biases = ctx.kernels.backward(
            *(ctx.formula, ctx.chain.slope, grad, x.flatten(1), g, partials, masks, deltas),
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

"""Matrix products and contractions, of one x-dependent tensor and others or of several."""

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gnfast.plan.op import Context, LinearMap, Shape
from gnfast.plan.ops.factors import Contraction
from gnfast.plan.records import records


@dataclass(frozen=True)
class Einsum(LinearMap):
    """y = einsum of one x-dependent tensor and any number of operands.

    Attributes:
        terms: one string of axis labels per factor, the x-dependent one at `position`.
        output: the labels of y.
        autocasts: whether autocast runs it in low precision: not where it multiplies without a sum, say.
    """

    terms: tuple[str, ...]
    output: str
    position: int
    autocasts: bool = True
    # einsum of one factor is a view.
    is_view: ClassVar[bool] = True
    shares_cotangent: ClassVar[bool] = True
    promotes: ClassVar[bool] = True

    def pullback(self, ctx: Context, cotangent: Tensor) -> Sequence[Tensor]:
        return (self._transposed(self.position, self._factors(ctx, None), cotangent, ctx.shapes[0]),)

    def pushforward(self, ctx: Context, *tangents: Tensor) -> Tensor:
        return torch.einsum(f"{','.join(self.terms)}->{self.output}", *self._factors(ctx, tangents[0]))

    def param_grad(self, ctx: Context, cotangent: Tensor, tangent: Tensor) -> Sequence[Tensor | None]:
        factors = self._factors(ctx, tangent)
        places = [place for place in range(len(self.terms)) if place != self.position]
        return [
            self._transposed(place, factors, cotangent, factors[place].shape) if need else None
            for place, need in zip(places, ctx.needs, strict=True)
        ]

    def flops(self, input_shapes: Sequence[Shape], operand_shapes: Sequence[Shape | None], output_shape: Shape) -> int:
        extents = dict.fromkeys(self.terms[self.position][:1], 1)
        shapes = list(operand_shapes)
        shapes.insert(self.position, (1, *input_shapes[0]))
        for term, shape in zip(self.terms, shapes, strict=True):
            for label, extent in zip(term, shape, strict=True):
                extents.setdefault(label, extent)
        return 2 * math.prod(extents.values())

    def label(self) -> str:
        return f"einsum {','.join(self.terms)}->{self.output}"

    def _factors(self, ctx: Context, h: Tensor | None) -> list[Tensor | None]:
        return [*ctx.operands[: self.position], h, *ctx.operands[self.position :]]

    def _transposed(self, place: int, factors: Sequence[Tensor | None], cotangent: Tensor, shape: Shape) -> Tensor:
        """The cotangent of factor `place`: the contraction of everything else."""
        others = [k for k in range(len(self.terms)) if k != place]
        available = self.output + "".join(self.terms[k] for k in others)
        wanted = self.terms[place]
        # An axis that was summed alone reappears as copies.
        present = "".join(label for label in wanted if label in available)
        equation = f"{','.join([self.output, *(self.terms[k] for k in others)])}->{present}"
        result = torch.einsum(equation, cotangent, *(factors[k] for k in others))
        return result.reshape([n if c in present else 1 for c, n in zip(wanted, shape, strict=True)]).expand(shape)


@records(torch.einsum)
def _einsum(trace, equation, *tensors):
    if not isinstance(equation, str):
        trace.refuse("einsum with lists of axes instead of an equation")
    tensors = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else list(tensors)
    left, _, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in equation:
        output = "".join(sorted(label for label in set(left) - {*",."} if left.count(label) == 1))
        output = "..." * ("..." in left) + output
    terms, output = _spelled(terms, output, [tensor.dim() for tensor in tensors])
    if any(len(set(term)) < len(term) for term in terms):
        y = trace.curved(torch.einsum, f"{','.join(terms)}->{output}", *tensors)
        # A diagonal is a view.
        return tensors[0].shares_memory_with(y) if len(tensors) == 1 else y
    return _contract(trace, terms, output, tensors, trace.runs_low(torch.einsum, equation, *tensors))


def _spelled(terms, output, dims):
    """The terms with labels for "...", which stands for as many axes as a tensor has besides, from the right."""
    free = [label for label in string.ascii_letters if label not in "".join([*terms, output])]
    counts = [n - len(term) + 3 if "..." in term else 0 for term, n in zip(terms, dims, strict=True)]
    labels = "".join(free[: max(counts)])
    spelled = [term.replace("...", labels[len(labels) - count :]) for term, count in zip(terms, counts, strict=True)]
    return spelled, output.replace("...", labels)


def _contract(trace, terms, output, tensors, autocasts):
    dependent = [k for k, tensor in enumerate(tensors) if trace.depends_on_x(tensor)]
    if len(dependent) > 1:
        return _of_several(trace, terms, output, tensors, autocasts)
    (position,) = dependent
    batch = terms[position][:1]
    mixes = not batch or output[:1] != batch
    extents: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        for label, extent in zip(term, tensor.shape, strict=True):
            extents[label] = extent if extents.get(label, 1) == 1 else extents[label]
    shapes = [tuple(extents[label] for label in term) for term in terms]
    tensors = [t if t.shape == shape else t.expand(shape) for t, shape in zip(tensors, shapes, strict=True)]
    operands = [tensor for k, tensor in enumerate(tensors) if k != position]
    op = Einsum(tuple(terms), output, position, autocasts)
    if not operands and len(output) == len(terms[0]):
        return trace.emit_view(op, tensors[0], mixes=mixes)
    return trace.emit(op, [tensors[position]], operands, mixes=mixes)


def _of_several(trace, terms, output, tensors, autocasts):
    """As `_contract`, where two of the tensors or more depend on x."""
    for place, term in enumerate(terms):
        elsewhere = output + "".join(terms[:place] + terms[place + 1 :])
        if alone := [axis for axis, label in enumerate(term) if label not in elsewhere]:
            tensors[place] = tensors[place].sum(alone)
            terms = [*terms[:place], "".join(label for label in term if label in elsewhere), *terms[place + 1 :]]
    if len(tensors) > 2:
        return trace.curved(torch.einsum, f"{','.join(terms)}->{output}", *tensors)
    return trace.emit(Contraction(tuple(terms), output, autocasts), _together(terms, tensors))


def _together(terms, tensors):
    """The two tensors with the size of each axis that they share: one of size 1 is repeated."""
    extents = [dict(zip(term, tensor.shape, strict=True)) for term, tensor in zip(terms, tensors, strict=True)]
    whole = {label: max(extent.get(label, 1) for extent in extents) for label in "".join(terms)}
    shapes = [tuple(whole[label] for label in term) for term in terms]
    return [t if tuple(t.shape) == s else t.expand(s) for t, s in zip(tensors, shapes, strict=True)]


@records("matmul", "mm", "bmm", "mv", told=True)
def _product(function, trace, input, mat2):
    """The axes from the right: n × k times k × m, everything before them in parallel."""
    left_dims, right_dims = input.dim(), mat2.dim()
    parallel = max(left_dims, right_dims, 2) - 2
    labels = string.ascii_letters[:parallel]
    left = labels[parallel - max(left_dims - 2, 0) :] + ("NK" if left_dims > 1 else "K")
    right = labels[parallel - max(right_dims - 2, 0) :] + ("KM" if right_dims > 1 else "K")
    output = labels + ("N" if left_dims > 1 else "") + ("M" if right_dims > 1 else "")
    return _contract(trace, [left, right], output, [input, mat2], trace.runs_low(function, input, mat2))


@records("addmm", "baddbmm", told=True)
def _sum_with_product(function, trace, input, mat1, mat2, *, beta=1, alpha=1):
    low = trace.runs_low(function, input, mat1, mat2)
    product = mat1 @ mat2
    product = product if alpha == 1 else product * alpha
    # PyTorch widens the input to the product's shape, and not the other way.
    torch.empty(tuple(input.shape), device="meta").expand(tuple(product.shape))
    # Without weight the input is not looked at: it may be memory that nobody has written.
    if beta == 0:
        return product
    input = input.to(product.dtype) if low else input
    return product + (input if beta == 1 else input * beta)


@records(F.bilinear, torch.bilinear)
def _bilinear(trace, input1, input2, weight, bias=None):
    rest = string.ascii_letters[: input1.dim() - 1]
    terms = [rest + "I", "KIJ", rest + "J"]
    low = trace.runs_low(torch.bilinear, input1, input2, weight)
    y = _contract(trace, terms, rest + "K", [input1, weight, input2], low)
    return y if bias is None else y + bias


@records("dot", "vdot", "inner", "outer", "ger", told=True)
def _inner_or_outer(function, trace, input, other):
    name = function.__name__
    first, second = string.ascii_letters[: input.dim()], string.ascii_letters[26 : 26 + other.dim()]
    if name in ("outer", "ger"):
        terms, output = [first, second], first + second
    elif 0 in (input.dim(), other.dim()):
        return input * other
    else:
        terms, output = [first, second[:-1] + first[-1]], first[:-1] + second[:-1]
    return _contract(trace, terms, output, [input, other], trace.runs_low(function, input, other))

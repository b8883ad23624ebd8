"""Spectral normalisation of one layer: PyTorch's parametrization on gnfast's kernels."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The class that `torch.nn.utils.parametrizations.spectral_norm` registers. Deriving from it keeps buffers, initial
# values and errors PyTorch's own, and lets code that looks for it find ours.
from torch.nn.utils.parametrizations import _SpectralNorm as TorchSpectralNorm
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from gnfast.errors import InputError, UnsupportedError
from gnfast.interop.surroundings import saved_tensor_hooks
from gnfast.interop.wrapper import M
from gnfast.kernels.compiled import warn_uncompiled
from gnfast.kernels.layout import accumulator
from gnfast.kernels.spectral import spectral_norm_iterate
from gnfast.kernels.spectral.plain import others
from gnfast.spectral.division import Divide

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Prepared(NamedTuple):
    """A layer's W̄ from the hook of a model whose forward is running."""

    root: nn.Module
    weight: Tensor
    version: int | None
    hooks: Any
    normalized: Tensor

    def serves(self, weight: Tensor) -> bool:
        """Whether W̄ is of this weight (a replica has others) as it is now, and carries the gradient that is wanted."""
        wants_grad = torch.is_grad_enabled() and weight.requires_grad
        same = self.weight is weight and (self.version, self.hooks) == _moment(weight)
        return same and (self.normalized.requires_grad or not wants_grad)


def _moment(weight: Tensor) -> tuple[int | None, Any]:
    """The weight's version and the hooks on saved tensors: a checkpoint's must see the division that it repeats."""
    if torch.compiler.is_compiling():
        return None, None
    return None if weight.is_inference() else weight._version, saved_tensor_hooks()


class SpectralNorm(TorchSpectralNorm):
    """The parametrization weight ↦ coeff · γ · weight / σ, its stable rank limited; `spectral_norm` registers it.

    Buffers `_u` (rows,) and `_v` (columns,) in the weight's dtype, none for a weight of one dimension; with
    `learn_scale` also a parameter `gamma` (), 1 at first.
    """

    def __init__(
        self,
        weight: Tensor,
        n_power_iterations: int,
        dim: int,
        eps: float,
        coeff: float,
        learn_scale: bool,
        stable_rank: float,
    ) -> None:
        super().__init__(weight, n_power_iterations, dim, eps)
        self.coeff, self.stable_rank = coeff, stable_rank
        self.gamma = nn.Parameter(weight.new_ones(())) if learn_scale else None
        self.prepared: Prepared | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """W̄ of the weight's shape and dtype. In training, u and v advance by `n_power_iterations` first."""
        prepared, self.prepared = self.prepared, None
        if prepared is not None and not self.training:
            _refuse(prepared.root, self)
        if prepared is not None and prepared.serves(weight):
            normalized = prepared.normalized
        else:
            # A prepared layer was iterated for this read already, even if its W̄ is of no use here.
            iterate = self.training and prepared is None
            if fusable(weight):
                (normalized,) = normalize([self], [weight], iterate)
            else:
                normalized = self._plain(weight, iterate)
        if self.stable_rank and _full_rank(normalized, self.dim) > 1:
            normalized = limit_stable_rank(normalized, self._u, self._v, self.dim, self.stable_rank)
        return normalized if self.gamma is None else self.gamma * normalized

    def _plain(self, weight: Tensor, iterate: bool) -> Tensor:
        """PyTorch's own operations: for complex weights, tensor subclasses and `torch.func`."""
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps) * self.coeff
        matrix = self._reshape_weight_to_matrix(weight)
        if iterate:
            self._power_method(matrix, self.n_power_iterations)
        # Cloned, for the next forward changes them before this one's backward.
        sigma = torch.vdot(self._u.clone(), torch.mv(matrix, self._v.clone()))
        return weight / sigma * self.coeff

    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        # On the meta device there are no numbers to iterate, and PyTorch takes a millisecond for each of 15 iterations.
        if not weight_mat.is_meta:
            super()._power_method(weight_mat, n_power_iterations)

    def __getstate__(self) -> dict[str, Any]:
        # For copies: what a forward is about to use is not theirs.
        return self.__dict__ | {"prepared": None}

    def extra_repr(self) -> str:
        options = {"coeff": (self.coeff, 1.0), "dim": (self.dim, 0), "eps": (self.eps, 1e-12)}
        options["stable_rank"] = self.stable_rank, 0.0
        return ", ".join(f"{name}={value:g}" for name, (value, default) in options.items() if value != default)


def spectral_norm(
    module: M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    coeff: float = 1.0,
    learn_scale: bool = False,
    stable_rank: float = 0.0,
) -> M:
    """Spectral normalisation of one parameter, as `torch.nn.utils.parametrizations.spectral_norm` does it, but fused.

    Checkpoints of PyTorch's load, and the other way round; those of the older `torch.nn.utils.spectral_norm`, with keys
    `weight_orig`, `weight_u` and `weight_v`, load as well.

    Args:
        module: the layer.
        name: its parameter: float32, float64, bfloat16 or float16 in any memory format; other dtypes run as PyTorch's.
        n_power_iterations: power iterations per training forward.
        eps: lower bound of the norms that divide.
        dim: the dimension of the matrix's rows; None: 1 for transposed convolutions, 0 otherwise.
        coeff: k_SN, the spectral norm that the weight gets.
        learn_scale: multiply by a learned scalar γ, 1 at first (the reparametrisation of the SN-GAN paper).
        stable_rank: bound of the normalised weight's stable rank, as a share of its full rank; 0 for none
            (`limit_stable_rank`). Where the full rank is 1 there is nothing to bound.

    Returns:
        the module, changed in place. Its weight is differentiable any number of times, with u and v constant.

    Raises:
        IndexError: `dim` is out of range.
        ValueError: the module has no such tensor, or `n_power_iterations` is not positive.
        InputError: the tensor is neither floating point nor complex, has no values yet, or is spectrally normalised
            already; `coeff` is not positive and finite; `stable_rank` is negative, not finite, for complex weights, or
            bounds the stable rank of one by 1 or less.
    """
    if dim is None:
        dim = int(isinstance(module, TRANSPOSED))
    require_applicable(module, name, coeff, "module", stable_rank, dim)
    options = n_power_iterations, dim, eps, float(coeff), learn_scale, float(stable_rank)
    norm = SpectralNorm(getattr(module, name), *options)
    register_parametrization(module, name, norm)
    module.register_load_state_dict_pre_hook(LegacyKeys(name))
    return module


def norms_of(layer: nn.Module) -> Iterator[tuple[str, Tensor, TorchSpectralNorm]]:
    """Name, original and parametrization of the parameters whose first parametrization is spectral normalisation."""
    for name, parametrizations in (layer._modules.get("parametrizations") or {}).items():
        norm = parametrizations._modules.get("0")
        if isinstance(norm, TorchSpectralNorm) and parametrizations.is_tensor:
            yield name, parametrizations.original, norm


def require_applicable(layer: nn.Module, name: str, coeff: float, argument: str, stable_rank: float, dim: int) -> None:
    """Raises what `spectral_norm` raises for a layer, a coefficient or a share that it cannot take."""
    weight = getattr(layer, name, None) if not is_parametrized(layer, name) else layer.parametrizations[name].original
    if name not in layer._parameters and (other := _computed_by(layer, name)):
        built = "build the network without it, and load its state_dict after this: the old keys fit"
        advice = built if other.endswith(".SpectralNorm") else "undo that first"
        raise InputError(f"{argument}: {name!r} is computed by {other}; {advice}")
    if not isinstance(weight, Tensor):
        raise ValueError(f"{argument}: {type(layer).__name__} has no parameter or buffer named {name!r}")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InputError(f"{argument}: {name!r} has no values yet; run the network once first")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise InputError(f"{argument}: {name!r} is {weight.dtype}, wanted a floating-point or complex dtype")
    if any(tensor_name == name for tensor_name, _, _ in norms_of(layer)):
        raise InputError(f"{argument}: {name!r} is spectrally normalised already")
    if not (coeff > 0 and math.isfinite(coeff)):
        raise InputError(f"coeff: got {coeff}, wanted a positive finite number")
    if not (stable_rank >= 0 and math.isfinite(stable_rank)) or (stable_rank and weight.is_complex()):
        raise InputError(f"stable_rank: got {stable_rank}, wanted 0 or, for real weights, a positive finite number")
    if stable_rank and stable_rank * (rank := _full_rank(weight, dim)) <= 1 < rank:
        # What is left at 1 is uvᵀ, which has no gradient.
        raise InputError(f"stable_rank: got {stable_rank} for {argument} {name!r} of rank {rank}, wanted over 1/{rank}")


def _computed_by(layer: nn.Module, name: str) -> str:
    """What computes a weight before each forward, as PyTorch's older normalisations do; empty for nothing."""
    hooks = (type(hook) for hook in layer._forward_pre_hooks.values() if getattr(hook, "name", None) == name)
    return next((f"{hook.__module__}.{hook.__name__}" for hook in hooks), "")


@dataclass(frozen=True)
class LegacyKeys:
    """Load hook: what `torch.nn.utils.spectral_norm` saved, under the names that parametrizations have."""

    name: str

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        new = f"{prefix}parametrizations.{self.name}"
        for old, now in (("_orig", ".original"), ("_u", ".0._u"), ("_v", ".0._v")):
            key = f"{prefix}{self.name}{old}"
            if key in state:
                state[new + now] = state.pop(key)


def normalize(norms: Sequence[SpectralNorm], weights: Sequence[Tensor], iterate: bool) -> tuple[Tensor, ...]:
    """W̄ of several weights of one dtype and device, all with power iterations or all without."""
    left, right = [norm._u for norm in norms], [norm._v for norm in norms]
    dims = [norm.dim for norm in norms]
    iterations = [norm.n_power_iterations if iterate else 0 for norm in norms]
    with torch.no_grad():
        detached = [weight.detach() for weight in weights]
        vectors, sigma = spectral_norm_iterate(detached, left, right, dims, iterations, [norm.eps for norm in norms])
        if iterate and not torch.compiler.is_compiling():
            # Operators outside PyTorch do not count their writes, and a graph that saved u must notice.
            torch.autograd.graph.increment_version([x for x in left + right if not x.is_inference()])
    return Divide.apply(dims, [norm.coeff for norm in norms], vectors, sigma, *weights)


def _full_rank(weight: Tensor, dim: int) -> int:
    """The number of singular values of a weight as a matrix."""
    return min(weight.shape[dim], weight.numel() // max(weight.shape[dim], 1))


def limit_stable_rank(weight: Tensor, u: Tensor, v: Tensor, dim: int, share: float) -> Tensor:
    """Stable rank normalisation (Sanyal et al., ICLR 2020, SRN): ‖W‖²_F / σ² at most r = share · min(rows, columns).

    With S₁ = (uᵀWv) uvᵀ and S₂ = W − S₁ the result is S₁ + γS₂, γ = min(1, √(r − 1) ‖S₁‖_F / ‖S₂‖_F): the spectral norm
    stays. γ is constant for differentiation, and so are u and v.

    Args:
        weight: at least 2 dimensions.
        u, v: (rows,), (columns,) its first singular vectors, or estimates of norm 1.
        dim: which dimension is the matrix's rows.
        share: so large that r > 1.
    """
    wide = weight.to(accumulator(weight.dtype))
    # A product of its own, for the next forward changes u and v before this one's backward.
    outer = torch.outer(u.to(wide), v.to(wide)).unflatten(1, others(weight.shape, dim)).movedim(0, dim)
    first = (wide * outer).sum() * outer
    rest = wide - first
    with torch.no_grad():
        wanted = (share * _full_rank(weight, dim) - 1) ** 0.5 * first.norm()
        factor = (wanted / rest.norm().clamp_min(torch.finfo(rest.dtype).tiny)).clamp(max=1)
    return (first + factor * rest).to(weight.dtype)


def prepare(root: nn.Module, norms: Sequence[SpectralNorm], weights: Sequence[Tensor]) -> None:
    """`normalize` with power iterations, for the next read of each weight in a forward of `root`."""
    if not torch.compiler.is_compiling():
        warn_uncompiled(weights[0].device.type)
    for norm, weight, normalized in zip(norms, weights, normalize(norms, weights, True), strict=True):
        norm.prepared = Prepared(root, weight, *_moment(weight), normalized)


def discard(root: nn.Module) -> None:
    """Drops what was prepared for a forward of `root` and not used."""
    for layer in root.modules():
        for _, _, norm in norms_of(layer):
            if isinstance(norm, SpectralNorm) and norm.prepared is not None and norm.prepared.root is root:
                norm.prepared = None


def _refuse(root: nn.Module, norm: SpectralNorm) -> None:
    """Raises for a layer that was prepared for training and is in eval mode now. What u and v were is not kept."""
    discard(root)
    names = (name for name, layer in root.named_modules() if any(found is norm for _, _, found in norms_of(layer)))
    raise UnsupportedError(
        f"spectral_norm_: {next(names, '') or 'a layer'} was switched to eval mode in the forward of "
        f"{type(root).__name__}, after its power iteration: switch before the forward, or leave the layer out with "
        "filter and use spectral_norm on it"
    )


def fusable(weight: Tensor) -> bool:
    """Whether the kernels take it: the others are complex, empty, of one dimension, or under `torch.func`."""
    fits = weight.ndim > 1 and weight.numel() > 0 and weight.dtype in _FUSED_DTYPES
    if torch.compiler.is_compiling():
        return fits
    return fits and type(weight) in (Tensor, nn.Parameter) and not torch._C._are_functorch_transforms_active()

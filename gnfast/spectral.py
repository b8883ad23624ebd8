"""Spectral normalisation: W̄ = k·W/σ(W), for one layer or for all layers of a model in one fused call.

`spectral_norm` is `torch.nn.utils.parametrizations.spectral_norm` with the same buffers, keys, order of updates and
initial values, on the kernels of `gnfast.kernels.spectral`. `spectral_norm_` puts it on a whole model; a hook on the
model then normalises all weights at once before each training forward, and each layer finds its own ready.
Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018; docs/spectral.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

# The class that `torch.nn.utils.parametrizations.spectral_norm` registers. Deriving from it keeps buffers, initial
# values and errors PyTorch's own, and lets code that looks for it find ours.
from torch.nn.utils.parametrizations import _SpectralNorm as TorchSpectralNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, register_parametrization

from gnfast.errors import InputError, UnsupportedError
from gnfast.kernels.spectral import plain, spectral_norm_backward, spectral_norm_iterate, spectral_norm_scale
from gnfast.kernels.spectral.plain import as_matrix

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.Embedding),
)
"""What `spectral_norm_` wraps."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _Prepared(NamedTuple):
    """A layer's W̄ from the hook of a model whose forward is running."""

    root: nn.Module
    weight: Tensor
    version: int | None
    saving: Any
    normalized: Tensor


class SpectralNorm(TorchSpectralNorm):
    """The parametrization weight ↦ coeff · γ · weight / σ; `spectral_norm` registers it.

    Buffers `_u` (rows,) and `_v` (columns,) in the weight's dtype, none for a weight of one dimension; with
    `learn_scale` also a parameter `gamma` (), 1 at first.
    """

    def __init__(
        self, weight: Tensor, n_power_iterations: int, dim: int, eps: float, coeff: float, learn_scale: bool
    ) -> None:
        super().__init__(weight, n_power_iterations, dim, eps)
        self.coeff = coeff
        self.gamma = nn.Parameter(weight.new_ones(())) if learn_scale else None
        self._prepared: _Prepared | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """W̄ of the weight's shape and dtype. In training, u and v advance by `n_power_iterations` first."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None and not self.training:
            _refuse(prepared.root, self)
        if prepared is not None and _still_good(prepared, weight):
            normalized = prepared.normalized
        else:
            # A prepared layer was iterated for this read already, even if its W̄ is of no use here.
            iterate = self.training and prepared is None
            if _fusable(weight):
                (normalized,) = _normalize([self], [weight], iterate)
            else:
                normalized = self._plain(weight, iterate)
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
        return self.__dict__ | {"_prepared": None}

    def extra_repr(self) -> str:
        options = {"coeff": (self.coeff, 1.0), "dim": (self.dim, 0), "eps": (self.eps, 1e-12)}
        return ", ".join(f"{name}={value:g}" for name, (value, default) in options.items() if value != default)


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    coeff: float = 1.0,
    learn_scale: bool = False,
) -> nn.Module:
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

    Returns:
        the module, changed in place. Its weight is differentiable any number of times, with u and v constant.

    Raises:
        IndexError: `dim` is out of range.
        ValueError: the module has no such tensor, or `n_power_iterations` is not positive.
        InputError: the tensor is neither floating point nor complex, has no values yet, or is spectrally normalised
            already; `coeff` is not positive and finite.
    """
    _check_applicable(module, name, coeff, "module")
    if dim is None:
        dim = int(isinstance(module, _TRANSPOSED))
    norm = SpectralNorm(getattr(module, name), n_power_iterations, dim, eps, float(coeff), learn_scale)
    register_parametrization(module, name, norm)
    module.register_load_state_dict_pre_hook(_LegacyKeys(name))
    return module


def spectral_norm_(
    model: nn.Module,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    coeff: float = 1.0,
    learn_scale: bool = False,
    filter: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """`spectral_norm` on the weight of every convolution, transposed convolution, linear and embedding of a model.

    Before each forward of `model`, one fused call iterates and normalises all its weights that are in training mode,
    those of layers that the forward does not use included. A layer takes its W̄ once per forward; further reads of the
    weight, and reads outside a forward of `model`, act as PyTorch's: each iterates in training mode. Within a forward,
    a write to an original weight that PyTorch does not count (by `.data` or NumPy), and any write to `_u` or `_v`, is
    not seen by a layer that has yet to take its W̄.

    Args:
        model: changed in place; the module whose forward is called, not one of its parts. For a `GradientNorm`, the
            critic inside it.
        n_power_iterations, eps, coeff, learn_scale: as for `spectral_norm`.
        filter: called with a layer's name and the layer; False leaves it alone.

    Returns:
        the model.

    Raises:
        InputError: nothing to normalise, or a layer for which `spectral_norm` raises it; the model is then unchanged.
        ValueError: `n_power_iterations` is not positive.
        UnsupportedError: in the forward, where a layer was in training mode when it began and was switched to eval mode
            before it took its weight: u and v have moved, and in eval mode they must not.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, LAYERS) and (filter is None or filter(name, layer))
    }
    if not layers:
        raise InputError(
            f"model: {type(model).__name__} has no convolution, linear or embedding to normalise"
            + ("" if filter is None else " that filter accepts")
        )
    for name, layer in layers.items():
        _check_applicable(layer, "weight", coeff, name or "model")
    for layer in layers.values():
        spectral_norm(layer, "weight", n_power_iterations, eps, None, coeff, learn_scale)
    if _prepare not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_prepare)
        model.register_forward_hook(_discard, always_call=True)
    return model


def remove_spectral_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    """Undoes `spectral_norm` or `spectral_norm_`: every layer keeps the weight that eval mode would use.

    Unlike PyTorch's `remove_parametrizations`, it makes no further power iteration.

    Args:
        module: a layer or a model; all submodules are searched.
        name: the parameter.

    Returns:
        the module, changed in place; the parameters are the same objects as before.

    Raises:
        InputError: nothing under `module` is normalised by gnfast, or something else is stacked on that parameter.
    """
    found = [
        (layer_name, layer, norm)
        for layer_name, layer in module.named_modules()
        for tensor_name, _, norm in _norms_of(layer)
        if tensor_name == name and isinstance(norm, SpectralNorm)
    ]
    if not found:
        raise InputError(f"module: spectral_norm of {name!r} was not found in {type(module).__name__}")
    for layer_name, layer, _ in found:
        if len(layer.parametrizations[name]) > 1:
            raise InputError(f"module: {layer_name or name!r} has other parametrizations on {name!r} as well")
    for _, layer, norm in found:
        norm.eval()
        norm._prepared = None
        parametrize.remove_parametrizations(layer, name)
        _drop(layer._load_state_dict_pre_hooks, lambda hook: getattr(hook, "hook", None) == _LegacyKeys(name))
    for root in module.modules():
        _drop(root._forward_pre_hooks, lambda hook: hook is _prepare)
        for key in _drop(root._forward_hooks, lambda hook: hook is _discard):
            root._forward_hooks_always_called.pop(key, None)
    return module


@torch.no_grad()
def spectral_values(model: nn.Module, all_values: bool = False) -> dict[str, Tensor]:
    """The spectral norm of each weight of a model, before normalisation.

    Args:
        model: its convolutions, linears and embeddings, and whatever else is spectrally normalised (by PyTorch's
            parametrization as well) are listed. Nothing is changed.
        all_values: all singular values instead of the largest alone.

    Returns:
        name of the weight -> σ (): the estimate uᵀWv by which the layer divides, where it is normalised, and the exact
        value otherwise. With `all_values`: the exact singular values (min(rows, columns),), largest first. Float32, or
        float64 for float64 weights.
    """
    values = {}
    for name, weight, dim, norm in _weights(model):
        if weight.ndim == 1:
            sigma = weight.norm()
            values[name] = sigma[None] if all_values else sigma
            continue
        matrix = as_matrix(weight if weight.dtype in (torch.float64, torch.complex128) else _widened(weight), dim)
        if all_values:
            values[name] = torch.linalg.svdvals(matrix)
        elif norm is None:
            values[name] = torch.linalg.matrix_norm(matrix, 2)
        else:
            values[name] = torch.vdot(norm._u.to(matrix.dtype), matrix @ norm._v.to(matrix.dtype))
    return values


def _widened(weight: Tensor) -> Tensor:
    return weight.to(torch.complex64 if weight.is_complex() else torch.float32)


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor, int, TorchSpectralNorm | None]]:
    """Name, original weight, dim of the rows and parametrization of whatever is or could be normalised."""
    for layer_name, layer in model.named_modules():
        prefix = f"{layer_name}." if layer_name else ""
        norms = list(_norms_of(layer))
        for tensor_name, parametrizations, norm in norms:
            yield prefix + tensor_name, parametrizations.original, norm.dim, norm
        if isinstance(layer, LAYERS) and all(tensor_name != "weight" for tensor_name, _, _ in norms):
            yield f"{prefix}weight", layer.weight, int(isinstance(layer, _TRANSPOSED)), None


def _norms_of(layer: nn.Module) -> Iterator[tuple[str, ParametrizationList, TorchSpectralNorm]]:
    """The parameters of a layer whose first parametrization is spectral normalisation."""
    for tensor_name, parametrizations in (layer._modules.get("parametrizations") or {}).items():
        norm = parametrizations._modules.get("0")
        if isinstance(norm, TorchSpectralNorm) and parametrizations.is_tensor:
            yield tensor_name, parametrizations, norm


def _check_applicable(layer: nn.Module, name: str, coeff: float, argument: str) -> None:
    weight = getattr(layer, name, None) if not is_parametrized(layer, name) else layer.parametrizations[name].original
    if not isinstance(weight, Tensor):
        raise ValueError(f"{argument}: {type(layer).__name__} has no parameter or buffer named {name!r}")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise InputError(f"{argument}: {name!r} has no values yet; run the network once first")
    if not (weight.is_floating_point() or weight.is_complex()):
        raise InputError(f"{argument}: {name!r} is {weight.dtype}, wanted a floating-point or complex dtype")
    if any(tensor_name == name for tensor_name, _, _ in _norms_of(layer)):
        raise InputError(f"{argument}: {name!r} is spectrally normalised already")
    if not (coeff > 0 and math.isfinite(coeff)):
        raise InputError(f"coeff: got {coeff}, wanted a positive finite number")


def _drop(hooks: dict[int, Any], unwanted: Callable[[Any], bool]) -> list[int]:
    keys = [key for key, hook in hooks.items() if unwanted(hook)]
    for key in keys:
        del hooks[key]
    return keys


@dataclass(frozen=True)
class _LegacyKeys:
    """Load hook: what `torch.nn.utils.spectral_norm` saved, under the names that parametrizations have."""

    name: str

    def __call__(self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        new = f"{prefix}parametrizations.{self.name}"
        for old, now in (("_orig", ".original"), ("_u", ".0._u"), ("_v", ".0._v")):
            key = f"{prefix}{self.name}{old}"
            if key in state:
                state[new + now] = state.pop(key)


# The hooks of a model.


def _prepare(root: nn.Module, args: Any) -> None:
    """Forward pre-hook: one power iteration and W̄ of every layer in training mode, for its next read."""
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[SpectralNorm, Tensor]]] = {}
    for layer in root.modules():
        for name, parametrizations, norm in _norms_of(layer):
            weight = parametrizations.original
            if not isinstance(norm, SpectralNorm):
                continue
            if norm._prepared is not None and norm._prepared.root is root:
                # Ctrl-C in a forward leaves it behind.
                norm._prepared = None
            if not (norm.training and _fusable(weight)):
                continue
            if parametrize._cache_enabled and (id(layer), name) in parametrize._cache:
                continue
            # An outer model's forward has prepared it.
            if norm._prepared is not None:
                continue
            groups.setdefault((weight.dtype, weight.device), []).append((norm, weight))
    for layers in groups.values():
        norms, weights = zip(*layers, strict=True)
        for norm, weight, normalized in zip(norms, weights, _normalize(norms, weights, True), strict=True):
            norm._prepared = _Prepared(root, weight, _version(weight), _saving(), normalized)


def _discard(root: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: drops what the forward did not use."""
    for layer in root.modules():
        for _, _, norm in _norms_of(layer):
            if isinstance(norm, SpectralNorm) and norm._prepared is not None and norm._prepared.root is root:
                norm._prepared = None


def _refuse(root: nn.Module, norm: SpectralNorm) -> None:
    """Raises for a layer that was prepared for training and is in eval mode now. What u and v were is not kept."""
    _discard(root, (), None)
    names = (name for name, layer in root.named_modules() if any(found is norm for _, _, found in _norms_of(layer)))
    raise UnsupportedError(
        f"spectral_norm_: {next(names, '') or 'a layer'} was switched to eval mode in the forward of "
        f"{type(root).__name__}, after its power iteration: switch before the forward, or leave the layer out with "
        "filter and use spectral_norm on it"
    )


def _still_good(prepared: _Prepared, weight: Tensor) -> bool:
    """Whether W̄ belongs to this weight (a replica has others) as it is now, and carries the gradient that is wanted."""
    wants_grad = torch.is_grad_enabled() and weight.requires_grad
    same = prepared.weight is weight and prepared.version == _version(weight) and prepared.saving == _saving()
    return same and (prepared.normalized.requires_grad or not wants_grad)


def _saving() -> Any:
    """The hooks on tensors saved for backward. A checkpoint sets its own, and must see the division that it repeats."""
    return None if torch.compiler.is_compiling() else torch._C._autograd._top_saved_tensors_default_hooks(False)


def _version(weight: Tensor) -> int | None:
    return None if torch.compiler.is_compiling() or weight.is_inference() else weight._version


def _fusable(weight: Tensor) -> bool:
    if torch.compiler.is_compiling():
        transformed = False
    else:
        transformed = type(weight) not in (Tensor, nn.Parameter) or torch._C._are_functorch_transforms_active()
    return weight.ndim > 1 and weight.numel() > 0 and weight.dtype in _FUSED_DTYPES and not transformed


def _normalize(norms: Sequence[SpectralNorm], weights: Sequence[Tensor], iterate: bool) -> tuple[Tensor, ...]:
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
    return _Divide.apply(dims, [norm.coeff for norm in norms], vectors, sigma, *weights)


class _Divide(torch.autograd.Function):
    """(σ, W₁, W₂, ...) ↦ (W̄₁, W̄₂, ...), with σ = uᵀWv differentiated and u, v constant."""

    @staticmethod
    def forward(
        ctx, dims: list[int], coeffs: list[float], vectors: Tensor, sigma: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dims, ctx.coeffs = dims, coeffs
        ctx.save_for_backward(vectors, sigma, *weights)
        return tuple(spectral_norm_scale(weights, sigma, coeffs))

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        vectors, sigma, *weights = ctx.saved_tensors
        needed = zip(grads, ctx.needs_input_grad[4:], strict=True)
        used = [i for i, (grad, needs) in enumerate(needed) if needs and grad is not None]
        results: list[Tensor | None] = [None] * len(weights)
        if not used:
            return None, None, None, None, *results
        if len(used) < len(weights):
            parts = vectors.split([n for w, dim in zip(weights, ctx.dims, strict=True) for n in _sides(w, dim)])
            vectors = torch.cat([parts[2 * i + side] for i in used for side in (0, 1)])
            # Not `sigma[used]`, which would copy the list to the device and wait.
            sigma = torch.stack([sigma[i] for i in used])
        dims, coeffs = [ctx.dims[i] for i in used], [ctx.coeffs[i] for i in used]
        # An embedding may give a sparse gradient; that of σ is dense.
        grads, weights = [grads[i].to_dense() for i in used], [weights[i] for i in used]
        if torch.is_grad_enabled():
            # To be differentiated again: σ has to be a function of W.
            sigma = _sigma(weights, vectors, dims)
            used_results = plain.backward(grads, weights, vectors, sigma, dims, coeffs)
        else:
            used_results = spectral_norm_backward(grads, weights, vectors, sigma, dims, coeffs)
        for i, result in zip(used, used_results, strict=True):
            results[i] = result
        return None, None, None, None, *results


def _sides(weight: Tensor, dim: int) -> tuple[int, int]:
    rows = weight.shape[dim]
    return rows, weight.numel() // rows


def _sigma(weights: Sequence[Tensor], vectors: Tensor, dims: Sequence[int]) -> Tensor:
    """uᵀWv for every weight, differentiable."""
    parts = iter(vectors.split([n for w, dim in zip(weights, dims, strict=True) for n in _sides(w, dim)]))
    matrices = (as_matrix(w, dim).to(vectors.dtype) for w, dim in zip(weights, dims, strict=True))
    return torch.stack([torch.dot(next(parts), matrix @ next(parts)) for matrix in matrices])

"""Spectral normalisation of a model: all layers in one fused call, taken off again, and what their norms are."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gnfast.errors import InputError
from gnfast.interop.wrapper import M
from gnfast.kernels.spectral.plain import as_matrix
from gnfast.spectral.layer import (
    TRANSPOSED,
    LegacyKeys,
    SpectralNorm,
    TorchSpectralNorm,
    discard,
    fusable,
    norms_of,
    prepare,
    require_applicable,
    spectral_norm,
)

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.Embedding),
)
"""What `spectral_norm_` wraps."""


def spectral_norm_(
    model: M,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    coeff: float = 1.0,
    learn_scale: bool = False,
    filter: Callable[[str, nn.Module], bool] | None = None,
    stable_rank: float = 0.0,
) -> M:
    """`spectral_norm` on the weight of every convolution, transposed convolution, linear and embedding of a model.

    Before each forward of `model`, one fused call iterates and normalises all its weights that are in training mode,
    those of layers that the forward does not use included. A layer takes its W̄ once per forward; further reads of the
    weight, and reads outside a forward of `model`, act as PyTorch's: each iterates in training mode. Within a forward,
    a write to an original weight that PyTorch does not count (by `.data` or NumPy), and any write to `_u` or `_v`, is
    not seen by a layer that has yet to take its W̄.

    Args:
        model: changed in place; the module whose forward is called, not one of its parts. For a `GradientNorm`, the
            critic inside it.
        n_power_iterations, eps, coeff, learn_scale, stable_rank: as for `spectral_norm`.
        filter: called with a layer's name and the layer; False leaves it alone.

    Returns:
        the model.

    Raises:
        InputError: nothing to normalise, or a layer for which `spectral_norm` raises it; the model is then unchanged.
        ValueError: `n_power_iterations` is not positive.
        UnsupportedError: in the forward, where a layer was in training mode when it began and was switched to eval mode
            before it took its weight: u and v have moved, and in eval mode they must not.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: got a {type(model).__name__}, wanted a torch.nn.Module")
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
        rows = int(isinstance(layer, TRANSPOSED))
        require_applicable(layer, "weight", coeff, name or "model", stable_rank, rows)
    for layer in layers.values():
        spectral_norm(layer, "weight", n_power_iterations, eps, None, coeff, learn_scale, stable_rank)
    if _prepare not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_prepare)
        model.register_forward_hook(_discard, always_call=True)
    return model


def remove_spectral_norm(module: M, name: str = "weight") -> M:
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
        for tensor_name, _, norm in norms_of(layer)
        if tensor_name == name and isinstance(norm, SpectralNorm)
    ]
    if not found:
        raise InputError(f"module: spectral_norm of {name!r} was not found in {type(module).__name__}")
    for layer_name, layer, _ in found:
        if len(layer.parametrizations[name]) > 1:
            raise InputError(f"module: {layer_name or name!r} has other parametrizations on {name!r} as well")
    for _, layer, norm in found:
        norm.eval()
        norm.prepared = None
        parametrize.remove_parametrizations(layer, name)
        _drop(layer._load_state_dict_pre_hooks, lambda hook: getattr(hook, "hook", None) == LegacyKeys(name))
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
        matrix = as_matrix(weight.to(torch.promote_types(weight.dtype, torch.float32)), dim)
        if all_values:
            values[name] = torch.linalg.svdvals(matrix)
        elif norm is None:
            values[name] = torch.linalg.matrix_norm(matrix, 2)
        else:
            values[name] = torch.vdot(norm._u.to(matrix.dtype), matrix @ norm._v.to(matrix.dtype))
    return values


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor, int, TorchSpectralNorm | None]]:
    """Name, original weight, dim of the rows and parametrization of whatever is or could be normalised."""
    for layer_name, layer in model.named_modules():
        prefix = f"{layer_name}." if layer_name else ""
        norms: dict[str, tuple[Tensor, int, TorchSpectralNorm | None]]
        norms = {name: (weight, norm.dim, norm) for name, weight, norm in norms_of(layer)}
        if isinstance(layer, LAYERS) and "weight" not in norms:
            norms["weight"] = layer.weight, int(isinstance(layer, TRANSPOSED)), None
        for name, entry in norms.items():
            yield prefix + name, *entry


def _drop(hooks: dict[int, Any], unwanted: Callable[[Any], bool]) -> list[int]:
    keys = [key for key, hook in hooks.items() if unwanted(hook)]
    for key in keys:
        del hooks[key]
    return keys


def _prepare(root: nn.Module, args: Any) -> None:
    """Forward pre-hook: one power iteration and W̄ of every layer in training mode, for its next read."""
    # Ctrl-C in a forward leaves them behind.
    discard(root)
    groups: defaultdict[Any, list[tuple[SpectralNorm, Tensor]]] = defaultdict(list)
    for layer in root.modules():
        for name, weight, norm in norms_of(layer):
            cached = parametrize._cache_enabled and (id(layer), name) in parametrize._cache
            if not isinstance(norm, SpectralNorm) or cached or not (norm.training and fusable(weight)):
                continue
            # Else an outer model's forward has prepared it.
            if norm.prepared is None:
                groups[weight.dtype, weight.device].append((norm, weight))
    for layers in groups.values():
        prepare(root, *zip(*layers, strict=True))


def _discard(root: nn.Module, args: Any, output: Any) -> None:
    """Forward hook: drops what the forward did not use."""
    discard(root)

"""Spectral normalisation: W̄ = k·W/σ(W), for one layer or for all layers of a model in one fused call.

`spectral_norm` is `torch.nn.utils.parametrizations.spectral_norm` with the same buffers, keys, order of updates and
initial values, on the kernels of `gnfast.kernels.spectral`. `spectral_norm_` puts it on a whole model; a hook on the
model then normalises all weights at once before each training forward, and each layer finds its own ready.
Source: Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018; docs/spectral.md.
"""

from gnfast.spectral.layer import SpectralNorm, spectral_norm
from gnfast.spectral.model import LAYERS, remove_spectral_norm, spectral_norm_, spectral_values

__all__ = ["LAYERS", "SpectralNorm", "remove_spectral_norm", "spectral_norm", "spectral_norm_", "spectral_values"]

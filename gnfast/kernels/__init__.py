"""Fused operations, a folder each, and the choice between their implementations."""

from gnfast.kernels.backend import backends, prepare
from gnfast.kernels.build_info import build_info
from gnfast.kernels.sign_bits import leaky_relu_mask, leaky_relu_pack
from gnfast.kernels.spectral import spectral_norm_backward, spectral_norm_iterate, spectral_norm_scale

prepare()

__all__ = [
    "backends",
    "build_info",
    "leaky_relu_mask",
    "leaky_relu_pack",
    "spectral_norm_backward",
    "spectral_norm_iterate",
    "spectral_norm_scale",
]

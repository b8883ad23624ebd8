"""Gradient-normalised critics for GANs, exact and without double backward."""

from gnfast import reference
from gnfast.errors import FallbackWarning, InputError, UnsupportedError
from gnfast.function import normalize_gradient, value_and_grad_norm, value_and_input_grad
from gnfast.module import GradientNorm
from gnfast.plan import Plan, trace
from gnfast.spectral import remove_spectral_norm, spectral_norm, spectral_norm_, spectral_values

__version__ = "0.1.0"

__all__ = [
    "FallbackWarning",
    "GradientNorm",
    "InputError",
    "Plan",
    "UnsupportedError",
    "normalize_gradient",
    "reference",
    "remove_spectral_norm",
    "spectral_norm",
    "spectral_norm_",
    "spectral_values",
    "trace",
    "value_and_grad_norm",
    "value_and_input_grad",
]

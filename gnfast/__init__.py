"""Gradient-normalised critics for GANs, exact and without double backward."""

from gnfast import heads, penalties, reference
from gnfast.captured import CapturedStep, CaptureError
from gnfast.errors import FallbackWarning, InputError, UnsupportedError
from gnfast.function import normalize_gradient, value_and_grad_norm, value_and_input_grad
from gnfast.grouped import grouped_batch_norm
from gnfast.heads import Head
from gnfast.memory import memory_use, release_memory, reuse_memory
from gnfast.module import GradientNorm
from gnfast.plan import Plan, trace
from gnfast.rescale import rescale_
from gnfast.rewriting import rewrite
from gnfast.spectral import remove_spectral_norm, spectral_norm, spectral_norm_, spectral_values

__version__ = "0.1.0"

__all__ = [
    "CaptureError",
    "CapturedStep",
    "FallbackWarning",
    "GradientNorm",
    "Head",
    "InputError",
    "Plan",
    "UnsupportedError",
    "grouped_batch_norm",
    "heads",
    "memory_use",
    "normalize_gradient",
    "penalties",
    "reference",
    "release_memory",
    "remove_spectral_norm",
    "rescale_",
    "reuse_memory",
    "rewrite",
    "spectral_norm",
    "spectral_norm_",
    "spectral_values",
    "trace",
    "value_and_grad_norm",
    "value_and_input_grad",
]

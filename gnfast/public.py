"""What `import gnfast` gives, all of which is imported when the first of it is asked for."""

from gnfast.engine import heads, penalties, reference
from gnfast.engine.explain import Explanation, explain
from gnfast.engine.functional import normalize_gradient, value_and_grad_norm, value_and_input_grad
from gnfast.engine.heads import Head
from gnfast.engine.module import GradientNorm
from gnfast.engine.rescale import rescale_
from gnfast.errors import FallbackWarning, InputError, UncompiledWarning, UnsupportedError
from gnfast.plan import Plan, trace
from gnfast.rewriting import rewrite
from gnfast.spectral import remove_spectral_norm, spectral_norm, spectral_norm_, spectral_values
from gnfast.steps.captured import CapturedStep, CaptureError
from gnfast.steps.grouped import grouped_batch_norm
from gnfast.steps.memory import memory_use, release_memory, reuse_memory

__all__ = [
    "CaptureError",
    "CapturedStep",
    "Explanation",
    "FallbackWarning",
    "GradientNorm",
    "Head",
    "InputError",
    "Plan",
    "UncompiledWarning",
    "UnsupportedError",
    "explain",
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

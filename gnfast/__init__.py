"""Gradient-normalised critics for GANs, exact and without double backward."""

import importlib
from typing import TYPE_CHECKING

from gnfast import start  # noqa: F401 - first: from here on Ctrl-C during the imports of a command is one line
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

__version__ = "0.1.0"

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

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Parts that are imported when they are asked for: they are large, or need the packages of `gnfast[train]`."""
        if name in ("data", "losses", "measure", "metrics", "models", "train"):
            return importlib.import_module(f"gnfast.{name}")
        raise AttributeError(f"module 'gnfast' has no attribute {name!r}")

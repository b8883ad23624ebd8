"""The training program of GN-GAN (Wu et al., ICCV 2021) and of the papers around it.

Read `step.py` first: Algorithm 1. Then `state.py`, what it works on, and `loop.py`, the program around it.

This side imports the library as a user would; it needs the packages of the extra `train`: `pip install
--no-build-isolation ".[train]"` in a checkout.
"""

import sys
from types import ModuleType

from gnfast.config.config import Config
from gnfast.config.presets import PRESETS, Preset
from gnfast.runs.checkpoint import RunError
from gnfast.train.loop import Outcome, train
from gnfast.train.ring import NonFiniteLossError

__all__ = ["PRESETS", "Config", "NonFiniteLossError", "Outcome", "Preset", "RunError", "train"]


class _Program(ModuleType):
    """This module, which can be called: `gnfast.train("digits")` is what people type."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Program

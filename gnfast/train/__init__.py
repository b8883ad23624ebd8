"""The training program: Algorithm 1 of GN-GAN (Wu et al., ICCV 2021). Read `state.py` first, then `loop.py`.

This side imports the library as a user would; it needs the packages of `pip install gnfast[train]`.
"""

from gnfast.config.config import Config
from gnfast.config.presets import PRESETS, Preset
from gnfast.runs.checkpoint import RunError
from gnfast.train.loop import Outcome, train
from gnfast.train.state import NonFiniteLossError

__all__ = ["PRESETS", "Config", "NonFiniteLossError", "Outcome", "Preset", "RunError", "train"]

"""Image data sets, prepared once and kept, endless shuffled batches of them, and augmentations."""

from gnfast.data.augment import Shifts, apply_shifts, draw_shifts, flip_and_translate
from gnfast.data.batches import Batch, Batches, ShuffledIndices, random_flip, to_float, to_uint8
from gnfast.data.dataset import DataError, DataWarning, ImageDataset, Request
from gnfast.data.order import StepOrder
from gnfast.data.registry import find, load, registered
from gnfast.data.source import Source

__all__ = [
    "Batch",
    "Batches",
    "DataError",
    "DataWarning",
    "ImageDataset",
    "Request",
    "Shifts",
    "ShuffledIndices",
    "Source",
    "StepOrder",
    "apply_shifts",
    "draw_shifts",
    "find",
    "flip_and_translate",
    "load",
    "random_flip",
    "registered",
    "to_float",
    "to_uint8",
]

"""Image data sets, prepared once and kept, endless shuffled batches of them, and augmentations."""

from gnfast.data.augment import Shifts, apply_shifts, augment, draw_shifts
from gnfast.data.batches import Batch, Batches, ShuffledIndices, random_flip, to_float, to_uint8
from gnfast.data.dataset import DataError, DataWarning, ImageDataset, Request
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
    "apply_shifts",
    "augment",
    "draw_shifts",
    "find",
    "load",
    "random_flip",
    "registered",
    "to_float",
    "to_uint8",
]

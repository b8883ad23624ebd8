"""Image data sets in memory, and endless shuffled batches of them."""

from gnfast.data.batches import Batches, ShuffledIndices, random_flip, to_float, to_uint8
from gnfast.data.dataset import DataError, DataWarning, ImageDataset
from gnfast.data.registry import load, registered

__all__ = [
    "Batches",
    "DataError",
    "DataWarning",
    "ImageDataset",
    "ShuffledIndices",
    "load",
    "random_flip",
    "registered",
    "to_float",
    "to_uint8",
]

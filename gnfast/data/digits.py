"""scikit-learn's handwritten digits: 1797 real images, 8x8, grey, within the package, so that no download is needed."""

import numpy as np
import torch
from PIL import Image

from gnfast.data.dataset import DataError, ImageDataset, Request
from gnfast.data.images import pack, prepare


def load_digits(request: Request) -> ImageDataset:
    """1797 handwritten digits, 8x8, grey; comes with scikit-learn, no download.

    The values 0..16 become 0..255. Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998),
    its test part.

    Raises:
        DataError: a split other than train is asked for, or scikit-learn is not there.
    """
    if request.split != "train":
        raise DataError(f"split must be 'train' for digits, got {request.split!r}")
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DataError("digits come with scikit-learn, which is not installed: pip install 'gnfast[train]'") from error
    source = load()
    pixels = np.rint(source.images * (255 / 16)).astype(np.uint8)
    arrays = [prepare(Image.fromarray(image), request.channels, request.resolution) for image in pixels]
    labels = torch.from_numpy(source.target.astype(np.int64))
    return ImageDataset("digits", pack(arrays, request.channels), labels, tuple("0123456789"))

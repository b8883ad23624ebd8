"""What a data set's pixels are like, in one pass over them, whatever its size."""

import torch
from torch import Tensor
from tqdm import tqdm

from gnfast.data.dataset import ImageDataset

_BYTES_AT_ONCE = 1 << 24


def channel_statistics(dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all pixels, on the scale 0..1: (C,) float64 each, exact."""
    images = dataset.images
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    blocks = images.split(max(1, _BYTES_AT_ONCE // images[0].nbytes))
    hidden = None if images.nbytes > 1 << 30 else True
    for block in tqdm(blocks, desc=f"statistics of {dataset.name}", disable=hidden):
        for channel, pixels in enumerate(block.unbind(1)):
            counts[channel] += pixels.flatten().bincount(minlength=256)
    weights = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    return mean, ((values - mean[:, None]).square() * weights).sum(1).sqrt()

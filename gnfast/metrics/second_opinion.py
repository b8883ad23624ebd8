"""The same scores of the same images by torch-fidelity, a code that others compare by."""

import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

LIBRARY = "torch-fidelity"
# Its subsets for KID have this size, and it refuses sets that are smaller.
_SUBSET = 1000
_SPLITS = 10
# What its results are called there and here, and the factor between them.
_NAMES = {
    "frechet_inception_distance": ("via_distance", 1),
    "inception_score_mean": ("via_is_mean", 1),
    "inception_score_std": ("via_is_std", 1),
    "kernel_inception_distance_mean": ("via_kid_mean", 1000),
    "kernel_inception_distance_std": ("via_kid_std", 1000),
}


class _Images(Dataset):
    """Images (N, C, H, W) uint8 at some places, each (3, H, W)."""

    def __init__(self, images: Tensor, places: Tensor):
        self._images, self._places = images, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:
        image = self._images[self._places[index]]
        return image.expand(3, -1, -1).contiguous()


def library() -> ModuleType:
    """torch-fidelity.

    Raises:
        ValueError: it cannot be imported; it needs torchvision.
    """
    try:
        return importlib.import_module("torch_fidelity")
    except Exception as error:  # A torchvision of another PyTorch raises RuntimeError.
        why = " ".join(str(error).split())
        raise ValueError(f"--via: {LIBRARY} cannot be imported ({why}): pip install {LIBRARY}") from error


def scores(
    fidelity: ModuleType,
    real: tuple[Tensor, Tensor],
    fake: Tensor,
    weights: Mapping[str, Tensor],
    *,
    kid_subsets: int,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> dict[str, Any]:
    """FID, Inception score and KID as torch-fidelity computes them, with the network's weights that are given.

    Its Inception score is of the images in their order, as ours. The draws of its KID are its own.

    Args:
        fidelity: from `library`.
        real: images (N, C, H, W) uint8, C 1 or 3, and which of them.
        fake: images (M, C, H, W) uint8.
        weights: the state dict of the 2015 network.
        kid_subsets: as for `evaluate`; there is no KID of fewer than 1000 images of either side.
        batch_size: how many at a time.
        device: where it computes: the CPU, or the GPU that is current then.
        progress: let it print.

    Returns:
        `via`, the library and its version; `via_distance`, `via_is_mean`, `via_is_std`, and KID times 1000,
        `via_kid_mean`, `via_kid_std`.
    """
    with tempfile.TemporaryDirectory() as folder:
        # It reads its weights as a pickle: it gets a file that was made here.
        path = Path(folder, "inception.pth")
        torch.save(dict(weights), path)
        found = fidelity.calculate_metrics(
            input1=_Images(fake, torch.arange(len(fake))),
            input2=_Images(*real),
            feature_extractor_weights_path=str(path),
            fid=True,
            isc=len(fake) >= _SPLITS,
            isc_splits=_SPLITS,
            kid=kid_subsets > 0 and min(len(fake), len(real[1])) >= _SUBSET,
            kid_subsets=kid_subsets,
            kid_subset_size=_SUBSET,
            samples_shuffle=False,
            batch_size=batch_size,
            cuda=device.type == "cuda",
            # Worker processes would copy the images.
            save_cpu_ram=True,
            cache=False,
            verbose=progress,
        )
    named = {name: factor * float(found[key]) for key, (name, factor) in _NAMES.items() if key in found}
    return {"via": f"{LIBRARY} {fidelity.__version__}", **named}

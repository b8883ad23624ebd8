"""The file of the Inception network's weights: a path, pytorch-fid's copy, gnfast's cache, or its official release."""

import os
from pathlib import Path

import torch
from torch import Tensor

from gnfast.io.downloads import checksum, download
from gnfast.io.files import cache_root, expanded
from gnfast.io.tensors import is_state, load_tensors

NAME = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}"
OFFICIAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def load_weights(path: str | os.PathLike | None = None, *, progress: bool = True) -> tuple[dict[str, Tensor], str]:
    """The weights and the SHA-256 (hex) of their file.

    Args:
        path: of a file in pytorch-fid's format, official or not; None is the official one, from gnfast's cache, from
            where pytorch-fid keeps it, or downloaded.
        progress: show a bar on a terminal while downloading.

    Raises:
        ValueError: the file is damaged or no state dict, or the official one cannot be had.
    """
    file = expanded(path) if path else _official(progress)
    if not file.exists():
        raise ValueError(f"weights: got {str(path)!r}, wanted the path of a file such as {NAME}")
    # First, since this refuses what is endless.
    state = load_tensors(file)
    if not is_state(state):
        raise ValueError(f"weights {file}: got a {type(state).__name__}, wanted a state dict, names to tensors")
    return state, checksum(file, "sha256")


def is_official(sha256: str) -> bool:
    """Whether a file with this SHA-256 is the one that FID is defined by."""
    return sha256 == OFFICIAL


def _official(progress: bool) -> Path:
    own = cache_root() / "weights" / NAME
    for file in (own, Path(torch.hub.get_dir()) / "checkpoints" / NAME):
        if file.is_file() and is_official(checksum(file, "sha256")):
            return file
    download(URL, own, "sha256", OFFICIAL, advice=", or pass its path as the extractor's weights", progress=progress)
    return own

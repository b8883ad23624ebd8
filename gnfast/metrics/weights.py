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
    file = require_weights(path, progress=progress)
    # First, since this refuses what is endless.
    state = load_tensors(file)
    if not is_state(state):
        raise ValueError(f"weights {file}: got a {type(state).__name__}, wanted a state dict, names to tensors")
    return state, checksum(file, "sha256")


def require_weights(path: str | os.PathLike | None = None, *, progress: bool = True) -> Path:
    """The file that `load_weights` reads.

    Raises:
        ValueError: there is none, or the official one cannot be had.
    """
    file = expanded(path) if path else official(progress=progress)
    if not file.exists():
        raise ValueError(f"weights: got {str(path)!r}, wanted the path of a file such as {NAME}")
    return file


def is_official(sha256: str) -> bool:
    """Whether a file with this SHA-256 is the one that FID is defined by."""
    return sha256 == OFFICIAL


def require_official(path: Path) -> None:
    """That a file is the official one.

    Raises:
        ValueError: it is another; the message has both SHA-256. FileNotFoundError: there is none.
    """
    if not is_official(got := checksum(path, "sha256")):
        raise ValueError(
            f"{path}: got SHA-256 {got}, wanted {OFFICIAL}: damaged, or other weights, whose scores are not FID"
        )


def places() -> list[Path]:
    """Where the official file is looked for: gnfast's cache, and where pytorch-fid keeps it."""
    return [cache_root() / "weights" / NAME, Path(torch.hub.get_dir()) / "checkpoints" / NAME]


def found() -> Path | None:
    """The official file on this machine; None where no file of its SHA-256 is in its places."""
    return next((file for file in places() if file.is_file() and is_official(checksum(file, "sha256"))), None)


def official(*, progress: bool) -> Path:
    """The official file on this machine, which is downloaded where there is none.

    Raises:
        ValueError: it cannot be had; the message says where to get it, and where to put it.
    """
    if (file := found()) is not None:
        return file
    advice = ", or give its path, --extractor-weights; without it, --extractor classifier measures labelled images, "
    advice += "--extractor pixels-8x8 colours and layout of any, and --extractor module:function is one of your own "
    advice += "(docs/evaluation.md)"
    download(URL, places()[0], "sha256", OFFICIAL, advice=advice, progress=progress)
    return places()[0]

"""The file of the Inception network's weights: a path, pytorch-fid's copy, gnfast's cache, or its official release."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gnfast.io.files import atomic_write, cache_root, expanded, open_regular
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
        raise ValueError(f"weights must be the path of a file such as {NAME}, got {str(path)!r}")
    # First, since this refuses what is endless.
    state = load_tensors(file)
    if not is_state(state):
        raise ValueError(f"weights {file} must hold a state dict, names to tensors, got {type(state).__name__}")
    return state, _sha256(file)


def is_official(checksum: str) -> bool:
    """Whether a file with this SHA-256 is the one that FID is defined by."""
    return checksum == OFFICIAL


def _official(progress: bool) -> Path:
    own = cache_root() / "weights" / NAME
    for file in (own, Path(torch.hub.get_dir()) / "checkpoints" / NAME):
        if file.is_file() and is_official(_sha256(file)):
            return file
    _download(own, progress)
    return own


def _download(path: Path, progress: bool) -> None:
    """Fetches the official file to `path`, which appears only when complete and of the expected checksum."""
    bar = tqdm(desc=f"downloading {NAME}", unit="B", unit_scale=True, disable=None if progress else True)
    by_hand = f"fetch {URL} by hand and put it at {path}, or pass its path as the extractor's weights"
    with atomic_write(path) as part, bar:
        try:
            with urllib.request.urlopen(URL, timeout=60) as answer, part.open("wb") as file:
                bar.total = int(answer.headers.get("Content-Length") or 0) or None
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise ValueError(f"the Inception weights could not be downloaded ({error}); {by_hand}") from error
        if not is_official(got := _sha256(part)):
            raise ValueError(f"{URL}: wrong checksum, expected SHA-256 {OFFICIAL}, got {got}; {by_hand}")


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

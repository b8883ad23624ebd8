"""Files with published checksums: what they are, and fetching them."""

import hashlib
import os
import urllib.request
from pathlib import Path

from tqdm import tqdm

from gnfast.errors import InputError
from gnfast.io.files import atomic_write, open_regular

_CHUNK = 1 << 20


def checksum(path: str | os.PathLike[str], algorithm: str) -> str:
    """The checksum of a regular file (hex). MD5, which data sets publish, guards against damage, not against malice."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def download(
    url: str,
    path: Path,
    algorithm: str,
    expected: str,
    *,
    advice: str = "",
    error: type[ValueError] = InputError,
    progress: bool = True,
) -> None:
    """Fetch `url` to `path`, which appears only when it is complete and has the expected checksum.

    Args:
        url, path: from where, and where to.
        algorithm, expected: of the checksum, as "md5", and what it is (hex).
        advice: what else to do where that fails, after "fetch it by hand and put it at PATH".
        error: what is raised where the server cannot be reached or breaks off, or the checksum is another one.
        progress: show a bar on a terminal.
    """
    by_hand = f"fetch it by hand and put it at {path}{advice}"
    bar = tqdm(desc=f"downloading {path.name}", unit="B", unit_scale=True, disable=None if progress else True)
    with atomic_write(path) as part, bar:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
                bar.total = int(answer.headers.get("Content-Length") or 0) or None
                while block := answer.read(_CHUNK):
                    file.write(block)
                    bar.update(len(block))
        except (OSError, ValueError) as reason:
            raise error(f"could not download {url} ({reason}); {by_hand}") from reason
        if (got := checksum(part, algorithm)) != expected:
            raise error(
                f"{url}: wrong checksum, expected {algorithm.upper()} {expected}, got {got}; the download was removed, "
                f"so try again or {by_hand}"
            )

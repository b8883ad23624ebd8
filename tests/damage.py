"""What may happen to a file: damage to its content, and what is no file in its place."""

import os
import random
from collections.abc import Callable
from pathlib import Path


def flipped(content: bytes, r: random.Random, start: int = 0, stop: int | None = None, most: int = 20) -> bytes:
    """With one to `most` bits flipped from `start` on, to `stop`."""
    new = bytearray(content)
    for _ in range(r.randint(1, most)):
        new[r.randrange(start, stop or len(new))] ^= 1 << r.randrange(8)
    return bytes(new)


def cut(content: bytes, r: random.Random) -> bytes:
    return content[: r.randrange(1, max(2, len(content)))]


def _piece(content: bytes, r: random.Random, change: Callable[[bytes], bytes], most: int = 512) -> bytes:
    """With another piece in place of one of at most that many bytes."""
    start = r.randrange(max(1, len(content)))
    stop = r.randrange(start, min(len(content), start + most) or 1) + 1
    return content[:start] + change(content[start:stop]) + content[stop:]


CONTENT: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda old, r: b"",
    "zeros": lambda old, r: bytes(len(old) + 1),
    "truncated": cut,
    "flipped": lambda old, r: flipped(old or b"{}", r, most=40),
    "head-flipped": lambda old, r: flipped(old, r, 0, min(400, len(old)), most=8),
    "tail-flipped": lambda old, r: flipped(old, r, max(0, len(old) - 400), most=8),
    "doubled": lambda old, r: old * 2,
    "cut-out": lambda old, r: _piece(old, r, lambda piece: b"", 999),
    "zeroed": lambda old, r: _piece(old, r, lambda piece: bytes(len(piece))),
    "overwritten": lambda old, r: _piece(old, r, lambda piece: r.randbytes(len(piece)), 200),
    "filled": lambda old, r: _piece(old, r, lambda piece: b"\xff" * len(piece), 200),
    "repeated": lambda old, r: _piece(old, r, lambda piece: piece * 51, 200),
    "noise": lambda old, r: r.randbytes(r.randrange(1, 9999)),
    "text": lambda old, r: b"not what its name says\n" * r.randrange(1, 99),
}
"""(old content, a generator) -> new content."""


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "itself": lambda path: path.symlink_to(path.name),
    "lost-link": lambda path: path.symlink_to("nowhere/at/all"),
    "missing": lambda path: None,
    "sparse": _sparse,
}
"""What makes something at a path where nothing is."""

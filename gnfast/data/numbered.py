"""Folders and archives whose images are numbered, and whose splits are ranges of numbers."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from gnfast.data.archive import Entry, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.folder import is_image
from gnfast.data.images import decode_into, decoding_bar, skipped_files
from gnfast.data.source import Contents

# Of a mask that goes with an image, "00012_hair", the number is not at the end.
_NUMBERED = re.compile(r"\D*(\d{1,18})")


def read_numbered(path: Path, request: Request, is_wanted: Callable[[int, int], bool], canvas: Canvas) -> Contents:
    """The images of one split in the order of their numbers, from a folder, zip or tar.

    Args:
        path: what holds them, in whatever folders; other files are passed over.
        request: how they are prepared, and the split's name for messages.
        is_wanted: (number, lowest number) -> whether an image is in the split.
        canvas: where they go.

    Raises:
        DataError: no image is left, or two have the same number.
    """
    with open_entries(path, is_image, request.progress) as entries:
        numbers: dict[int, Entry] = {}
        for entry in entries:
            match = _NUMBERED.fullmatch(PurePosixPath(entry.name).stem)
            if not match or not is_image(entry.name):
                continue
            number = int(match[1])
            if number in numbers:
                raise DataError(
                    f"{path} holds two images with the number {number}, {numbers[number].name} and {entry.name}; "
                    f"pass root=… with the folder of one of them"
                )
            numbers[number] = entry
        first = min(numbers, default=0)
        chosen = [
            (numbers[number].name, None, numbers[number].read) for number in sorted(numbers) if is_wanted(number, first)
        ]
        canvas.expect(len(chosen))
        with decoding_bar(path, len(chosen), request) as bar:
            kept, skipped = decode_into(canvas, chosen, request, bar, path)
    if not kept:
        what = f"split {request.split!r}, of {len(numbers)} numbered images" if numbers else "numbered images"
        raise DataError(f"no image is left in {path} for {what}" + (skipped_files(skipped) if skipped else ""))
    warning = f"{path}: {len(skipped)} of {len(chosen)} images skipped{skipped_files(skipped)}" if skipped else ""
    return Contents(skipped=len(skipped), warning=warning)


def find_first(root: Path, names: tuple[str, ...], what: str, advice: str) -> Path:
    """`root` itself where it is a file or has none of `names` but images or folders, else the first of `names` in it.

    Raises:
        DataError: there is nothing; `advice` says where to get it.
    """
    if root.is_file():
        return root
    for name in names:
        if (root / name).exists():
            return root / name
    if root.is_dir() and any(root.iterdir()):
        return root
    raise DataError(f"{what} is not at {root}; {advice}")

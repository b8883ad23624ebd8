"""CelebA and CelebA-HQ: folders and archives of numbered images, whose splits are ranges of numbers."""

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from gnfast.data import databases
from gnfast.data.archive import Entry, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official
from gnfast.data.folder import is_image
from gnfast.data.images import decode_into, decoded_identity
from gnfast.data.source import Contents, DataSet, Source

# Of a mask that goes with an image, "00012_hair", the number is not at the end.
_NUMBERED = re.compile(r"\D*(\d{1,18})")


class CelebA(DataSet):
    """Aligned and cropped by its authors. Each split has the numbers in its files' names."""

    def open(self, request: Request) -> Source:
        """`request.root` is img_align_celeba.zip, or the folder that it unpacks to, or one with either."""
        archive, numbers = self.archive, self.splits[request.split]
        advice = (
            f"fetch {archive.name} ({archive.size}) by hand from {archive.url}, Align&Cropped Images, and put it "
            f"there, or pass root=… with its path"
        )
        path = self.find(request, (archive.name, "img_align_celeba"), advice, _holds_something)

        def check() -> list[Path]:
            return [archive.check(path)] if path.name == archive.name and path.is_file() else []

        def read(canvas: Canvas) -> Contents:
            if request.verify:
                check()
            return _read(path, request, lambda number, first: number in numbers, canvas)

        return Source(self.name, request, decoded_identity(path), read, check=check)


class CelebAHQ(DataSet):
    """Split as GN-GAN's code does: each split has positions in the order of the files' numbers."""

    def open(self, request: Request) -> Source:
        """`request.root` is a folder, zip, tar or LMDB of images, numbered from 0 (as CelebAMask-HQ's) or from 1.

        An LMDB that GN-GAN's code made of a part counts from 0 again: its images are in "all" and, up to 27,000, in
        "train".
        """
        advice = (
            "fetch CelebAMask-HQ.zip (3 GB, https://github.com/switchablenorms/CelebAMask-HQ) by hand and put it "
            "there, or pass root=… with a folder, zip, tar or LMDB of the numbered images"
        )
        path = self.find(request, ("CelebAMask-HQ.zip", "CelebAMask-HQ"), advice, _holds_something)
        positions = self.splits[request.split]
        if databases.is_database(path):
            return databases.open_database(path, request, self.name, positions)

        def read(canvas: Canvas) -> Contents:
            # Counted from 0 or from 1; a folder with the second part alone still counts from 1.
            return _read(path, request, lambda number, first: number - min(first, 1) in positions, canvas)

        return Source(self.name, request, decoded_identity(path), read)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _read(path: Path, request: Request, is_wanted: Callable[[int, int], bool], canvas: Canvas) -> Contents:
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
        chosen = [numbers[number] for number in sorted(numbers) if is_wanted(number, first)]
        what = f"for split {request.split!r}, of {len(numbers)} numbered images" if numbers else "for numbered images"
        encoded = ((entry.name, None, entry.read) for entry in chosen)
        return decode_into(canvas, encoded, len(chosen), request, path, what)[1]


SETS = [
    CelebA(
        name="celeba",
        description="202,599 faces of celebrities, 178x218, cropped to 178x178, RGB (Liu et al., 2015); 1.4 GB, "
        "fetched by hand.",
        # The official partition (list_eval_partition.txt).
        splits={
            "train": range(1, 162_771),
            "valid": range(162_771, 182_638),
            "test": range(182_638, 202_600),
            "all": range(1, 202_600),
        },
        # mimicry cuts out this square before it resizes.
        crop=178,
        archive=Official(
            dataset="celeba",
            name="img_align_celeba.zip",
            url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            md5="00d2c5bc6d35e252742224ab0c1e8fcb",
            size="1.4 GB",
        ),
    ),
    CelebAHQ(
        name="celebahq",
        description="30,000 faces of celebrities in high quality, RGB (Karras et al., 2018); prepared or fetched by "
        "hand.",
        # Images before 27001, and 27001 to 30000.
        splits={"train": range(27_000), "test": range(27_000, 30_000), "all": range(30_000)},
    ),
]

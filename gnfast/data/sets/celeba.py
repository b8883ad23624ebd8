"""CelebA and CelebA-HQ: folders and archives of numbered images, whose splits are ranges of numbers."""

import re
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class Faces(DataSet):
    """Images with a number in each name. Each split has their positions, counted from 0.

    Args:
        names: of the archive, and of the folder that it unpacks to.
        advice: how to get it.
        first: the number at position 0; if None, the lowest, but at most 1: a part alone may begin with any other.
    """

    names: tuple[str, str]
    advice: str
    first: int | None = None

    def open(self, request: Request) -> Source:
        """`request.root` is the archive, or what it unpacks to, or an LMDB of the same images, or a folder with it.

        An LMDB that GN-GAN's code made of a part of CelebA-HQ counts from 0 again: its images are in "all" and, up to
        27,000, in "train".
        """
        path = self.find(request, self.names, self.advice, _holds_something)
        if databases.is_database(path):
            return databases.open_database(path, request, self.name, self.splits[request.split])

        def check() -> list[Path]:
            is_published = self.archive and path.name == self.archive.name and path.is_file()
            return [self.archive.check(path)] if is_published else []

        def read(canvas: Canvas) -> Contents:
            if request.verify:
                check()
            return _read(self, path, request, canvas)

        return Source(self.name, request, decoded_identity(path), read, check=check)


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _read(faces: Faces, path: Path, request: Request, canvas: Canvas) -> Contents:
    """The images of one split in the order of their numbers, in whatever folders; other files are passed over.

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
        first = min([1, *numbers]) if faces.first is None else faces.first
        positions = faces.splits[request.split]
        chosen = [numbers[number] for number in sorted(numbers) if number - first in positions]
        what = f"for split {request.split!r}, of {len(numbers)} numbered images" if numbers else "for numbered images"
        encoded = ((entry.name, None, entry.read) for entry in chosen)
        return decode_into(canvas, encoded, len(chosen), request, path, what)[1]


SETS = [
    Faces(
        name="celeba",
        description="202,599 faces of celebrities, 178x218, cropped to 178x178, RGB (Liu et al., 2015); 1.4 GB, "
        "fetched by hand.",
        # The official partition (list_eval_partition.txt).
        splits={
            "train": range(162_770),
            "valid": range(162_770, 182_637),
            "test": range(182_637, 202_599),
            "all": range(202_599),
        },
        first=1,
        # mimicry cuts out this square before it resizes.
        crop=178,
        names=("img_align_celeba.zip", "img_align_celeba"),
        advice="fetch img_align_celeba.zip (1.4 GB) by hand from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, "
        "Align&Cropped Images, and put it there, or pass root=… with its path",
        archive=Official(
            dataset="celeba",
            name="img_align_celeba.zip",
            url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            md5="00d2c5bc6d35e252742224ab0c1e8fcb",
            size="1.4 GB",
        ),
    ),
    Faces(
        name="celebahq",
        description="30,000 faces of celebrities in high quality, RGB (Karras et al., 2018); prepared or fetched by "
        "hand.",
        # Images before 27001, and 27001 to 30000.
        splits={"train": range(27_000), "test": range(27_000, 30_000), "all": range(30_000)},
        names=("CelebAMask-HQ.zip", "CelebAMask-HQ"),
        advice="fetch CelebAMask-HQ.zip (3 GB, https://github.com/switchablenorms/CelebAMask-HQ) by hand and put it "
        "there, or pass root=… with a folder, zip, tar or LMDB of the numbered images",
    ),
]

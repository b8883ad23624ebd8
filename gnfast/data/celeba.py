"""CelebA, aligned and cropped by its authors."""

from pathlib import Path

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official
from gnfast.data.images import decoded_identity
from gnfast.data.numbered import find_first, read_numbered
from gnfast.data.source import Contents, Source
from gnfast.io.files import cache_root

ARCHIVE = Official(
    dataset="celeba",
    name="img_align_celeba.zip",
    url="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    md5="00d2c5bc6d35e252742224ab0c1e8fcb",
    size="1.4 GB",
)
# The official partition (list_eval_partition.txt), by the number in the file name.
SPLITS = {
    "train": range(1, 162_771),
    "valid": range(162_771, 182_638),
    "test": range(182_638, 202_600),
    "all": range(1, 202_600),
}
# Images are 178x218; mimicry cuts out this square before it resizes.
CROP = 178


def open_celeba(request: Request) -> Source:
    """202,599 faces of celebrities, 178x218, cropped to 178x178, RGB (Liu et al., 2015); 1.4 GB, fetched by hand.

    `request.root` is img_align_celeba.zip, or the folder that it unpacks to, or one with either.

    Raises:
        DataError: an unknown split, or nothing is there; on reading, a wrong checksum of the zip (unless `verify` is
            False), or no image is left.
    """
    if request.split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(map(repr, SPLITS))} for celeba, got {request.split!r}")
    request = request.filled(channels=3, crop=CROP)
    root = request.root or cache_root() / "data" / "celeba"
    path = find_first(
        root,
        (ARCHIVE.name, "img_align_celeba"),
        "celeba",
        f"fetch {ARCHIVE.name} ({ARCHIVE.size}) by hand from {ARCHIVE.url}, Align&Cropped Images, "
        f"and put it there, or pass root=… with its path",
    )
    numbers = SPLITS[request.split]

    def check() -> list[Path]:
        if path.name != ARCHIVE.name or not path.is_file():
            return []
        ARCHIVE.check(path)
        return [path]

    def read(canvas: Canvas) -> Contents:
        if request.verify:
            check()
        return read_numbered(path, request, lambda number, first: number in numbers, canvas)

    return Source("celeba", request, decoded_identity(path), read, check=check)

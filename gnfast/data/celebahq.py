"""CelebA-HQ, split as GN-GAN's code does."""

from gnfast.data import databases
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.images import decoded_identity
from gnfast.data.numbered import find_first, read_numbered
from gnfast.data.source import Contents, Source
from gnfast.io.files import cache_root

# By position in the order of the files' numbers: images before 27001, and 27001 to 30000.
SPLITS = {"train": range(27_000), "test": range(27_000, 30_000), "all": range(30_000)}


def open_celebahq(request: Request) -> Source:
    """30,000 faces of celebrities in high quality, RGB (Karras et al., 2018); prepared or fetched by hand.

    `request.root` is a folder, zip, tar or LMDB of numbered images, counted from 0 (as CelebAMask-HQ's) or from 1. An
    LMDB that GN-GAN's code made of a part counts from 0 again: its images are in "all" and, up to 27,000, in "train".

    Raises:
        DataError: an unknown split, or nothing is there; on reading, no image is left.
    """
    if request.split not in SPLITS:
        raise DataError(f"split must be one of {', '.join(map(repr, SPLITS))} for celebahq, got {request.split!r}")
    request = request.filled(channels=3)
    root = request.root or cache_root() / "data" / "celebahq"
    path = find_first(
        root,
        ("CelebAMask-HQ.zip", "CelebAMask-HQ"),
        "celebahq",
        "fetch CelebAMask-HQ.zip (3 GB, https://github.com/switchablenorms/CelebAMask-HQ) by hand and put it there, or "
        "pass root=… with a folder, zip, tar or LMDB of the numbered images",
    )
    positions = SPLITS[request.split]
    if databases.is_database(path):
        return databases.open_database(path, request, "celebahq", positions)

    def read(canvas: Canvas) -> Contents:
        # Counted from 0 or from 1; a folder with the second part alone still counts from 1.
        return read_numbered(path, request, lambda number, first: number - min(first, 1) in positions, canvas)

    return Source("celebahq", request, decoded_identity(path), read)

"""LSUN's categories in their official LMDBs."""

from collections.abc import Callable

from gnfast.data import databases
from gnfast.data.dataset import DataError, Request
from gnfast.data.source import Source
from gnfast.io.files import cache_root

_SCENES = "http://dl.yf.io/lsun/scenes/"


def _category(
    name: str, folders: dict[str, tuple[str, ...]], url: str, description: str
) -> Callable[[Request], Source]:
    """What opens one category; `folders` are for each split the names that its LMDB may have."""

    def open_category(request: Request) -> Source:
        if request.split not in folders:
            raise DataError(f"split must be one of {', '.join(map(repr, folders))} for {name}, got {request.split!r}")
        request = request.filled(channels=3)
        root = request.root or cache_root() / "data" / "lsun"
        candidates = [root / folder for folder in folders[request.split]]
        # The LMDB itself stands for any split: it holds one, and does not say which.
        path = next((path for path in (*candidates, root) if databases.is_database(path)), None)
        if path is None:
            raise DataError(
                f"{name} is not at {candidates[0]}; fetch it by hand from {url.format(split=request.split)}, "
                f"unzip it there, or pass root=… with the LMDB's folder"
            )
        return databases.open_database(path, request, name)

    open_category.__doc__ = description
    return open_category


OPEN = {
    "lsun-church": _category(
        "lsun-church",
        {"train": ("church_outdoor_train_lmdb", "church"), "val": ("church_outdoor_val_lmdb",)},
        _SCENES + "church_outdoor_{split}_lmdb.zip",
        "126,227 photographs of churches, the smaller side 256, RGB (Yu et al., 2015); 2.5 GB, fetched by hand.",
    ),
    "lsun-bedroom": _category(
        "lsun-bedroom",
        {"train": ("bedroom_train_lmdb", "bedroom"), "val": ("bedroom_val_lmdb",)},
        _SCENES + "bedroom_{split}_lmdb.zip",
        "3,033,042 photographs of bedrooms, the smaller side 256, RGB (Yu et al., 2015); 43 GB, fetched by hand.",
    ),
    "lsun-horse": _category(
        "lsun-horse",
        {"train": ("horse",)},
        "http://dl.yf.io/lsun/objects/horse.zip",
        "2,000,340 photographs of horses, RGB (Yu et al., 2015); 69 GB, fetched by hand.",
    ),
}

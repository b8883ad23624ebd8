"""LSUN's categories in their official LMDBs."""

from dataclasses import dataclass

from gnfast.data import databases
from gnfast.data.dataset import Request
from gnfast.data.source import DataSet, Source


@dataclass(frozen=True, kw_only=True)
class Lsun(DataSet):
    """A category. Each split has the names that its LMDB may have, of which the zip has the first.

    Args:
        url: where the zips are.
    """

    url: str = "http://dl.yf.io/lsun/scenes/{}.zip"

    def open(self, request: Request) -> Source:
        """`request.root` is the LMDB, which then stands for any split (it does not say which it holds), or has it."""
        names = self.splits[request.split]
        advice = f"fetch it by hand from {self.url.format(names[0])}, unzip it there, or pass root=… with its folder"
        path = self.find(request, names, advice, databases.is_database, "lsun")
        return databases.open_database(path, request, self.name)


SETS = [
    Lsun(
        name="lsun-church",
        description="126,227 photographs of churches, the smaller side 256, RGB (Yu et al., 2015); 2.5 GB, fetched by "
        "hand.",
        splits={"train": ("church_outdoor_train_lmdb", "church"), "val": ("church_outdoor_val_lmdb",)},
    ),
    Lsun(
        name="lsun-bedroom",
        description="3,033,042 photographs of bedrooms, the smaller side 256, RGB (Yu et al., 2015); 43 GB, fetched by "
        "hand.",
        splits={"train": ("bedroom_train_lmdb", "bedroom"), "val": ("bedroom_val_lmdb",)},
    ),
    Lsun(
        name="lsun-horse",
        description="2,000,340 photographs of horses, RGB (Yu et al., 2015); 69 GB, fetched by hand.",
        splits={"train": ("horse",)},
        url="http://dl.yf.io/lsun/objects/{}.zip",
    ),
]

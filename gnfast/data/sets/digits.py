"""scikit-learn's handwritten digits: 1797 real images, 8x8, grey, within the package, so that no download is needed."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, DataSet, Source
from gnfast.errors import missing


class Digits(DataSet):
    """The values 0..16 become 0..255.

    Source: UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), its test part.
    """

    def open(self, request: Request) -> Source:
        """Needs scikit-learn when it is read."""
        return Source(self.name, request, {}, lambda canvas: _read(request, canvas), is_quick=True)


def _read(request: Request, canvas: Canvas) -> Contents:
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise DataError(missing("the data set digits", "sklearn"))
    # The file that sklearn.datasets.load_digits reads, without the two seconds that its import takes.
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    canvas.expect(len(pixels))
    add_arrays(canvas, pixels, request)
    return Contents(torch.from_numpy(table[:, -1].astype(np.int64)), tuple("0123456789"))


SETS = [
    Digits(
        name="digits",
        description="1797 handwritten digits, 8x8, grey; comes with scikit-learn, no download.",
        splits={"train": None},
        channels=1,
        resolution=8,
    )
]

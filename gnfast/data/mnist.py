"""MNIST."""

from gnfast.data.dataset import Request
from gnfast.data.idx import official_files, open_idx
from gnfast.data.source import Source

FILES = official_files(
    "mnist",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "12 MB in four files",
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)


def open_mnist(request: Request) -> Source:
    """70,000 handwritten digits, 28x28, grey (LeCun et al., 1998); 12 MB.

    Arguments and errors are those of `open_idx`.
    """
    return open_idx(FILES, tuple("0123456789"), request)

"""CIFAR-10."""

from gnfast.data.cifar import Layout, open_cifar
from gnfast.data.dataset import Request
from gnfast.data.files import Official
from gnfast.data.source import Source

ARCHIVE = Official(
    dataset="cifar10",
    name="cifar-10-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size="170 MB",
)
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def open_cifar10(request: Request) -> Source:
    """60,000 photographs in ten classes, 32x32, RGB (Krizhevsky, 2009); 170 MB.

    Arguments and errors are those of `open_cifar`.
    """
    return open_cifar(Layout(ARCHIVE, FOLDER, BATCHES, "labels", CLASSES), request)

"""Fashion-MNIST."""

from gnfast.data.dataset import Request
from gnfast.data.idx import official_files, open_idx
from gnfast.data.source import Source

FILES = official_files(
    "fashion-mnist",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "31 MB in four files",
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def open_fashion_mnist(request: Request) -> Source:
    """70,000 pictures of clothes, 28x28, grey (Xiao et al., 2017); 31 MB.

    Arguments and errors are those of `open_idx`.
    """
    return open_idx(FILES, CLASSES, request)

"""CIFAR-100, with its fine labels."""

from gnfast.data.cifar import Layout, open_cifar
from gnfast.data.dataset import Request
from gnfast.data.files import Official
from gnfast.data.source import Source

ARCHIVE = Official(
    dataset="cifar100",
    name="cifar-100-python.tar.gz",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    size="169 MB",
)
FOLDER = "cifar-100-python"
BATCHES = {"train": ("train",), "test": ("test",)}
CLASSES = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy"),
    *("bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee"),
    *("clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant"),
    *("flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower"),
    *("leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom"),
    *("oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate"),
    *("poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark"),
    *("shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower"),
    *("sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip"),
    *("turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm"),
)


def open_cifar100(request: Request) -> Source:
    """60,000 photographs in a hundred classes, 32x32, RGB (Krizhevsky, 2009); 169 MB.

    Arguments and errors are those of `open_cifar`.
    """
    return open_cifar(Layout(ARCHIVE, FOLDER, BATCHES, "fine_labels", CLASSES), request)

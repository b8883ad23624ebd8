"""CIFAR-10 and CIFAR-100 in their archives of Python pickles, read without unpacking and without trusting them."""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gnfast.data.archive import Entry, open_entries
from gnfast.data.canvas import Canvas
from gnfast.data.dataset import DataError, Request
from gnfast.data.files import Official
from gnfast.data.images import add_arrays
from gnfast.data.source import Contents, DataSet, Source, published

# The largest batch is CIFAR-100's for training.
_BATCH_BYTES = 200 << 20


class Cifar(DataSet):
    """One of the two. Each split has the names of its files in the archive's folder."""

    def open(self, request: Request) -> Source:
        """`request.root` is the archive, or has it."""
        return published([self.archive], request, lambda paths, canvas: _read(self, paths[0], request, canvas))


def _read(cifar: Cifar, path: Path, request: Request, canvas: Canvas) -> Contents:
    names = [f"{cifar.folder}/{batch}" for batch in cifar.splits[request.split]]
    with open_entries(path, names.__contains__, request.progress, _BATCH_BYTES) as entries:
        found = {entry.name: entry for entry in entries}
        if missing := [name for name in names if name not in found]:
            raise DataError(f"{path} has no {', '.join(missing)}: it is not the official archive of {cifar.name}")
        batches = [_batch(found[name], path, cifar) for name in names]
    canvas.expect(sum(len(pixels) for pixels, _ in batches))
    for pixels, _ in batches:
        add_arrays(canvas, pixels.reshape(-1, 3, 32, 32), request)
    return Contents(torch.cat([labels for _, labels in batches]), cifar.classes)


def _batch(entry: Entry, path: Path, cifar: Cifar) -> tuple[np.ndarray, torch.Tensor]:
    """One batch: (n, 3072) uint8 and its labels (n,) int64."""
    where = f"{path}:{entry.name}"
    try:
        # A pickle can hold nearly any damage, and an unpickler raise nearly anything.
        content = entry.read()
        _check_steps(content)
        batch = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    batch = batch if type(batch) is dict else {}
    pixels, labels = _pixels(batch.get("data")), batch.get("fine_labels", batch.get("labels"))
    if pixels is None:
        raise DataError(f"{where}: 'data' is not a uint8 array of shape (n, 3072)")
    count = len(cifar.classes)
    numbers = type(labels) is list and len(labels) == len(pixels) and all(type(label) is int for label in labels)
    if not numbers or not all(0 <= label < count for label in labels):
        raise DataError(f"{where}: its labels are not a list of {len(pixels)} ints from 0 to {count - 1}")
    return pixels, torch.tensor(labels, dtype=torch.int64)


class _Inert:
    """Stands for a name of numpy in a pickle: it keeps what it is given, and does nothing with it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _pixels(array: Any) -> np.ndarray | None:
    """(n, 3072) uint8, n >= 1, or None where it is another array or none."""
    match array:
        case _Inert(state=(1, (int(count), 3072), _Inert(arguments=("u1", *_)), 0, str() | bytes() as raw)):
            # Python 2 had no bytes; its strings are read as latin1, which keeps every byte.
            content = raw if isinstance(raw, bytes) else raw.encode("latin1", "replace")
            if len(content) == count * 3072 > 0:
                return np.frombuffer(content, np.uint8).reshape(count, 3072)
    return None


_ADMITTED = {"numpy.ndarray", "numpy.dtype", *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))}

# What dictionaries, lists, numbers, strings and arrays are made of.
_STEPS = re.compile(
    r"PROTO|FRAME|STOP|MARK|POP|POP_MARK|DUP|MEMOIZE|(|BIN|LONG_BIN)(PUT|GET)|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|"
    r"(|BIN|SHORT_BIN)(STRING|UNICODE)|(SHORT_)?BINBYTES|(EMPTY_)?(DICT|LIST|TUPLE)|TUPLE[123]|APPENDS?|SETITEMS?|"
    r"GLOBAL|STACK_GLOBAL|REDUCE|BUILD"
)
# CIFAR-100 takes 250,000 steps, and a dozen tuples.
_MOST_STEPS = 2_000_000
_MOST_TUPLES = 1000


def _check_steps(content: bytes) -> None:
    """Look at all steps of a pickle before one is taken: a few of them may ask for any amount of memory.

    Raises:
        pickle.UnpicklingError: it takes other steps, or more of them, than CIFAR needs.
        ValueError: it is not a pickle.
    """
    tuples = 0
    for number, (step, argument, _) in enumerate(pickletools.genops(content)):
        if not _STEPS.fullmatch(step.name):
            raise pickle.UnpicklingError(f"it takes the step {step.name}, which CIFAR does not need")
        # A place in the memo is memory up to there, and hashing deeply nested tuples overflows the stack.
        tuples += step.name.startswith("TUPLE")
        is_far = step.name.endswith("PUT") and argument > _MOST_STEPS
        if number > _MOST_STEPS or tuples > _MOST_TUPLES or is_far:
            raise pickle.UnpicklingError("it takes more steps than CIFAR needs")


class _Unpickler(pickle.Unpickler):
    """Admits the three names that an array's pickle needs, for each of which something inert stands."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which CIFAR does not need")
        return _Inert


# CIFAR-100's fine labels.
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""

SETS = [
    Cifar(
        name="cifar10",
        description="60,000 photographs in ten classes, 32x32, RGB (Krizhevsky, 2009); 170 MB.",
        splits={"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
        resolution=32,
        folder="cifar-10-batches-py",
        archive=Official(
            dataset="cifar10",
            name="cifar-10-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            size="170 MB",
        ),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    Cifar(
        name="cifar100",
        description="60,000 photographs in a hundred classes, 32x32, RGB (Krizhevsky, 2009); 169 MB.",
        splits={"train": ("train",), "test": ("test",)},
        resolution=32,
        folder="cifar-100-python",
        archive=Official(
            dataset="cifar100",
            name="cifar-100-python.tar.gz",
            url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            size="169 MB",
        ),
        classes=tuple(_FINE.split()),
    ),
]

"""A small classifier, trained on the labelled real images on the spot: features where Inception's are out of reach."""

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from gnfast.data import ImageDataset, to_float
from gnfast.errors import first_line
from gnfast.io.files import atomic_write
from gnfast.io.tensors import load_tensors
from gnfast.metrics.features import FeatureExtractor

# Part of the cache's file names: another architecture or training gets another number.
_VERSION = 2
_SEED = 20210511
_BATCH = 64
_EPOCHS = 12
_MAX_STEPS = 2000


class Classifier(nn.Module):
    """A small CNN: three convolutions down to about 4x4, a hidden layer of 64 whose values are the features, a head.

    Batch norm everywhere: without it half of the features are dead and 12 epochs do not reach 97 % on digits.

    Args:
        channels, height, width: of the images.
        classes: how many.
    """

    dim = 64

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        # Images of 128 pixels and more are averaged down to about 64, which a CPU learns in a minute.
        shrink = max(1, min(height, width) // 64)
        layers: list[nn.Module] = [nn.AvgPool2d(shrink)] if shrink > 1 else []
        height, width = height // shrink, width // shrink
        halvings = sum(min(height, width) > size for size in (4, 8, 16))
        for i, out in enumerate((16, 32, 64)):
            stride = 2 if i >= 3 - halvings else 1
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        # Maps of larger images than 32x32 are averaged, so that the hidden layer does not grow with them.
        height, width = min(height, 4), min(width, 4)
        layers += [nn.AdaptiveAvgPool2d((height, width)), nn.Flatten()]
        layers += [nn.Linear(channels * height * width, self.dim, bias=False), nn.BatchNorm1d(self.dim), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(self.dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@torch.inference_mode(False)
def load_classifier(dataset: ImageDataset, folder: Path, device: torch.device, progress: bool) -> FeatureExtractor:
    """A classifier of the data set's classes; its last hidden layer, 64 features, and its logits.

    Four fifths of the images train it and one fifth measures it ("held_out_accuracy"). The state is kept in `folder`
    under the data set's fingerprint.

    Raises:
        ValueError: the data set has no labels or fewer than 10 images.
    """
    if dataset.labels is None or len(dataset) < 10:
        have = "no labels" if dataset.labels is None else f"{len(dataset)} images"
        raise ValueError(f"dataset: got {dataset.name} with {have}, wanted labels and at least 10 images to classify")
    path = folder / f"classifier-v{_VERSION}-{dataset.fingerprint[:32]}.pt"
    net = _new_classifier(dataset)
    accuracy = _restore(net, path)
    if accuracy is None:
        # A damaged file may have been loaded in part.
        net = _new_classifier(dataset)
        accuracy = _train(net, dataset, device, progress)
        try:
            with atomic_write(path) as part:
                torch.save({"net": net.state_dict(), "held_out_accuracy": accuracy}, part)
        except OSError as error:
            warnings.warn(f"the classifier is not kept for next time: {error}", stacklevel=3)
    net.requires_grad_(False).eval().to(device)
    _warn_if_poor(dataset, accuracy)

    def features_and_logits(images: Tensor) -> tuple[Tensor, Tensor]:
        features = net.features(to_float(images, device))
        return features, net.head(features)

    name, details, classes = f"{dataset.name}-classifier", {"held_out_accuracy": accuracy}, len(dataset.classes)
    return FeatureExtractor(name, net.dim, features_and_logits, device, _fingerprint(net), details, classes)


def _warn_if_poor(dataset: ImageDataset, accuracy: float) -> None:
    """A classifier that has hardly learnt its classes gives all images the same features, and small distances."""
    chance = float(dataset.labels.bincount().max()) / len(dataset)
    if 1 - accuracy > (1 - chance) / 2:
        right = f"right on {accuracy:.0%} of held-out images, where naming the commonest class is on {chance:.0%}"
        warnings.warn(f"the classifier of {dataset.name} is {right}: its distances say little", stacklevel=4)


def _new_classifier(dataset: ImageDataset) -> Classifier:
    """A classifier initialised from a fixed seed, with the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(_SEED)
        return Classifier(*dataset.images.shape[1:], len(dataset.classes))


def _restore(net: nn.Module, path: Path) -> float | None:
    """The held-out accuracy of the classifier kept at `path`, which goes into `net`; None when there is none."""
    if not path.exists():
        return None
    try:
        kept = load_tensors(path)
        accuracy = float(kept["held_out_accuracy"])
        net.load_state_dict(kept["net"])
    except Exception as error:  # Whatever a damaged or foreign file leads to.
        warnings.warn(f"{path} is damaged ({first_line(error)}); the classifier is trained again", stacklevel=4)
        return None
    return accuracy


def _train(net: nn.Module, dataset: ImageDataset, device: torch.device, progress: bool) -> float:
    """Train on four fifths of the images and return the accuracy on the last fifth, a fraction."""
    generator = torch.Generator().manual_seed(_SEED)
    order = torch.randperm(len(dataset), generator=generator)
    held_out, train = order.split([len(order) // 5, len(order) - len(order) // 5])
    # What is left of an epoch is dropped: batch norm cannot do with a batch of one.
    per_epoch = max(1, len(train) // _BATCH)
    steps = min(_EPOCHS * per_epoch, _MAX_STEPS)
    net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bar = trange(steps, desc=f"training the {dataset.name} classifier", disable=None if progress else True)
    with torch.enable_grad(), _one_thread():
        for step in bar:
            if step % per_epoch == 0:
                shuffled = train[torch.randperm(len(train), generator=generator)]
            chosen = shuffled[step % per_epoch * _BATCH :][:_BATCH]
            images = _shift(to_float(dataset.images[chosen], device), generator)
            loss = F.cross_entropy(net(images), dataset.labels[chosen].to(device), label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        guesses = [net(to_float(dataset.images[part], device)).argmax(1).cpu() for part in held_out.split(500)]
    return int((torch.cat(guesses) == dataset.labels[held_out]).sum()) / len(held_out)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread: the same weights whatever the setting, and for so small a net no slower than many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images moved together by up to an eighth of their size, edges repeated, lest 1,400 digits be learnt by heart."""
    reach = max(1, min(images.shape[-2:]) // 8)
    dy, dx = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    padded = F.pad(images, [reach] * 4, mode="replicate")
    return padded[..., dy : dy + height, dx : dx + width]


def _fingerprint(net: nn.Module) -> str:
    parts = (name.encode() + tensor.cpu().numpy().tobytes() for name, tensor in net.state_dict().items())
    return hashlib.sha256(b"".join(parts)).hexdigest()

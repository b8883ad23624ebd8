"""The critics that are measured: the shipped ones by name, or one of the user's."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from gnfast import models
from gnfast.errors import first_line, not_a_tensor
from gnfast.io.objects import load_object

Device = torch.device | str

Z_DIM = 128

# What `models.build` is asked for.
SHIPPED = {
    "CNN 32": ("dcgan", 32),
    "ResNet 32": ("resnet", 32),
    "CNN 48": ("dcgan", 48),
    "ResNet 48": ("resnet", 48),
    "ResNet 128": ("resnet", 128),
    "ResNet 256": ("resnet", 256),
}


@dataclass(frozen=True)
class Network:
    """A critic to measure, and its generator where it has one.

    Attributes:
        shape: (C, H, W) of an image.
        build: () ↦ (generator or None, critic), freshly initialised from PyTorch's global random state.
        width: the factor on its channel counts, for a shipped one.
        contiguous: whether it takes no channels_last, so that its tuned rows are contiguous too.
        notes: what to say of it before it is measured, in sentences.
    """

    name: str
    shape: tuple[int, ...]
    build: Callable[[], tuple[nn.Module | None, nn.Module]]
    width: float = 1.0
    contiguous: bool = False
    notes: tuple[str, ...] = ()

    @property
    def large(self) -> bool:
        """Whether images are so large that PyTorch's second-order convolutions are too slow to search kernels for."""
        return len(self.shape) == 3 and max(self.shape[1:]) >= 128

    def critic(self, dtype: torch.dtype, layout: torch.memory_format, device: Device = "cpu") -> nn.Module:
        """The critic, the same one every time."""
        return self._made(1).to(device=device, dtype=dtype, memory_format=layout)

    def generator(self, dtype: torch.dtype, layout: torch.memory_format, device: Device = "cpu") -> nn.Module:
        """The generator, the same one every time; latents are (B, Z_DIM)."""
        return self._made(0).to(device=device, dtype=dtype, memory_format=layout)

    def images(self, batch: int, dtype: torch.dtype, layout: torch.memory_format, device: Device = "cpu") -> Tensor:
        """(batch, *shape) in [-1, 1], the same ones every time."""
        images = torch.rand(batch, *self.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        layout = layout if images.dim() == 4 else torch.contiguous_format
        return images.to(device=device, dtype=dtype, memory_format=layout)

    def _made(self, index: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()[index]


@cache
def shipped(name: str, width: float = 1.0) -> Network:
    """A critic of `gnfast.models` by a key of `SHIPPED`, or by the same as a word ("resnet-32").

    Raises:
        ValueError: an unknown name.
    """
    known = {word(key): key for key in SHIPPED}
    if word(name) not in known:
        raise ValueError(f"critic: got {name!r}, wanted one of {', '.join(known)}")
    title = known[word(name)]
    family, resolution = SHIPPED[title]
    build = partial(models.build, family, resolution=resolution, z_dim=Z_DIM, width=width)
    return Network(title, (3, resolution, resolution), build, width)


def word(name: str) -> str:
    """A name as one writes it in a command: "ResNet 32" is resnet-32."""
    return name.lower().replace(" ", "-")


def user(spec: str, shape: str, arguments: str = "") -> Network:
    """A critic of the user's.

    Args:
        spec: "module:Class" or "file.py:Class", or a function that returns a module; modules may lie in the current
            folder.
        shape: of one input without the batch, "3,64,64".
        arguments: what to call it with, as Python writes it: "64, norm='none'"; literals only.

    Raises:
        ValueError: one of them is not of that form, or nothing importable, or what it makes has no weights.
    """
    try:
        extents = tuple(int(extent) for extent in shape.split(","))
    except ValueError:
        extents = ()
    if not extents or min(extents) < 1:
        raise ValueError(
            f"--shape: got {repr(shape) if shape else 'none'}, wanted the shape of one input, such as 3,64,64"
        )
    args, kwargs = _literals(arguments)
    factory = load_object(spec, "--net")
    try:
        made = factory(*args, **kwargs)
    except TypeError as error:
        raise ValueError(f"--args: {spec}({arguments}) raised {error}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"--net: {spec} gave a {type(made).__name__}, wanted a torch.nn.Module")
    try:
        with torch.no_grad():
            scores = made(torch.zeros(2, *extents))
    except Exception as error:
        where = f"{spec} fails on inputs of (2, {', '.join(map(str, extents))})"
        advice = ""
        if isinstance(error, TypeError) and "missing" in str(error):
            advice = "; it is given inputs alone: name a class whose forward(self, x) makes the rest and calls yours"
        elif len(extents) == 3 and extents[2] < min(extents[:2]):
            advice = f"; channels come first: {extents[2]},{extents[0]},{extents[1]}"
        raise ValueError(f"--net, --shape: {where}: {first_line(error)}{advice}") from error
    if not isinstance(scores, torch.Tensor):
        raise not_a_tensor(scores)
    if not scores.dim() or len(scores) != 2:
        shape = tuple(scores.shape)
        raise ValueError(f"--net: {spec} gives {shape} for 2 inputs, wanted a row for each, such as one logit")
    if next(made.parameters(), None) is None:
        raise ValueError(f"--net: {spec} has no weights, wanted a critic to train")
    network = Network(spec.rpartition(":")[2], extents, lambda: (None, factory(*args, **kwargs)))
    refused = _of_channels_last(network)
    return replace(network, contiguous=bool(refused), notes=(*_of_several(scores), *refused))


def _of_several(scores: torch.Tensor) -> tuple[str, ...]:
    """What to say of a network that gives a sample several numbers, as maps of scores are, or a generator's images."""
    if scores[0].numel() == 1:
        return ()
    shape = "x".join(map(str, scores.shape[1:]))
    return (f"the critic's output is {shape} for each sample, not one score: the gradient is that of their sum",)


def _of_channels_last(network: Network) -> tuple[str, ...]:
    """Why a critic that takes contiguous images takes no others; empty where it does."""
    layout = torch.channels_last
    try:
        with torch.no_grad():
            network.critic(torch.float32, layout)(network.images(2, torch.float32, layout))
    except Exception as error:
        said = first_line(error)
        if "view size is not compatible" in said:
            return ("the critic uses .view, which takes no channels_last: rows are contiguous; .flatten(1) has both",)
        return (f"the critic takes no channels_last ({said}): rows are contiguous",)
    return ()


def _literals(arguments: str) -> tuple[list[object], dict[str, object]]:
    try:
        call = ast.parse(f"f({arguments})", mode="eval").body
        return (
            [ast.literal_eval(argument) for argument in call.args],
            {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords},
        )
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"--args: got {arguments!r}, wanted Python literals such as \"64, norm='none'\"") from error

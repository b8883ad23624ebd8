"""What a comparison is made of: where it is run, the ways to take one step, and what they should all give."""

import contextlib
import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from gnfast.bench.cost import Cost
from gnfast.bench.critic_steps import Result
from gnfast.bench.mode import Mode, tuned

Step = Callable[[], Result]

CAPTURED, EAGER, NO_REWRITES = "gnfast, CUDA graph", "gnfast, eager", "gnfast, no rewrites"
STATIC = "gnfast, static=True"
A, B, C = "a: double backward as the papers run it", "b: a, tuned", "c: b, repaired"
D, E = "d: torch.compile of torch.func", "e: c in a CUDA graph"
STRONGEST = "strongest: c compiled"
OURS = (CAPTURED, EAGER, NO_REWRITES, STATIC)
PLAIN, PLAIN_CAPTURED = "no normalisation", "no normalisation, CUDA graph"
RESCALED = "Faster-GNGAN's rescaled gradient"
"""Names of variants. The compiled ones are captured in CUDA graphs too, where there are any (`Setup.graphs`)."""


@dataclass(frozen=True)
class Setup:
    """Where cases are run, in which of `mode.PRECISIONS`, and on how many images per step.

    Attributes:
        graphs: include the variants that are captured in a CUDA graph.
        compiled: include the variants that torch.compile makes, which take a minute or more to make.
        search: let torch.compile search for kernels.
        layout: of images and convolution weights in all variants but the papers' own.
    """

    device: torch.device
    precision: str = "float32"
    batch: int = 64
    graphs: bool = False
    compiled: bool = False
    search: bool = False
    layout: torch.memory_format = torch.channels_last

    @property
    def tuned(self) -> Mode:
        """The mode of all variants but the papers' own."""
        return replace(tuned(self.precision), layout=self.layout)

    def chosen(self, variants: "dict[str, Variant]") -> "dict[str, Variant]":
        return {
            name: variant
            for name, variant in variants.items()
            if (self.graphs or not variant.captured) and (self.compiled or not variant.compiled)
        }


@dataclass(frozen=True)
class Variant:
    """One way to take a step.

    Attributes:
        make: makes the step, which may compile or capture; called in the variant's mode.
        mode: how it runs.
        budget: the variant whose error this one may double, which may be itself; None for the floor of its precision.
        checked: whether its results are compared with the truth; what is no normalisation has none.
        captured: the step replays a CUDA graph.
        compiled: torch.compile makes it.
        own_precision: the step casts by itself, so that no autocast is around it.
    """

    make: Callable[[], Step]
    mode: Mode
    budget: str | None = None
    checked: bool = True
    captured: bool = False
    compiled: bool = False
    own_precision: bool = False

    def active(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        """What is around the step when it is made and when it runs."""
        return (replace(self.mode, autocast=None) if self.own_precision else self.mode).active(device)

    @property
    def precision(self) -> str:
        """A key of `gate.FLOORS`."""
        if self.mode.autocast is not None:
            return "bfloat16"
        return "tf32" if self.mode.conv_tf32 or self.mode.matmul_tf32 else "float32"


@dataclass(frozen=True)
class Case:
    """One step, several ways.

    Attributes:
        step, network: their names, as "critic step" and "ResNet 32".
        shape: of one image.
        variants: by name, the most telling first.
        truth: what they should compute, in float64, or what plain PyTorch does.
        cost: what the step costs at least; None where that is not known.
        trains: a step is an iteration of training.
    """

    step: str
    network: str
    shape: tuple[int, ...]
    setup: Setup
    variants: dict[str, Variant]
    truth: Callable[[], Result]
    cost: Cost | None
    notes: list[str] = field(default_factory=list)
    trains: bool = False

    @property
    def ours(self) -> tuple[str, ...]:
        """The variants that ratios may be of: the first that can be prepared is."""
        return tuple(name for name in (CAPTURED, EAGER) if name in self.variants)

    def prepare(self, name: str) -> Step:
        """A variant's step, compiled and captured where that is its way; it runs in `variants[name].active(device)`."""
        with self.variants[name].active(self.setup.device):
            return self.variants[name].make()


_TRUTHS: dict[tuple[object, ...], Result] = {}


def remembered(key: tuple[object, ...], truth: Callable[[], Result]) -> Result:
    """What `truth` gives, computed once; the last few are kept."""
    if key not in _TRUTHS:
        while len(_TRUTHS) >= 6:
            del _TRUTHS[next(iter(_TRUTHS))]
        _TRUTHS[key] = truth()
    return _TRUTHS[key]


def free() -> None:
    """Hands a GPU's unused memory back, before the next variant needs it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()

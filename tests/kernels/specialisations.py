"""Which specialisations of the Triton kernels the steps of a GPU run launch, found and compiled without a GPU:

    python -m tests.kernels.specialisations [step ...]   a table: registers, spills, shared memory, seconds of compiling

Steps run on the CPU with full sizes, and every launch only compiles its kernel for a GPU, by Triton's own reading of
the arguments: dtypes, addresses and sizes divisible by 16, constants. What would take long on a CPU is left uncomputed.
"""

import contextlib
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

from gnfast.bench import iteration, spectral_ways
from gnfast.bench.critic_steps import Normalize, critic_step, four_passes, generator_step, without_rewrites
from gnfast.bench.critics import shipped
from gnfast.bench.gpu_ways import IN_TRITON, Uncomputed, gpu_ways
from gnfast.bench.mode import tuned
from gnfast.data import Batches
from gnfast.train.device_draws import DeviceDraws
from gnfast.train.state import State
from tests.kernels.cubin import resources


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """A kernel as it was compiled, and how long that took."""

    name: str
    module: str
    compiled: Any
    seconds: float

    def __str__(self) -> str:
        """A row of the table; of the arguments that are no constants, those divisible by 16 are marked."""
        source, metadata = self.compiled.src, self.compiled.metadata
        used = resources(self.compiled.asm["cubin"])
        numbers = f"{used['REG']:4} {used['LOCAL'] + used['STACK']:4} {metadata.shared:7} {self.seconds:6.2f}"
        constants = " ".join(f"{source.fn.arg_names[path[0]]}={value}" for path, value in source.constants.items())
        arguments = " ".join(
            f"{name}:{kind}{'/16' if source.attrs.get((index,)) else ''}"
            for index, (name, kind) in enumerate(source.signature.items())
            if kind != "constexpr"
        )
        return f"{self.name:36} {numbers}  {constants} num_warps={metadata.num_warps} | {arguments}"


class _Target:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.capability, self.target = capability, GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        # Kernels are kept by device.
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


@contextlib.contextmanager
def recording(capability: int, triton: tuple[str, ...] = IN_TRITON) -> Iterator[dict[str, Specialisation]]:
    """Inside, tensors on the CPU go the ways of a GPU's as far as kernels are concerned, which are compiled, not run.

    Args:
        capability: of the GPU: 90.
        triton: the operations that Triton's kernels do.

    Yields:
        hash: specialisation, in the order of the first launches.
    """
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    found: dict[str, Specialisation] = {}
    run = JITFunction.run

    def compile_alone(self, *args, grid, warmup, **kwargs):
        started = time.perf_counter()
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        seconds = time.perf_counter() - started
        found.setdefault(compiled.hash, Specialisation(self.__name__, self.module, compiled, seconds))

    with contextlib.ExitStack() as stack:
        stack.enter_context(gpu_ways(triton))
        stack.enter_context(mock.patch.object(JITFunction, "run", compile_alone))
        stack.enter_context(mock.patch.object(driver, "_active", _Target(capability)))
        stack.enter_context(Uncomputed())
        yield found


def part_step(
    step: Callable[..., Any], way: Normalize, name: str, batch: int, precision: str, device: str = "cpu"
) -> None:
    """A critic's step, or its part of a generator's, as `gnfast.bench.cases` runs it."""
    network, mode = shipped(name), tuned(precision)
    with mode.active(torch.device(device)):
        net = network.critic(torch.float32, mode.layout, device)
        step(way, net, network.images(batch, torch.float32, mode.layout, device))


def training_step(name: str, batch: int, precision: str) -> None:
    """A whole iteration of training."""
    network = shipped(name)
    config = dataclasses.replace(iteration.settings(network, batch), precision=precision, memory_format="channels_last")
    state = State(config, iteration.noise(network, batch), torch.device("cpu"))
    state.generates_ahead = config.n_dis > 1
    state.update()


def draws_step(name: str, batch: int, **changes: Any) -> None:
    """What an iteration takes, drawn on the device."""
    network = shipped(name)
    config = dataclasses.replace(iteration.settings(network, batch), **changes)
    DeviceDraws(config, Batches(iteration.noise(network, batch), batch), torch.float32)(
        torch.zeros(1, dtype=torch.int64)
    )


def spectral_step(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Spectral normalisation of a critic's layers, forward and backward."""
    layers = spectral_ways.layers_of(shipped(name).critic(torch.float32, torch.contiguous_format))
    ways, directions = spectral_ways.make(layers, layout, dtype, "cpu")
    spectral_ways.step(ways[spectral_ways.MODEL], directions)


BATCHES = {"CNN 32": 128, "ResNet 32": 128, "ResNet 256": 16}
"""Sixteen images of 256×256 specialise as thirty-two do."""

STEPS: dict[str, Callable[[], None]] = {
    **{
        f"{kind}, {name}, {precision}": partial(part_step, step, way, name, batch, precision)
        for name, batch in BATCHES.items()
        for precision in ("bfloat16", "tf32")
        for kind, step, way in (
            ("critic step", critic_step, four_passes),
            ("generator step", generator_step, four_passes),
            ("critic step without rewrites", critic_step, without_rewrites),
        )
    },
    **{
        f"iteration, {name}, {precision}": partial(training_step, name, 64, precision)
        for name in ("CNN 32", "ResNet 32")
        for precision in ("bfloat16", "float32")
    },
    **{f"draws, {name}": partial(draws_step, name, batch) for name, batch in BATCHES.items()},
    **{
        f"spectral norm, {name}, {str(dtype)[6:]}, {str(layout)[6:]}": partial(spectral_step, name, dtype, layout)
        for name in ("CNN 32", "ResNet 32")
        for dtype in (torch.float32, torch.bfloat16)
        for layout in (torch.channels_last, torch.contiguous_format)
    },
}
"""What a GPU run measures and trains. Spectral normalisation is Triton's only where the CUDA library is missing."""


def specialisations(step: str, capability: int) -> dict[str, Specialisation]:
    """What one of `STEPS` launches: hash: specialisation."""
    spectral = ("spectral",) if step.startswith("spectral") else ()
    with recording(capability, (*IN_TRITON, *spectral)) as found:
        STEPS[step]()
    return found


def main(words: list[str]) -> None:
    """Prints the table, each specialisation with the first step that launches it."""
    import triton

    total = 0.0
    seen: set[str] = set()
    print(f"Triton {triton.__version__}, sm_90; first launched in: kernel, registers, spills, shared memory, seconds")
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        for step in STEPS:
            if words and not any(word in step for word in words):
                continue
            found = specialisations(step, 90)
            new = {key: made for key, made in found.items() if key not in seen}
            print(f"\n{step}: {len(found)} specialisations, {len(new)} of them new", flush=True)
            for made in new.values():
                print(f"  {made}", flush=True)
            seen |= new.keys()
            total += sum(made.seconds for made in new.values())
    print(f"\n{len(seen)} specialisations, {total:.1f} s of compiling one after the other")


if __name__ == "__main__":
    main(sys.argv[1:])

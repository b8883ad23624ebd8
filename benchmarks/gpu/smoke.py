"""Whether it works at all: the steps and the program that everything else is built on, each once."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gpu import tests
from benchmarks.gpu.section import Context, Row, Section


def captured_step(context: Context, network: str, step: str, precision: str) -> Iterator[Row]:
    """One captured step, which also compiles what the headline needs of Triton: processes share what is compiled."""
    import torch

    from gnfast.bench import steps
    from gnfast.bench.agree import typical_error
    from gnfast.bench.baselines import repaired
    from gnfast.bench.graph import captured
    from gnfast.bench.mode import tuned
    from gnfast.bench.networks import shipped
    from gnfast.bench.ways import four_passes

    device, mode = torch.device(context.device), tuned(precision)
    chosen = shipped(network, width=0.05 if context.quick else 1.0)
    x = chosen.images(2 if context.quick else 128, torch.float32, mode.layout, device)
    take = partial(getattr(steps, f"{step}_step"), net=chosen.critic(torch.float32, mode.layout, device), x=x)
    with mode.active(device):
        result = captured(partial(take, four_passes), device)()
        values = result.values.float()
        if not torch.isfinite(values).all():
            raise AssertionError(f"{int((~torch.isfinite(values)).sum())} of {values.numel()} values are not finite")
        # PyTorch's own second-order convolutions would be searched for kernels, which may take all of the time.
        expected = take(repaired).values
    # A rough check; the headline compares with float64.
    error = typical_error(values, expected)
    yield {"network": network, "step": step, "precision": precision, "differs_from_double_backward_by": error}
    if not error < 0.5:
        raise AssertionError(f"{step} step of {network} in {precision}: differs from double backward by {error:.2g}")


def iteration(context: Context) -> Iterator[Row]:
    """A whole captured iteration, three times as it is and twice replayed."""
    import math

    import torch

    from gnfast.bench.iteration import noise, settings
    from gnfast.bench.networks import shipped
    from gnfast.train.state import State

    network = shipped("ResNet 32", width=0.05 if context.quick else 1.0)
    with graph_mode(context):
        state = State(settings(network, 2 if context.quick else 64), noise(network, 256), torch.device(context.device))
        for _ in range(5):
            state.update()
        losses = state.take_losses()
    graph = state.captured is not None
    yield {"graph": graph, "losses": losses}
    if not graph or not all(map(math.isfinite, losses.values())):
        raise AssertionError(f"a captured iteration: {'not captured' if not graph else losses}")


def training(context: Context) -> Iterator[Row]:
    """`train()` with all that it does on the way, stopped in the middle and continued."""

    from gnfast.config.config import Config
    from gnfast.io.rows import read_rows
    from gnfast.train.loop import train

    last, every = (8, 4) if context.quick else (60, 10)
    with tempfile.TemporaryDirectory() as folder, graph_mode(context):
        settings: dict[str, Any] = {
            "data": "digits",
            "channels": 1,
            "resolution": 32,
            "width": 0.05 if context.quick else 1.0,
            "batch_d": 4 if context.quick else 64,
            "batch_g": 4 if context.quick else 128,
            "precision": "bfloat16",
            "device": context.device,
            "tensorboard": False,
            "run_dir": folder,
            "data_root": folder,
        }
        often = dict.fromkeys(("log_every", "sample_every", "checkpoint_every", "probe_every"), every)
        for steps in (last // 2, last):
            outcome = train("smoke", Config(**settings, **often, steps=steps), progress=False, echo=print)
        rows = read_rows(Path(folder, "metrics.jsonl"))
    yield {"steps": outcome.step, "finished": outcome.finished, "rows": len(rows), "last": rows[-1]}
    if outcome.step != last or not any("loss_generator" in row and row["step"] == last for row in rows):
        raise AssertionError(f"train() ended after step {outcome.step} of {last} with {len(rows)} rows")


@contextlib.contextmanager
def graph_mode(context: Context) -> Iterator[None]:
    """In a dry run, whatever training does because of CUDA graphs is done on the CPU too, and the graph is not."""
    if context.device == "cuda":
        yield
        return
    from gnfast.train import state

    decide: Callable[..., bool] = lambda config, device, group: config.cuda_graph  # noqa: E731
    with mock.patch.object(state, "_can_be_captured", decide):
        yield


SECTIONS = {
    "smoke_kernels": Section(tests.kernels, 40),
    "smoke_iteration": Section(iteration, 40),
    "smoke_training": Section(training, 40),
    **{
        f"smoke_{step}_{network.split()[0].lower()}_{precision}": Section(
            partial(captured_step, network=network, step=step, precision=precision), 40
        )
        for network in ("ResNet 32", "CNN 32")
        for precision in ("bfloat16", "tf32")
        for step in ("critic", "generator")
    },
}

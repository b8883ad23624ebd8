"""Whether it works at all: the step that everything else is built on, once."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.section import Context, Row
from gnfast.bench import critic_steps
from gnfast.bench.baselines import repaired
from gnfast.bench.critics import shipped
from gnfast.bench.gate import typical_error
from gnfast.bench.graph import captured
from gnfast.bench.mode import tuned


def captured_step(context: Context, network: str, step: str, precision: str) -> Iterator[Row]:
    """One captured step, which also compiles what the headline needs of Triton: processes share what is compiled."""
    device, mode = torch.device(context.device), tuned(precision)
    chosen = shipped(network, width=0.05 if context.quick else 1.0)
    x = chosen.images(2 if context.quick else 128, torch.float32, mode.layout, device)
    take = partial(getattr(critic_steps, f"{step}_step"), net=chosen.critic(torch.float32, mode.layout, device), x=x)
    with mode.active(device):
        result = captured(partial(take, critic_steps.four_passes), device)()
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

"""What scores wait for: images through the Inception network."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.section import Context, Row
from gnfast.bench.clock import device_us
from gnfast.bench.mode import Mode
from gnfast.metrics.inception import Inception, build_inception


def evaluation(context: Context) -> Iterator[Row]:
    """Images per second through the Inception network, with weights drawn at random."""
    device, batch, side = torch.device(context.device), 2 if context.quick else 128, 75 if context.quick else 299
    net = build_inception(Inception().state_dict()).to(device)
    x = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    for tf32 in (False, True):
        with torch.no_grad(), Mode(conv_tf32=tf32, search=True).active(device):
            first = net(x)
            times = device_us(partial(net, x), device, budget_s=context.budget(1.0))
        values = first[0] if isinstance(first, tuple) else first
        if not torch.isfinite(values).all():
            raise AssertionError("features are not finite")
        rate = round(batch / times["median_us"] * 1e6)
        yield {"batch": batch, "side": side, "tf32": tf32, "images_per_s": rate, **times}

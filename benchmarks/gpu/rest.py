"""What else there is to know: larger critics, single kernels, choices of the tuner, sampling and evaluation."""

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu import convolutions, small_kernels
from benchmarks.gpu.compare import compare
from benchmarks.gpu.section import Context, Row, Section


def evaluation(context: Context) -> Iterator[Row]:
    """Images per second through the Inception network, with weights drawn at random: what scores wait for."""
    import torch

    from gnfast.bench.clock import device_us
    from gnfast.metrics.inception import Inception, build_inception

    device, batch, side = torch.device(context.device), 2 if context.quick else 128, 75 if context.quick else 299
    net = build_inception(Inception().state_dict()).to(device)
    x = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    for tf32 in (False, True):
        with torch.no_grad(), torch.backends.cudnn.flags(benchmark=True, allow_tf32=tf32):
            first = net(x)
            times = device_us(partial(net, x), device, budget_s=context.budget(1.0))
        values = first[0] if isinstance(first, tuple) else first
        if not torch.isfinite(values).all():
            raise AssertionError("features are not finite")
        yield {
            "batch": batch,
            "side": side,
            "tf32": tf32,
            "images_per_s": round(batch / times["median_us"] * 1e6),
            **times,
        }


_256 = partial(compare, network="ResNet 256", batch=32, precision="bfloat16")
_32 = partial(compare, network="ResNet 32", batch=128, precision="bfloat16")

SECTIONS = {
    "critic_256": Section(partial(_256, case="critic", budget_s=1.5), 60),
    "convolutions": Section(convolutions.convolutions, 45),
    "launches": Section(small_kernels.launches, 15),
    "sign_bits": Section(small_kernels.sign_bits, 20),
    "generator_256": Section(partial(_256, case="generator", budget_s=1.5), 45),
    "sampling": Section(partial(_32, case="sampling"), 25),
    "penalties": Section(partial(_32, case="penalties"), 30),
    "evaluation": Section(evaluation, 25),
    "critic_128": Section(partial(compare, case="critic", network="ResNet 128", batch=64, precision="bfloat16"), 45),
    "critic_48": Section(partial(compare, case="critic", network="ResNet 48", batch=128, precision="bfloat16"), 25),
    "tiles": Section(convolutions.tiles, 60),
    "tuner": Section(convolutions.tuner, 120),
}

"""Spectral normalisation of all layers at once against PyTorch's, layer by layer."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.section import Context, Row
from gnfast.bench import spectral_ways
from gnfast.bench.clock import device_us
from gnfast.bench.graph import captured


def spectral_norm(context: Context) -> Iterator[Row]:
    """Spectral normalisation of all layers of a model against PyTorch's parametrization.

    Both run as CUDA graphs, so that the device's time is measured and not the host's, and eagerly. The floor is the
    time to copy the bytes that must move at least: W in and W̄ out; for the backward G and W in and the gradient out.
    """
    layouts = [(torch.float32, torch.contiguous_format)]
    if not context.quick:
        layouts += [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)]
    for network in ("ladder 8-16",) if context.quick else ("SN-GAN CNN", "ladder 64-1024"):
        for dtype, layout in layouts:
            row = {"network": network, "dtype": str(dtype), "layout": str(layout)}
            yield row | _measured(context, network, layout, dtype)


def _measured(context: Context, network: str, layout: torch.memory_format, dtype: torch.dtype) -> Row:
    device = torch.device(context.device)
    torch.manual_seed(0)
    ways, directions = spectral_ways.make(spectral_ways.NETWORKS[network](), layout, dtype, device)
    weight_bytes = sum(direction.nbytes for direction in directions)
    row: Row = {"weight_bytes": weight_bytes, "gate": "not checked"}
    if dtype == torch.float32:  # PyTorch's own σ is as rough as bfloat16; the tests bound that error.
        different = spectral_ways.disagreement(ways, directions)
        row |= {"gate": "green"} if different is None else {"gate": "red", "why": different}
    timed = partial(device_us, device=device, budget_s=context.budget(0.1))
    for part, function, weights_moved in (
        ("forward", lambda net: net(), 2),
        ("forward and backward", lambda net: spectral_ways.step(net, directions), 5),
    ):
        with context.alone():
            eager = {way: timed(partial(function, net)) for way, net in ways.items()}
        graphs = {way: captured(partial(function, net), device) for way, net in ways.items()}
        with context.alone():
            times = {way: timed(graph) for way, graph in graphs.items()}
        baseline, ours = (times[way]["median_us"] for way in (spectral_ways.PYTORCH, spectral_ways.MODEL))
        row[part] = {
            "times": times,
            "eager_times": eager,
            "ratio_to_pytorch": None if row["gate"] == "red" else round(ours / baseline, 3),
            "fraction_of_bandwidth_floor": context.fraction_of_bandwidth(weights_moved * weight_bytes, ours),
        }
    return row

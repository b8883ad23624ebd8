"""Spectral normalisation of all layers at once against PyTorch's, layer by layer."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.gpu.section import Context, Row


def spectral(context: Context) -> Iterator[Row]:
    """Spectral normalisation of all layers of a model against PyTorch's parametrization.

    Both run as CUDA graphs, so that the device's time is measured and not the host's, and eagerly. The floor is the
    time to copy the bytes that must move at least: W in and W̄ out; for the backward G and W in and the gradient out.
    """
    import torch

    layouts = [(torch.float32, torch.contiguous_format)]
    if not context.quick:
        layouts += [(torch.float32, torch.channels_last), (torch.bfloat16, torch.contiguous_format)]
    for network in ("ladder 8-16",) if context.quick else ("SN-GAN CNN", "ladder 64-1024"):
        for dtype, layout in layouts:
            row = {"network": network, "dtype": str(dtype), "layout": str(layout)}
            yield row | _spectral_row(context, network, layout, dtype)


def _spectral_row(context: Context, network: str, layout: Any, dtype: Any) -> Row:
    import torch

    from benchmarks.bench_spectral import NETWORKS, check
    from gnfast.bench import spectral
    from gnfast.bench.clock import device_us
    from gnfast.bench.graph import captured

    device = torch.device(context.device)
    torch.manual_seed(0)
    layers = NETWORKS[network]() if network in NETWORKS else [torch.nn.Conv2d(8, 16, 3)]
    ways = spectral.make(layers, layout, dtype, device)
    directions = spectral.directions_for(ways[spectral.PYTORCH])
    weight_bytes = sum(direction.nbytes for direction in directions)
    budget_s = context.budget(0.1)
    row: Row = {"weight_bytes": weight_bytes, "gate": "not checked"}
    if dtype == torch.float32:  # PyTorch's own σ is as rough as bfloat16; the tests bound that error.
        try:
            check(ways, directions)
            row["gate"] = "green"
        except AssertionError as error:
            row |= {"gate": "red", "why": str(error)}
    for part, function, weights_moved in (
        ("forward", lambda net: net(), 2),
        ("forward and backward", lambda net: spectral.step(net, directions), 5),
    ):
        with context.alone():
            eager = {way: device_us(partial(function, net), device, budget_s=budget_s) for way, net in ways.items()}
        graphs = {way: captured(partial(function, net), device) for way, net in ways.items()}
        with context.alone():
            times = {way: device_us(graph, device, budget_s=budget_s) for way, graph in graphs.items()}
        baseline, ours = times[spectral.PYTORCH]["median_us"], times[spectral.MODEL]["median_us"]
        row[part] = {
            "times": times,
            "eager_times": eager,
            "ratio_to_pytorch": None if row["gate"] == "red" else round(ours / baseline, 3),
            "fraction_of_bandwidth_floor": context.fraction_of_bandwidth(weights_moved * weight_bytes, ours),
        }
    return row

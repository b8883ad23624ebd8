"""A step as a CUDA graph: recorded once, then launched as a whole."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch

from gnfast.steps.captured import record_graph

T = TypeVar("T")


def captured(function: Callable[[], T], device: torch.device) -> Callable[[], T]:
    """A function that replays what `function` does and returns the same tensors every time, filled again.

    Args:
        function: work on the device with inputs that stay where they are; it runs three times before the capture, on
            the stream that it is captured on.
        device: a GPU; on a CPU there is nothing to capture, and the function itself comes back.
    """
    if device.type != "cuda":
        return function
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        graph, result = record_graph(function, stream)
    return partial(_replay, graph, result, function)


def _replay(graph: torch.cuda.CUDAGraph, result: T, function: Callable[[], T]) -> T:
    # The function holds the weights and inputs that the graph reads: they must live on.
    graph.replay()
    return result

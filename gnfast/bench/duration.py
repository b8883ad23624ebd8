"""About how long a measurement takes, said before it begins."""

from collections.abc import Collection

import torch

from gnfast.bench.case import Setup
from gnfast.bench.clock import interleaved_ms
from gnfast.bench.critics import Network

ROWS, FORWARDS = 8, 5
"""Of a typical case: its rows, and the forwards of the critic that a step of one costs."""
_COMPILED = {"critic": 2, "generator": 1}
_COMPILATION_S = 60


def about_s(network: Network, setup: Setup, names: Collection[str], rounds: int, seconds: float) -> float:
    """Seconds that these cases of a network take, to a factor of about two, by the time of one forward.

    Args:
        network, setup, names: what is measured.
        rounds, seconds: of each row, at least; gnfast's own step takes turns in each round.
    """
    net = network.critic(torch.float32, setup.tuned.layout, setup.device)
    x = network.images(setup.batch, torch.float32, setup.tuned.layout, setup.device)
    with setup.tuned.active(setup.device), torch.no_grad():
        forward_s = interleaved_ms({"forward": lambda: net(x)}, rounds=3, warmup=1)["forward"]["median_ms"] / 1e3
    compiled = sum(_COMPILED.get(name, 0) for name in names) if setup.compiled else 0
    row_s = max(seconds, 2 * (rounds + 1) * FORWARDS * forward_s)
    return len(names) * ROWS * row_s + compiled * (row_s + _COMPILATION_S)


def said(seconds: float) -> str:
    """ "about 30 seconds", "about 12 minutes", "about 3 hours"."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {max(10, round(seconds, -1)):.0f} seconds"

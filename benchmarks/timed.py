"""What the benchmarks of `make bench` share: where they run, one call that is timed, and the rates at its median."""

from collections.abc import Callable

import pytest

from gnfast.bench.clock import synchronize

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def time_call(benchmark, group: str, call: Callable[[], object], rates: dict[str, float], rounds: int = 0) -> None:
    """Times a call, which is waited for; it was checked before.

    Args:
        group: the rows that are compared with each other.
        rates: what one call does, by the name that its rate has in `extra_info`.
        rounds: so many, for a call that takes seconds; pytest-benchmark's choice if 0.
    """

    def timed() -> None:
        call()
        synchronize()

    benchmark.group = group
    if rounds:
        benchmark.pedantic(timed, rounds=rounds)
    else:
        benchmark(timed)
    if benchmark.stats:
        benchmark.extra_info |= {rate: round(done / benchmark.stats["median"], 2) for rate, done in rates.items()}

"""What Triton says of the time that it compiles."""

import os
from types import SimpleNamespace

import pytest

from gnfast.kernels.compile_times import compile_times

knobs = pytest.importorskip("triton.knobs")


def test_the_listener_of_others_goes_on_and_is_put_back(monkeypatch):
    told = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **given: told.append(given))
    before = knobs.compilation.listener
    with compile_times() as seconds:
        knobs.compilation.listener(times=SimpleNamespace(total=1_500_000), src="kernel", cache_hit=False)
    assert seconds == [1.5] and told[0]["src"] == "kernel" and told[0]["times"].total == 1_500_000
    assert knobs.compilation.listener is before
    with pytest.raises(ZeroDivisionError), compile_times():
        _ = 1 / 0
    assert knobs.compilation.listener is before


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
def test_a_compiled_kernel_is_counted(monkeypatch):
    from gnfast.kernels.scaled_sums.triton import _scaled_sums_totals_kernel
    from tests.kernels.test_triton_compile import test_scaled_sums as compile_for

    monkeypatch.setattr(knobs.compilation, "always_compile", True)
    with compile_times() as seconds:
        compile_for(_scaled_sums_totals_kernel, "fp32", 90)
    assert len(seconds) == 1 and 0 < seconds[0] < 100

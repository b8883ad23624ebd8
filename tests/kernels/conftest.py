import os
import shutil
from functools import partial

import pytest

from gnfast.kernels import autotune, backend, tuning_table
from gnfast.kernels.join import plain
from tests.processes import assert_passes_on


@pytest.fixture
def use(monkeypatch):
    """use(operation, device type, *backends): makes these the choices there; `module` stands for the last one's."""

    def choose(operation, device_type, *backends, module=None):
        monkeypatch.setitem(backend.CHOSEN, (operation, device_type), backends)
        if module is not None:
            monkeypatch.setitem(backend.LOADED, (operation, backends[-1]), module)
        return module

    return choose


@pytest.fixture
def routed(request, device, implementation, use):
    """Sends the public functions of the file's OPERATION through the implementation under test."""
    operation = request.module.OPERATION
    if implementation == "operators":
        assert backend.choices(operation, device)[0] != "torch", f"the library for {device} is not built"
    elif implementation == "triton" and device == "cpu":
        pytest.skip("Triton's kernels run on GPUs")
    else:
        use(operation, device, implementation)


@pytest.fixture
def run_portable(device, implementation):
    """run_portable(file, select): runs some of its tests in a process that believes to be on one without AVX2."""
    if device != "cpu" or implementation != "operators":
        pytest.skip("the CPU operators have two sets of kernels")
    if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
        pytest.skip("is the inner run")
    return partial(assert_passes_on, "default")


@pytest.fixture
def fused(monkeypatch):
    """Plans are fused although a join is several operations."""
    monkeypatch.setattr(plain, "FUSES", True)


@pytest.fixture
def tuner(monkeypatch, tmp_path):
    """Turns the tuner on, with a cache of its own."""
    monkeypatch.setenv("GNFAST_AUTOTUNE", "1")
    monkeypatch.setenv("GNFAST_CACHE", str(tmp_path))
    autotune._loaded.cache_clear()
    yield
    autotune._loaded.cache_clear()


@pytest.fixture
def ships(monkeypatch, tmp_path):
    """ships(file): lets that table ship for CPUs, in place of what does."""
    monkeypatch.delenv("GNFAST_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning_table, "FOLDER", tmp_path / "tuned")

    def forget():
        tuning_table.shipped.cache_clear()
        tuning_table._shipped.cache_clear()

    def put(file):
        tuning_table.FOLDER.mkdir(exist_ok=True)
        shutil.copy(file, tuning_table.FOLDER / "cpu.json")
        forget()

    forget()
    yield put
    forget()

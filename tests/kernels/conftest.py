import pytest

from gnfast.kernels import autotune, backend
from gnfast.kernels.join import plain


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

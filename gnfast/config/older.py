"""Settings as earlier versions wrote them, under the values that they have now."""

from typing import Any

# A setting, the value that it had, and what stands for it.
_VALUES: tuple[tuple[str, Any, dict[str, Any]], ...] = (
    ("model", "dcgan-table3", {"model": "sngan-cnn"}),
    ("model", "layered-3-elu", {"model": "layered-3", "activation": "elu"}),
    ("model", "layered-3-softplus-1", {"model": "layered-3", "activation": "softplus"}),
    ("model", "layered-3-softplus-20", {"model": "layered-3", "activation": "softplus-20"}),
    ("weight_norm", True, {"weight_norm": "learned"}),
    ("weight_norm", False, {"weight_norm": "none"}),
)


def current(saved: dict[str, Any]) -> dict[str, Any]:
    """Settings as a file of any version holds them, with today's values."""
    for name, old, new in _VALUES:
        if type(saved.get(name)) is type(old) and saved[name] == old:
            saved = {**saved, **new}
    return saved

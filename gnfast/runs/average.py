"""What the moving average of a short run still is: the generator itself, or the weights that it began with."""

from collections.abc import Mapping
from typing import Any

from gnfast.config.config import Config

# What the average may still have of its first weights without a word.
SHARE = 0.1


def copied(settings: Mapping[str, Any], step: int) -> str:
    """One line where the moving average has not begun, so that its scores are the generator's own; else empty."""
    start = settings.get("ema_start", Config.ema_start)
    if type(start) is not int or not 0 < step < start:
        return ""
    return f"until step {start:,} (--ema-start) the moving average is the generator itself"


def unmoved(settings: Mapping[str, Any], step: int) -> str:
    """One line where more than a tenth of the moving average is the weights that it began with; else empty.

    Before `ema_start` it is a copy of the generator. The last copy counts `decay ** n` after n steps that average; one
    of the second half of the run has been trained, and is no matter.

    Args:
        settings: the run's, as its config.json has them.
        step: generator updates so far.
    """
    decay, start = settings.get("ema_decay", Config.ema_decay), settings.get("ema_start", Config.ema_start)
    # A folder may be anyone's.
    if type(decay) not in (float, int) or type(start) is not int or not 0 < decay < 1:
        return ""
    first = max(start, 1) - 1
    share = float(decay) ** max(0, step - first)
    if step <= first or share <= SHARE or 2 * first > step:
        return ""
    part = f"{min(100 * share, 99.9):.1f} % the weights of step {first:,}"
    return f"after step {step:,} the moving average (--ema-decay {decay:g}) is still {part}"

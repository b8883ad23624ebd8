"""What `gnfast eval` says while it measures."""

import dataclasses
import sys
import time
from typing import Any

from torch import Tensor
from tqdm import tqdm

from gnfast.io.numbers import number
from gnfast.metrics import FeatureExtractor

# Where there is no bar, a line says so often how far it is.
LINE_SECONDS = 60.0


def progress() -> bool:
    """Whether bars are shown."""
    return sys.stderr.isatty()


def say(line: str) -> None:
    """One line that is no part of the result."""
    print(line, file=sys.stderr, flush=True)


def told(extractor: FeatureExtractor, what: str, total: int) -> FeatureExtractor:
    """The extractor, which says now and then how many of the `total` images it has been shown, where no bar does."""
    began = last = time.monotonic()
    seen = 0

    def function(images: Tensor) -> Any:
        nonlocal seen, last
        result = extractor.function(images)
        now, seen = time.monotonic(), seen + len(images)
        if now - last >= LINE_SECONDS and seen < total:
            last, speed = now, seen / (now - began)
            left = tqdm.format_interval((total - seen) / speed)
            say(f"{seen} of {total} {what}, {number(speed, 3)} images/s, {left} left")
        return result

    return extractor if progress() else dataclasses.replace(extractor, function=function)

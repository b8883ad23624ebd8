"""What a user sees while a session's first step lasts, which may be minutes: what goes on, and for how long already."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import torch
from tqdm import tqdm

# Most first steps are done before a line about them is due; and so long after it comes the next.
LINE_AFTER, LINE_SECONDS = 10.0, 60.0
# How often the bar's clock goes on.
TICK = 1.0


@contextlib.contextmanager
def shown(bar: tqdm, say: Callable[[str], None], step: int, device: torch.device) -> Iterator[None]:
    """While the block lasts the bar says "first step" and its clock runs; after a while lines say so too.

    Args:
        bar: the run's, which may be disabled.
        say: for a line, called on another thread while the block is at work.
        step: the number of the step.
        device: where it runs.
    """
    does = "traces the critic" + (", compiles kernels and records a CUDA graph" if device.type == "cuda" else "")
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        due = LINE_AFTER
        while not done.wait(TICK):
            bar.refresh()
            if (seconds := time.monotonic() - began) >= due:
                due = seconds + LINE_SECONDS
                # A full disk is the loop's to report.
                with contextlib.suppress(OSError):
                    say(f"step {step} has taken {seconds:.0f} s so far; the first one of a session also {does}")

    bar.set_description_str("first step")
    teller = threading.Thread(target=tell, name="gnfast-first-step", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        bar.set_description_str(refresh=False)

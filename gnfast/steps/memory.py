"""Memory of CPU tensors that is used again: a steady step takes none from the system.

malloc maps blocks above 32 MiB again each time, and the system clears their pages one by one as they are first touched.
Inside `reuse_memory`, blocks of 64 KiB and more come from a range of memory (`csrc/arena/`) that grows to what is
in use at one time and is then reused. gnfast's passes open it themselves.

A tensor keeps its memory for as long as it lives, inside or outside. `GNFAST_REUSE_MEMORY=0` in the environment turns
all of it off; it is read when it is first needed. Without the compiled library, or where another library has replaced
PyTorch's CPU allocator, nothing here has an effect.
"""

import functools
import importlib
import os
from types import ModuleType

import torch

from gnfast.kernels.build_info import load


class reuse_memory:
    """Context manager: CPU tensors made inside, on any thread, take the memory of those that are gone.

    Around a whole training step it also serves what is not gnfast's: the generator, the optimiser's temporaries. What
    it holds is the most that was in use at one time plus fragmentation (measured: 10 to 25 %), and never more than the
    machine has; `release_memory` gives it back.

    Args:
        device: where the work inside runs; on others than the CPU there is nothing to do.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._arena = _library() if torch.device(device).type == "cpu" else None

    def __enter__(self) -> "reuse_memory":
        if self._arena is not None:
            self._arena.open_arena()
        return self

    def __exit__(self, *error: object) -> None:
        if self._arena is not None:
            self._arena.close_arena()


def release_memory() -> None:
    """Returns to the system the memory that is held for reuse and that no tensor occupies."""
    if (library := _library()) is not None:
        library.release_arena()


def memory_use() -> dict[str, int]:
    """What `reuse_memory` has done in this process.

    Returns:
        `blocks` handed out so far; `refused`: how many the system served because there was no room; `grown`: how often
        memory was taken from the system; `in_use`: bytes that tensors occupy; `held`: bytes taken from the system.
    """
    if (library := _library()) is not None:
        return library.arena_use()
    return dict.fromkeys(("blocks", "refused", "grown", "in_use", "held"), 0)


@functools.cache
def _library() -> ModuleType | None:
    """The compiled library with the arena installed, or None."""
    request = os.environ.get("GNFAST_REUSE_MEMORY") or "1"
    if request not in ("0", "1"):
        raise ValueError(f"GNFAST_REUSE_MEMORY: got {request!r}, wanted 0 or 1")
    if request == "0" or not load("cpp"):
        return None
    library = importlib.import_module("gnfast._C")
    return library if library.install_arena() else None

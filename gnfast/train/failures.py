"""What ends a run from outside, as one line that says what happened and what to do."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from gnfast.runs.checkpoint import LostError, RunError
from gnfast.train.logs import require_rows

_FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "no space left in the quota",
    errno.EFBIG: "no space left for a file of that size (ulimit -f)",
}


def is_full(error: BaseException | None) -> bool:
    """Whether a disk is."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """A full disk, a run folder that was deleted, and a process that was lost become a `RunError`."""
    try:
        yield
    except RunError:
        raise
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its own, caused by the file's.
        full = next((cause for cause in (error, error.__cause__, error.__context__) if is_full(cause)), None)
        if full is not None:
            raise RunError(
                f"{_FULL[full.errno]} on the disk of {folder}; free some and repeat the command: the run continues "
                "from its last checkpoint"
            ) from error
        name = getattr(error, "filename", None)
        if isinstance(error, FileNotFoundError) and name and Path(os.fsdecode(name)).is_relative_to(folder):
            require_rows(folder)
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower():
            # Of gloo's, without the line of its source and its advice.
            first = re.sub(r"^\[\S+\] |\. This is typically .*", "", str(error).strip().partition("\n")[0])
            raise LostError(f"another process of the run was lost ({first}); repeat the command to continue") from error
        raise

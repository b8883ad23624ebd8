"""Files whose library may crash on damage, read by a script in a process of its own."""

import importlib.util
import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gnfast.data.archive import EntryError
from gnfast.data.dataset import DataError
from gnfast.errors import missing


def said_by(script: str, words: list[Any], path: Path, what: str, package: str) -> Iterator[Any]:
    """What a script here says by `marshal` on its standard output; text in place of an object is an error.

    Args:
        script: the path of its file, which imports nothing of gnfast.
        words: its arguments.
        path, what: where the data are and what they should be, for messages.
        package: what it imports.

    Raises:
        DataError: the package is not there, or the script says what is wrong, or dies of it.
    """
    if importlib.util.find_spec(package) is None:
        raise DataError(missing(f"{path}, {what},", package))
    # -P: the modules of this package next to the script must not stand for Python's own.
    command = [sys.executable, "-P", script, *words]
    modules = os.pathsep.join(folder for folder in sys.path if folder)
    with subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": modules},
        # A Ctrl-C is for this process, which then ends that one.
        start_new_session=True,
    ) as reader:
        try:
            while True:
                said = marshal.load(reader.stdout)
                if isinstance(said, str):
                    raise DataError(said)
                yield said
        except EOFError as error:
            if status := reader.wait():
                how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                raise DataError(f"{path} is damaged: the process that read it was ended {how}") from error
        finally:
            reader.kill()


def content_of(said: bytes | str) -> Callable[[], bytes]:
    """What reads an image's bytes, where a script says them or, as text, why there are none."""

    def read() -> bytes:
        if isinstance(said, str):
            raise EntryError(said)
        return said

    return read

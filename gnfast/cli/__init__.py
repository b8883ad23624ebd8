"""The command line. Each command is a file here with a function `run(words)`, and a line in the table below.

Every error that a user can cause is one line on stderr and exit status 2, and so is a full disk that stdout leads to. A
failed training is status 1. A command that a signal stopped ends with 128 + the signal's number, as shells expect, and
so does one whose reader is gone (`output.py`). What several processes of torchrun have to say alike is said once
(`processes.py`).
"""

import importlib
import sys
import warnings
from collections.abc import Sequence

from gnfast import __version__, start
from gnfast.cli import processes
from gnfast.cli.common import UsageError, columns, of_the_user
from gnfast.cli.output import lasting_output
from gnfast.errors import TRAIN_PACKAGES, missing, unknown
from gnfast.io.files import unwinding

# Command: (its argument, what it does). The module of the same name is imported when it is called for.
COMMANDS = {
    "train": ("PRESET", "train a generator; repeat the command to continue a run that stopped"),
    "sample": ("RUN|FILE", "draw images from the generator of a run or of an exported file"),
    "export": ("RUN", "write a run's generator as one safetensors file"),
    "report": ("RUN…", "a page about a run, or one that compares several"),
    "data": ("COMMAND", "data sets: list, prepare, verify, look into"),
    "sweep": ("FILE", "train a grid of runs, several at once, and tabulate their scores"),
    "reproduce": (
        "[NAME …]",
        "the papers' tables and figures: train what they consist of, compare with what is published",
    ),
    "analyze": (
        "RUN",
        "what normalisation does to a critic: gradient norms, singular values, loss domains, as figures",
    ),
    "eval": ("WHAT", "FID, IS and KID of a run's generator, of images or of saved statistics"),
    "presets": (
        "[WORD …]",
        "the papers' experiments: how many there are, those with all of some words, one with its sources",
    ),
    "bench": ("[CASE …]", "what a normalised critic costs on this machine, against double backward and its relatives"),
    "weights": ("[FILE]", "Inception's weights, which FID needs: where they are, or where to get them; checks a file"),
    "info": ("", "versions, devices, what was built and what each backend is used for"),
}

# What trains goes on where nobody reads its lines any more.
TRAINING = (["train"], ["sweep"], ["reproduce"], ["analyze", "--reproduce"], ["bench", "paper"])

USAGE = """\
usage: gnfast COMMAND [ARGUMENTS]

Train GANs with gradient-normalised critics, exactly and without double backward.

commands:
{commands}

examples:
  gnfast train digits                                    handwritten digits, minutes on a CPU
  gnfast train gngan-cifar10-cnn --data cifar10.tar.xz   GN-GAN's CIFAR-10 experiment on images from a file
  gnfast train gngan-cifar10-resnet --dry-run            what would run, and nothing else
  gnfast sample runs/digits --n 100 --out digits.png     a grid of 100 images
  gnfast eval runs/digits --n 2000                       its scores against the real images

`gnfast COMMAND --help` explains every option; `gnfast --version` says which gnfast this is.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    trains = any(words[: len(first)] == first for first in TRAINING)
    try:
        with lasting_output(ends=not trains) as lost, unwinding():
            status = _run(words)
    except SystemExit as end:
        # The parser's is 0, after it has printed help.
        if end.code or not lost:
            raise
        status = 0
    return status or (2 if lost else 0)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"gnfast {__version__}")
        return 0
    command, rest = words[0], words[1:]
    try:
        if command not in COMMANDS:
            raise UsageError(unknown("command", command, [*COMMANDS, "--help", "--version"]))
        with warnings.catch_warnings():
            said: set[str] = set()
            warnings.showwarning = lambda message, *_: _warn(str(message), said)
            module = importlib.import_module(f"gnfast.cli.{command}")
            start.imported()
            return module.run(rest)
    except KeyboardInterrupt:
        # Without asking torchrun's store, which may have ended first.
        if start.leads():
            print("gnfast: interrupted", file=sys.stderr)
        return start.INTERRUPTED
    except ImportError as error:
        if error.name in TRAIN_PACKAGES:
            processes.here().fail(f"gnfast: {missing(command, error.name)}")
            return 2
        raise
    except Exception as error:
        if not (line := of_the_user(error)):
            raise
        from gnfast.runs.checkpoint import LostError

        processes.here().fail(f"gnfast: {line}", was_left=isinstance(error, LostError))
        return 2


def _warn(message: str, said: set[str]) -> None:
    """Says it once, however many images, say, are loaded from the same place."""
    if message not in said:
        said.add(message)
        processes.here().warn(f"warning: {message}")


def _usage() -> str:
    rows = [(f"  {name} {argument}".rstrip(), what) for name, (argument, what) in COMMANDS.items()]
    return USAGE.format(commands=columns(rows))

"""Arguments and options of commands, by tyro: its help as it is, and its errors as one line."""

import contextlib
import dataclasses
import io
import itertools
import os
import re
from difflib import get_close_matches
from shlex import quote
from typing import Annotated, Any, TypeVar

import tyro

from gnfast.cli.common import UsageError
from gnfast.cli.help import GROUPS, PLACE, document, flags_off, placed
from gnfast.io.files import expanded

T = TypeVar("T")


def argument(metavar: str, kind: Any = str) -> Any:
    """The type of an option that is given by its place, and shown as `metavar`."""
    return Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=metavar)]


def parse(kind: type[T], words: list[str], command: str, *, help: str, usage: str = "", default: T | None = None) -> T:
    """What the words say.

    Args:
        kind: a dataclass of the arguments and options.
        words: those after the command.
        command: as `sample`, or `data prepare`.
        help: what `--help` shows above the options.
        usage: what is said where an argument is missing.
        default: values where the words do not say; those of `kind` if None.

    Raises:
        UsageError: they are not such words.
        SystemExit: help was asked for, and printed.
    """
    prog, errors = f"gnfast {command}", io.StringIO()
    # Not for help alone: the parser keeps what it has seen of a class first.
    document(kind)
    if {"-h", "--help"} & {*words}:
        # Of arguments that are given the parser would show nothing.
        words = ["--help"]
    try:
        with placed(help, GROUPS.get(kind.__name__, {}), flags_off(kind, default)), contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind, args=words, prog=prog, description=PLACE, **({} if default is None else {"default": default})
            )
    except SystemExit as end:
        if not end.code:
            raise
    except ValueError as error:
        raise UsageError(str(error)) from None
    if usage and "Missing from" in errors.getvalue():
        raise UsageError(f"{command}: {usage}")
    message = _unframed(errors.getvalue())
    if message.startswith("Unrecognized options"):
        message = message.partition("; did you mean")[0] + (_unquoted(words) or _meant(kind, words))
    raise UsageError(f"{message} (see {prog} --help)")


_SHORT = {"--ema": ["--weights", "ema"], "--raw": ["--weights", "raw"]}
_OF_TRAIN = ("--dry-run", "--profile")


def _meant(kind: type, words: list[str]) -> str:
    """The nearest option to each of those that are none: letters are missing, or a dash, as in --rundir and -n."""
    fields = {field.name.replace("_", "-"): field.type is bool for field in dataclasses.fields(kind)}
    known = [f"--{name}" for name in fields] + [f"--no-{name}" for name, is_flag in fields.items() if is_flag]
    known += [*_SHORT] if "weights" in fields else []
    known += _OF_TRAIN if "run-dir" in fields else []
    given = [word.partition("=")[0].replace("_", "-") for word in words if re.match("-+[A-Za-z]", word)]
    wrong = [f"--{word.lstrip('-')}" for word in given if word not in known]
    near = [next(iter(get_close_matches(word, known, 1)), "") for word in wrong]
    return f"; did you mean {' and '.join(dict.fromkeys(near))}?" if all(near) and near else ""


def _unquoted(words: list[str]) -> str:
    """What to type where words that follow each other are one path, with spaces in it."""
    values = [word.partition("=")[2] if word.startswith("-") else word for word in words]
    for begin, value in enumerate(values):
        for end in range(len(words), begin + 1, -1):
            path = " ".join([value, *words[begin + 1 : end]])
            if value and os.path.exists(expanded(path)):
                return f"; a path with a space needs quotes: {quote(path)}"
    return ""


def _unframed(box: str) -> str:
    """What a framed message of tyro says, without its title, its frame and its repetition of the help."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    groups = itertools.groupby(filter(None, lines), re.compile("[╭╰]|[─-]+$").match)
    parts = [" ".join(group) for frame, group in groups if not frame]
    if "╭" not in box and len(parts) > 1:
        # Where stdout is not UTF-8, the title is not in a frame but above a rule.
        parts.pop(0)
    # What each of several types has against a value is more than one line.
    message = parts[0].removeprefix("Error parsing Config: ").partition(" Got errors:")[0]
    message = re.sub(_NOT_OF_ITS_KIND, _as_ours, message)
    near = re.search(r"meant:.*?(--[\w-]+)(?:, (--no-[\w-]+))?", " ".join(parts[1:]))
    if not near:
        return message
    # A flag comes with what turns it off.
    named = near.group(2) if near.group(2) and ": --no-" in message else near.group(1)
    return f"{message}; did you mean {named}?"


_NOT_OF_ITS_KIND = re.compile(
    r"Error parsing (?P<option>--[\w-]+): ("
    r"no type matching (?P<kinds>.+) could be instantiated from \[(?P<given>.+)\]\.?$"
    r"|invalid literal for int\(\) with base 10: (?P<whole>.+)"
    r"|could not convert string to float: (?P<real>.+)"
    r"|Could not parse arguments \[(?P<several>.+?)\] into tuple type .*float.*)"
)
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "{None}": "None"}


def _as_ours(found: re.Match[str]) -> str:
    """What tyro says of a value of the wrong kind, in the form of all other errors."""
    given = found["given"] or found["whole"] or found["real"] or found["several"]
    kinds = (found["kinds"] or ("INT" if found["whole"] else "FLOAT")).split("|")
    wanted = " or ".join(_KINDS.get(kind, kind.strip("{}")) for kind in kinds)
    return f"{found['option']}: got {given}, wanted {'numbers' if found['several'] else wanted}"


def spelled_out(words: list[str]) -> list[str]:
    """The words with --ema and --raw as the option --weights that they are short for."""
    given = [word for word in words if word in _SHORT or word.partition("=")[0] == "--weights"]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: wanted one of --ema, --raw, --weights")
    return [part for word in words for part in _SHORT.get(word, [word])]

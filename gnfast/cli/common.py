"""What the commands share: arguments, tables, and errors that are one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class UsageError(Exception):
    """The command line is not one that gnfast understands; the message is one line."""


def parse(kind: type[T], words: list[str], *, prog: str, description: str, default: T | None = None) -> T:
    """tyro's parser, with its help as it is and its errors as one line."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                args=words,
                prog=prog,
                description=description,
                **({} if default is None else {"default": default}),
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise UsageError(f"{_unframed(errors.getvalue())} (see {prog} --help)") from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def one_line(error: Exception) -> str:
    """What an error says, without the line breaks that a message of a library or a file name may have."""
    return " ".join(str(error).split()) or type(error).__name__


def _unframed(box: str) -> str:
    """What a framed message of tyro says, without its title, its frame and its repetition of the help."""
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    lines = [line for line in lines if line and line[0] not in "╭╰"]
    parts: list[list[str]] = [[]]
    for line in lines:
        if set(line) <= {"─", "-"}:
            parts.append([])
        else:
            parts[-1].append(line)
    if "╭" not in box and len(parts) > 1:
        # Where stdout is not UTF-8, the title is not in a frame but above a rule.
        parts.pop(0)
    message = " ".join(parts[0]).removeprefix("Error parsing Config: ")
    near = re.search(r"meant:.*?(--[\w-]+)", " ".join(line for part in parts[1:] for line in part))
    return f"{message}; did you mean {near.group(1)}?" if near else message


def spelled_out(words: list[str]) -> list[str]:
    """The words with --ema and --raw as the option --weights that they are short for."""
    short = {"--ema": ["--weights", "ema"], "--raw": ["--weights", "raw"]}
    given = [word for word in words if word in short or word.partition("=")[0] == "--weights"]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: wanted one of --ema, --raw, --weights")
    return [part for word in words for part in short.get(word, [word])]


@contextlib.contextmanager
def user_errors():
    """Errors that say what the user gave and what was wanted become one line; a bug keeps its traceback."""
    from gnfast.errors import UnsupportedError
    from gnfast.runs.checkpoint import RunError

    try:
        yield
    except (ValueError, OSError, RunError, UnsupportedError) as error:
        raise UsageError(str(error)) from error
    except (MemoryError, OverflowError, RuntimeError) as error:
        # Of the many errors of this kind those that a file or an option can cause.
        if isinstance(error, RuntimeError) and not re.search("allocate memory|out of memory|overflow", str(error)):
            raise
        raise UsageError(f"not enough memory ({str(error).partition(chr(10))[0] or type(error).__name__})") from error


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(plain, value))
    return '""' if value == "" else str(value)


def unknown(what: str, word: str, known: Sequence[str] | dict) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, known, 1)
    return f"unknown {what} {word!r}; " + (f"did you mean {near[0]!r}?" if near else f"want one of {', '.join(known)}")

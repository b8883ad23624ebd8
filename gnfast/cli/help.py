"""Help as docstrings and texts have it, which tyro would tear apart at some line breaks and run together at others."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, TextIO

import tyro

from gnfast.config.config import option

# Stands for the text above the options until tyro has printed it.
PLACE = "(text)"
# Of dataclasses with many options: the name of the first field of each group, and the group's title.
GROUPS = {
    "Config": {
        "data": "The images",
        "model": "The networks",
        "method": "The critic's normalisation and regularisation",
        "loss": "Losses and penalties",
        "steps": "Steps and batches",
        "optimizer": "Optimisers and the moving average",
        "seed": "Chance, precision, and how it is computed",
        "run_dir": "The run folder, its log and samples",
        "eval_every": "Scores",
        "checkpoint_every": "Checkpoints, and other places for the log",
    },
    "EvalOptions": {
        "data": "The real images",
        "extractor": "What they are measured with",
        "n": "How many",
        "weights": "Of a run",
        "kid_subsets": "Further scores",
        "out": "Files, and where it runs",
    },
    "BenchOptions": {
        "critics": "The critics",
        "dtype": "How they are computed",
        "rounds": "How long it takes",
        "json": "Files",
    },
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def filled(text: str) -> str:
    """A text with its paragraphs filled to the width of the terminal; blank and indented lines, and `--…`, stay."""
    width = min(120, max(40, shutil.get_terminal_size().columns))
    done: list[str] = []
    paragraph: list[str] = []
    for line in [*text.strip("\n").split("\n"), ""]:
        stays = not line or line.startswith("  ")
        if stays or line.startswith("--"):
            done += textwrap.wrap(" ".join(paragraph), width, break_long_words=False, break_on_hyphens=False)
            paragraph.clear()
        (done if stays else paragraph).append(line)
    return "\n".join(done[:-1])


@functools.cache
def document(kind: type) -> None:
    """Gives the fields of a dataclass their docstrings as metadata, each as one paragraph.

    Defaults that say nothing are not shown: an empty one, and that of a flag which is off everywhere.
    """
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(text.value.value.split())
    for field in dataclasses.fields(kind):
        # Classes of one base share its fields, but not annotations.
        field.metadata = {"help": texts.get(field.name, ""), **field.metadata}
        empty = ("", "''", "None", "False") if field.default is False else ("", "''", "None")
        hint = partial(_default, empty)
        kind.__annotations__[field.name] = Annotated[field.type, tyro.conf.arg(help_behavior_hint=hint)]


def _default(empty: tuple[str, ...], label: str) -> str:
    return "" if label in empty else f"(default: {label})"


def flags_off(kind: type, default: object) -> set[str]:
    """The flags that are off where nobody says so, here as everywhere."""
    fields = [field.name for field in dataclasses.fields(kind) if field.default is False]
    return {option(name) for name in fields if not getattr(default, name, False)}


def grouped(text: str, groups: Mapping[str, str], off: set[str]) -> str:
    """Options as tyro prints them, with a title in front of each group of them, and without the --no-… of what is off.

    Args:
        text: what tyro has printed.
        groups: an entry of `GROUPS`.
        off: the flags that are.
    """
    titles = {option(name): title for name, title in groups.items()}
    lines: list[str] = []
    for line in text.split("\n"):
        plain = _COLOURS.sub("", line)
        frame, name, end = re.match(r"(│? *)(--[a-z0-9-]+)?.*?(│?)$", plain).groups()
        if name in titles:
            width = len(plain) - len(end)
            lines += [frame.rstrip().ljust(width) + end, f"{frame}{titles[name]}:".ljust(width) + end]
        if name in off and (both := f"{name}, --no-{name[2:]}") in plain:
            line = plain.replace(both, name.ljust(len(both)))
        lines.append(line)
    return "\n".join(lines)


class _Kept(io.StringIO):
    """What is printed, by who looks where it goes for colours and frames."""

    def __init__(self, goes_to: TextIO) -> None:
        super().__init__()
        self.isatty = goes_to.isatty
        self._encoding = goes_to.encoding

    @property
    def encoding(self) -> str:
        return self._encoding


@contextlib.contextmanager
def placed(text: str, groups: Mapping[str, str], off: set[str]) -> Iterator[None]:
    """In what this block prints, the text takes the place of `PLACE`, and options are `grouped`."""
    kept = _Kept(sys.stdout)
    try:
        with contextlib.redirect_stdout(kept):
            yield
    finally:
        if printed := kept.getvalue():
            print(grouped(printed, groups, off).replace(PLACE, filled(text)), end="")

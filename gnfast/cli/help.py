"""Help as docstrings and texts have it, which tyro would tear apart at some line breaks and run together at others."""

import ast
import contextlib
import dataclasses
import inspect
import io
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TextIO

# Stands for the text above the options until tyro has printed it.
PLACE = "(text)"


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


def document(kind: type) -> None:
    """Gives the fields of a dataclass their docstrings as metadata, each as one paragraph."""
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(text.value.value.split())
    for field in dataclasses.fields(kind):
        field.metadata = {**field.metadata, "help": texts.get(field.name, "")}


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
def placed(text: str) -> Iterator[None]:
    """In what this block prints, the text takes the place of `PLACE`."""
    kept = _Kept(sys.stdout)
    try:
        with contextlib.redirect_stdout(kept):
            yield
    finally:
        print(kept.getvalue().replace(PLACE, filled(text)), end="")

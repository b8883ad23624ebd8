"""What the documentation tells its readers to run: blocks of Python, and commands of shell blocks, checked unrun."""

import importlib
import importlib.util
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gnfast.cli
from gnfast.cli.options import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NOT_RUN = re.compile(r"<!-- not run: .+ -->")
"""On the line before a block that a test cannot run, with the reason."""

_FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n)+")
_PROGRAMS = ("gnfast", "python", "python3", "make", "torchrun")


class Block(NamedTuple):
    language: str
    code: str
    line: int
    """Where it begins, so that errors name a place on the page."""
    is_run: bool


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    for found in _FENCE.finditer(page):
        line = page.count("\n", 0, found.start("code"))
        yield Block(found["language"], found["code"], line, not NOT_RUN.fullmatch(found["before"].strip()))


def statements(block: Block) -> str:
    """What a block of Python says: all of it, or of a session in the interpreter what follows the prompts."""
    if not block.code.startswith(">>> "):
        return block.code
    return "".join(f"{line[4:]}\n" for line in block.code.splitlines() if line.startswith((">>> ", "... ")))


def commands(page: str) -> Iterator[list[str]]:
    """The commands that a page shows in blocks, as words, without what is around them (pipes, variables, comments)."""
    code = [block.code for block in blocks(page) if block.language == "bash"]
    code += _INDENTED.findall(_FENCE.sub("", page))
    for line in "".join(code).replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line.replace("…", ""), comments=True)
        except ValueError:
            # Text that is set like code.
            continue
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words.pop(0)
        if words and Path(words[0]).name in _PROGRAMS:
            ends = [index for index, word in enumerate(words) if word in ("|", ">", "&&", ";", "&")]
            yield words[: min(ends, default=None)]


class _Understood(BaseException):
    """The words of a command were understood: what it would do comes next."""


def check(words: list[str], monkeypatch) -> None:
    """Raises where a command names an option, a preset, a file or a target that does not exist; nothing is run."""
    program, *rest = words
    program = Path(program).name
    if program == "torchrun":
        rest = rest[rest.index("-m") :]
    if program == "make":
        _check_make(rest)
    elif program == "gnfast" or rest[:2] == ["-m", "gnfast"]:
        _check_gnfast(rest if program == "gnfast" else rest[2:], monkeypatch)
    elif rest[:1] == ["-m"]:
        _check_module(rest[1], rest[2:])
    elif rest and not rest[0].startswith("-"):
        assert (ROOT / rest[0]).exists(), rest[0]
        _check_options((ROOT / rest[0]).read_text(), rest[1:])


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name = word.partition("=")[0]
        found = f"$({name})" in makefile or f"{name} ?=" in makefile if "=" in word else f"\n{name}: " in makefile
        assert found, f"make {word}"


def _check_gnfast(words: list[str], monkeypatch) -> None:
    if not words or words[0].startswith("-"):
        return

    def understood(*given, **named):
        parse(*given, **named)
        raise _Understood

    # All are imported before any is changed: the change must not outlive the test.
    modules = [
        importlib.import_module(f"gnfast.cli.{name}") for _, name, _ in pkgutil.iter_modules(gnfast.cli.__path__)
    ]
    for module in modules:
        if getattr(module, "parse", None) is parse:
            monkeypatch.setattr(module, "parse", understood)
    assert words[0] in gnfast.cli.COMMANDS, words[0]
    try:
        importlib.import_module(f"gnfast.cli.{words[0]}").run(words[1:])
    except _Understood:
        pass
    finally:
        monkeypatch.undo()


def _check_module(name: str, words: list[str]) -> None:
    if name.partition(".")[0] not in ("gnfast", "tests", "benchmarks"):
        return
    found = importlib.util.find_spec(name)
    assert found is not None, name
    path = Path(found.origin) if found.origin else Path(next(iter(found.submodule_search_locations)))
    files = path.parent.glob("*.py") if path.name == "__init__.py" else [path]
    _check_options("".join(file.read_text() for file in files), words)


def _check_options(source: str, words: list[str]) -> None:
    for word in words:
        assert not word.startswith("--") or f'"{word.partition("=")[0]}"' in source, word

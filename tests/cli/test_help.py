"""What a first hour meets: help that fits a screen and breaks its lines well, a version, readers that leave early, and
Ctrl-C at any time."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_origin

import pytest

import gnfast
from gnfast.cli import COMMANDS, data, main
from gnfast.cli.help import GROUPS, document, filled, grouped
from gnfast.config.config import option


def ended(*words):
    try:
        return main([*words])
    except SystemExit as end:
        return end.code


def printed(capsys, *words):
    capsys.readouterr()
    assert ended(*words) in (0, None)
    return capsys.readouterr().out


def test_the_version_is_said(capsys):
    assert printed(capsys, "--version") == f"gnfast {gnfast.__version__}\n"


def test_help_of_training_is_a_screen_or_two(capsys):
    text = printed(capsys, "train", "--help")
    assert len(text.splitlines()) < 60
    assert all(word in text for word in ("  digits ", "gnfast presets", "--data ", "--run-dir ", "train PRESET --help"))
    # What it names exists.
    known = re.findall(r"--[a-z-]+", printed(capsys, "train", "digits", "--help"))
    assert {*re.findall(r"--[a-z-]+", text)} <= {*known, "--option"}


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in COMMANDS),
        *(["data", name] for name in data.COMMANDS),
        *(["train", "digits"], ["bench", "paper"], ["analyze", "runs/digits"], ["analyze", "--reproduce"]),
    ],
)
def test_help_has_an_example_and_is_short_or_in_groups(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "110")
    lines = printed(capsys, *command, "--help").splitlines()
    assert any(re.match("examples?:", line, re.IGNORECASE) for line in lines)
    titled = {f"{title}:" for groups in GROUPS.values() for title in groups.values()}
    titles = [0, *(i for i, line in enumerate(lines) if line.strip("│ ") in titled), len(lines)]
    assert max(end - begin for begin, end in itertools.pairwise(titles)) <= 60, command
    assert not re.search(r"\(default: (''|)\)", "".join(lines))
    # What comes before the options is explained even where it is given.
    assert command != ["analyze", "runs/digits"] or any(line.strip("│ ").startswith("[RUN") for line in lines)


@pytest.mark.parametrize(
    ("command", "kind"), [(["train", "digits"], "Config"), (["eval"], "EvalOptions"), (["bench"], "BenchOptions")]
)
def test_groups_of_options_have_titles(capsys, command, kind):
    lines = [line.strip("│ ") for line in printed(capsys, *command, "--help").splitlines()]
    for first, title in GROUPS[kind].items():
        place = lines.index(f"{title}:")
        assert re.match(option(first) + "[ ,]", lines[place + 1]) and not lines[place - 1]


def test_a_flag_that_is_off_is_shown_without_its_opposite(capsys):
    assert "--no-best" not in printed(capsys, "sample", "--help")
    text = printed(capsys, "train", "sngan-cifar10-cnn", "--help")
    assert "--no-learn-scale" not in text
    assert "--spectral-norm, --no-spectral-norm" in text and "--tensorboard, --no-tensorboard" in text
    # What is off in this preset alone is said to be.
    flip = " ".join(text.partition("--flip, --no-flip")[2].split("--")[0].replace("│", " ").split())
    assert flip.endswith("(default: False)")


def test_a_terminal_with_colours_shows_groups_too():
    text = "\x1b[2m│\x1b[0m \x1b[1m--best\x1b[0m, --no-best  Take it. \x1b[2m│\x1b[0m"
    assert grouped(text, {"best": "Of a run"}, {"--best"}).split("\n") == [
        "│                             │",
        "│ Of a run:                   │",
        "│ --best             Take it. │",
    ]


@pytest.mark.parametrize("command", [["train", "digits"], ["sample"], ["eval"], ["bench"], ["data", "stats"]])
def test_help_keeps_no_line_breaks_of_docstrings(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "90")
    lines = printed(capsys, *command, "--help").splitlines()
    assert max(map(len, lines)) <= 120
    above = lines[: next(i for i, line in enumerate(lines) if "options" in line and "[" not in line)]
    assert all(len(line) <= 90 for line in above if not line.startswith(("  ", "usage")))
    # A line of an option's text ends where the next word would not have fitted.
    texts = [line.strip("│ ") for line in lines]
    if command == ["sample"]:
        joined = " ".join(texts)
        assert "RUN/sample-ema.png (-raw, -ema-best, …) if empty." in joined
        assert not any(text.startswith("if empty") for text in texts)


def test_paragraphs_are_filled_and_the_rest_stays(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "one two three four five six seven\neight nine\n\nExamples:\n  a  b   c\n--x is x, and so on and so\nforth"
    wanted = "one two three four five six seven eight\nnine\n\nExamples:\n  a  b   c\n--x is x, and so on and so forth"
    assert filled(text) == wanted


@pytest.mark.parametrize("command", [["--help"], ["train", "digits", "--help"], ["presets"], ["data", "--help"]])
def test_a_reader_that_leaves_early_ends_all_but_what_trains(monkeypatch, capfd, command):
    reads, writes = os.pipe()
    os.close(reads)
    with io.TextIOWrapper(os.fdopen(writes, "wb", 0), write_through=True) as gone:
        monkeypatch.setattr("sys.stdout", gone)
        assert ended(*command) == (0 if command[0] == "train" else 128 + signal.SIGPIPE)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("start", "status", "says"),
    [
        (["-m", "gnfast"], 130, "gnfast: interrupted\n"),
        (["gnfast"], 130, "gnfast: interrupted\n"),
        (["own.py"], -2, None),
    ],
)
@pytest.mark.usefixtures("heard")
def test_an_interrupt_while_pytorch_is_imported_is_one_line(tmp_path, start, status, says):
    """In the command alone: a program that imports gnfast has Ctrl-C as it wants it."""
    # In the place of PyTorch, so that the moment is known.
    stopped = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(stopped)
    (tmp_path / "gnfast").write_text("import sys\nfrom gnfast.cli import main\nsys.exit(main())\n")
    (tmp_path / "own.py").write_text("import gnfast\ngnfast.GradientNorm\n")
    paths = os.pathsep.join([str(tmp_path), str(Path(gnfast.__file__).parents[1])])
    words = [sys.executable, *start, "info"]
    run = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert run.returncode == status and not run.stdout
    assert run.stderr == says if says else "KeyboardInterrupt" in run.stderr
    if status == 130:
        environment = os.environ | {"PYTHONPATH": paths, "RANK": "1"}
        assert subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True).stderr == b""


def test_classes_of_one_base_are_all_documented():
    """Whichever comes first: they share the fields of the base."""

    @dataclass
    class Base:
        place: str = ""

    @dataclass
    class First(Base):
        pass

    @dataclass
    class Second(Base):
        pass

    for kind in (First, Second):
        document(kind)
        assert get_origin(kind.__annotations__["place"]) is Annotated

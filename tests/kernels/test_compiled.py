"""What is said where the compiled libraries are missing, to whom, and how often."""

import shutil
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
from torch import nn

import gnfast
from gnfast.bench import ceilings
from gnfast.cli import main
from gnfast.cli.common import UsageError
from gnfast.kernels import build_info, compiled
from tests.processes import run_python
from tests.tiny_runs import quiet, tiny

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = f"_C{EXTENSION_SUFFIXES[0]}"
COST = ": slower, with the same results; with a C++ compiler: pip install --no-build-isolation -e "


@pytest.fixture
def missing(monkeypatch):
    """As in a process that has imported a gnfast without libraries and not used it yet."""
    monkeypatch.setattr(compiled, "why_not_loaded", lambda library: "not built")
    monkeypatch.setattr(compiled, "_told", False)
    for name in ("GNFAST_BUILD", "GNFAST_BACKEND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A folder that gnfast might lie in, with no libraries."""
    folder = tmp_path / "here" / "gnfast"
    folder.mkdir(parents=True)
    monkeypatch.setattr(compiled, "PACKAGE", folder)
    monkeypatch.setattr(compiled.sys, "path", [str(tmp_path / "there"), str(folder.parent)])
    return folder


def use():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    return gnfast.normalize_gradient(net, torch.randn(5, 3))


def test_the_first_use_warns_where_it_was_called_from_and_the_second_does_not(missing):
    with pytest.warns(gnfast.UncompiledWarning, match="same results; with a C") as caught:
        use()
    assert [Path(warning.filename) for warning in caught] == [Path(__file__)]
    with warnings.catch_warnings(action="error"):
        use()


def test_spectral_normalisation_alone_warns_too(missing):
    net = gnfast.spectral_norm_(nn.Sequential(nn.Linear(3, 4)))
    with pytest.warns(gnfast.UncompiledWarning):
        net(torch.randn(5, 3))


@pytest.mark.parametrize("choice", ["GNFAST_BACKEND=torch", "GNFAST_BUILD=none"])
def test_those_who_want_it_so_hear_nothing(missing, monkeypatch, choice):
    monkeypatch.setenv(*choice.split("="))
    with warnings.catch_warnings(action="error"):
        use()
    assert not compiled.notice("cpu") and not compiled.notice("cuda")


def test_nothing_is_said_of_what_is_loaded_of_other_devices_and_twice(missing, monkeypatch):
    assert compiled.notice("meta") == ""
    with warnings.catch_warnings(action="error"):
        use()
    monkeypatch.setattr(compiled, "_told", False)
    with warnings.catch_warnings(action="error"):
        compiled.warn_uncompiled("cuda")
        monkeypatch.setattr(compiled, "why_not_loaded", lambda library: None)
        use()
    assert not compiled.notice("cpu")


def test_what_does_not_load_has_been_warned_of_at_import(missing, monkeypatch):
    monkeypatch.setattr(compiled, "why_not_loaded", lambda library: "cannot be loaded: undefined symbol: elsewhere")
    with warnings.catch_warnings(action="error"):
        use()
    assert "gnfast._C is not in use (cannot be loaded: undefined symbol: elsewhere): slower" in compiled.notice("cpu")


def test_the_line_says_why_and_what_to_type(missing, package):
    assert compiled.notice() == f"gnfast._C is not in use (not built in {package}){COST}. in a checkout"
    assert "gnfast._C_cuda is not in use" in (line := compiled.notice("cuda"))
    assert "with nvcc" in line and "slower" not in line

    (package.parent / "csrc").mkdir()
    (package.parent / "setup.py").touch()
    (package / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    line = compiled.notice()
    assert "(built, but not for Python 3." in line
    assert line.endswith(f"{COST}{package.parent}")

    there = package.parents[1] / "there" / "gnfast"
    there.mkdir(parents=True)
    assert "comes before" not in compiled.notice()
    (there / LIBRARY).touch()
    assert f"({package}, which was not compiled, comes before the compiled {there})" in compiled.notice()
    assert "comes before" not in compiled.notice("cuda")


def test_commands_say_it_once_in_their_first_lines(missing, monkeypatch, capsys, tmp_path):
    assert main(["info"]) == 0
    assert compiled.notice() in capsys.readouterr().out
    compiled._told = False
    with warnings.catch_warnings(action="error", category=gnfast.UncompiledWarning):
        _, lines = quiet("digits", tiny(tmp_path / "run", steps=1, extractor="none"))
    assert f"warning: {compiled.notice()}" in lines[:3]

    def enough(*_):
        raise UsageError("enough")

    compiled._told = False
    monkeypatch.setattr(ceilings, "measure", enough)
    assert main(["bench", "--device=cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == f"warning: {compiled.notice()}\n"
    assert "gnfast._C" not in captured.err


@pytest.mark.skipif(build_info()["cpp"]["status"] != "loaded", reason="tests plain PyTorch")
def test_pytest_refuses_an_uncompiled_checkout_that_hides_a_compiled_install(tmp_path):
    shutil.copytree(ROOT / "gnfast", tmp_path / "gnfast", ignore=shutil.ignore_patterns("*.so"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): ...")
    words = "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nothing.py"
    plain = {"GNFAST_BUILD": None, "GNFAST_BACKEND": None, "PYTHONPATH": str(ROOT)}
    run = run_python(*words, cwd=tmp_path, **plain)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    (line,) = filter(None, run.stderr.splitlines())
    before = f"({tmp_path / 'gnfast'}, which was not compiled, comes before the compiled {ROOT / 'gnfast'})"
    assert before in line and line.endswith("or GNFAST_BUILD=none to test plain PyTorch's operations")

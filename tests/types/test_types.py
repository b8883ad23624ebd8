"""What type checkers make of gnfast: mypy and Pyright pass `user_file.py` at their strictest, and it runs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

import gnfast
from gnfast import heads, losses, penalties, reference
from tests.types import user_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILE = HERE / "user_file.py"


def checked(*words: str) -> str:
    """What a checker says of the file."""
    environment = os.environ | {"MYPYPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True).stdout


def test_mypy_passes_a_users_file(tmp_path):
    pytest.importorskip("mypy")
    command = "mypy", f"--cache-dir={tmp_path}", FILE.name
    assert checked(*command) == "Success: no issues found in 1 source file\n"
    # From its cache, where a submodule would hide what a package defines by the same name.
    assert checked(*command) == "Success: no issues found in 1 source file\n"


def test_pyright_passes_a_users_file():
    pytest.importorskip("pyright")
    said = checked("pyright", "--project", "pyrightconfig.json", "--pythonpath", sys.executable)
    assert said.strip() == "0 errors, 0 warnings, 0 informations"


def test_the_users_file_runs():
    user_file.main()


def defined(module: ModuleType) -> set[str]:
    """The public names that a module's file defines."""
    names: set[str] = set()
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets}
    return {name for name in names if not name.startswith("_")}


def test_the_users_file_has_every_public_name():
    code = FILE.read_text()
    names = {f"gnfast.{name}" for name in gnfast.__all__ if not isinstance(getattr(gnfast, name), ModuleType)}
    # What the engine does with heads is not for users.
    names |= {f"heads.{name}" for name in defined(heads) - {"Head", "normalize", "pull"}}
    names |= {
        f"{module.__name__.split('.')[-1]}.{name}" for module in (penalties, reference) for name in defined(module)
    }
    names |= defined(losses)
    assert len(names) > 50
    assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", code)]


def test_checkers_know_the_names_of_the_methods():
    assert get_args(heads.Name) == tuple(heads.METHODS)

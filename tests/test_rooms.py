"""The plan of the house, read from its imports: rooms in one order, and no circles (CONTRIBUTING, The rooms). Also what
a reader can hold: the length of files and functions, and the files that a tensor and the settings of a run go through.

Imports inside functions count as well; those for type checkers alone do not.
"""

import ast
import contextlib
import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import gnfast
from gnfast.cli import main
from gnfast.config.config import Config
from gnfast.train import session

PACKAGE = Path(gnfast.__file__).parent
# From the ground up: a room imports from itself and from those before it. "public" is what `import gnfast` gives.
ROOMS = (
    *("start", "errors", "io", "interop", "kernels", "steps", "rewriting", "plan", "engine", "spectral", "public"),
    *("gnfast", "losses", "models", "data", "metrics", "measure", "config", "runs", "train", "analysis", "reproduce"),
    *("bench", "cli", "__main__"),
)


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imported(node: ast.AST) -> Iterator[str]:
    """What the statements below `node` import, as dotted names of modules or of what is in them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "relative import"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imported(child)


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of gnfast that it imports."""
    files = modules()
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        targets = imported(ast.parse(path.read_text()))
        known = (target if target in files else target.rpartition(".")[0] for target in targets)
        found[name] = {target for target in known if target in files} - {name}
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_every_room_has_a_place():
    assert {room(name) for name in modules()} == set(ROOMS)


def test_no_arrow_runs_back_up():
    back = [
        f"{name} imports {target}"
        for name, targets in arrows().items()
        for target in targets
        if ROOMS.index(room(target)) > ROOMS.index(room(name))
    ]
    assert not back


def test_no_circles():
    # Raises CycleError, which names the files of a circle.
    graphlib.TopologicalSorter(arrows()).prepare()


def test_scripts_that_are_run_by_path_import_none_of_their_neighbours():
    """`python benchmarks/x.py` finds gnfast, but not the folder that it is in."""
    scripts = {path.name: path.read_text() for path in (PACKAGE.parent / "benchmarks").glob("*.py")}
    scripts = {name: code for name, code in scripts.items() if '__name__ == "__main__"' in code}
    assert "must_reach.py" in scripts
    for name, code in scripts.items():
        assert not [target for target in imported(ast.parse(code)) if target.startswith("benchmarks")], name


def test_files_and_functions_are_short():
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "benchmarks").rglob("*.py")]
    assert not [str(path) for path in sources if len(path.read_text().splitlines()) > 350]
    functions = (node for path in sources for node in ast.walk(ast.parse(path.read_text())))
    functions = (node for node in functions if isinstance(node, ast.FunctionDef))
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 60]


@contextlib.contextmanager
def profiled(follow):
    """Calls `follow(frame, event, argument)` whenever a function begins or ends."""
    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_the_way_of_a_tensor_to_the_first_kernel_is_short():
    """At most seven files are open when the first convolution runs, one of them twice."""
    way = []

    def follow(frame, event, _):
        if event == "call" and not way and "kernels/conv/" in frame.f_code.co_filename:
            while frame is not None:
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(PACKAGE) and (not way or way[-1] != path):
                    way.append(path)
                frame = frame.f_back

    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)), torch.randn(2, 3, 6, 6)
    gnfast.normalize_gradient(net, x, strict=True)
    with profiled(follow):
        gnfast.normalize_gradient(net, x, strict=True)
    assert 0 < len(set(way)) <= 7 and len(way) <= len(set(way)) + 1, way


def test_the_settings_of_a_run_flow_one_way(tmp_path, monkeypatch):
    """From the command to the last step they are handed back to a file that they had left at most four times."""
    way = []

    def follow(frame, event, _):
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(str(PACKAGE)) or path.startswith(str(PACKAGE / "config")):
            return
        if any(isinstance(value, Config) for value in frame.f_locals.values()) and way[-1:] != [path]:
            way.append(path)

    words = ["--resolution=8", "--width=0.1", "--z-dim=5", "--batch-d=4", "--batch-g=6", "--n-samples=4", "--steps=2"]
    words += ["--probe-every=1", "--sample-every=1", "--eval-every=0", "--checkpoint-every=1", "--no-tensorboard"]
    words += ["--extractor=tests.kills:pixels", "--n-fake=20", "--device=cpu", f"--run-dir={tmp_path / 'run'}"]
    # What takes longest reads the run folder alone.
    for name in ("write_report", "loss_curve"):
        monkeypatch.setattr(session, name, lambda folder: None)
    with profiled(follow):
        assert main(["train", "digits", *words]) == 0
    assert len(set(way)) > 5 and len(way) <= len(set(way)) + 4, way

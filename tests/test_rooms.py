"""The plan of the house, read from its imports: rooms in one order, and no circles (CONTRIBUTING, The rooms).

Imports inside functions count as well; those for type checkers alone do not.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import gnfast

PACKAGE = Path(gnfast.__file__).parent
# From the ground up: a room imports from itself and from those before it. "gnfast" is what `import gnfast` gives.
ROOMS = (
    *("errors", "io", "interop", "kernels", "steps", "rewriting", "plan", "engine", "spectral", "gnfast"),
    *(
        "losses",
        "models",
        "data",
        "metrics",
        "measure",
        "config",
        "runs",
        "train",
        "analysis",
        "bench",
        "cli",
        "__main__",
    ),
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

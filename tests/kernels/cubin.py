"""What a kernel that Triton has compiled takes of a GPU."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread, and bytes of stack and local memory (where spills go), from the compiled kernel."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", run.stdout + run.stderr))
    return {name: int(value) for name, value in found.items()}


def assert_fits(compiled: Any, budget: int, name: str, stack: int = 0) -> None:
    """That a kernel takes so many registers at most, and so many bytes of stack, where spills go too."""
    used = resources(compiled.asm["cubin"])
    if triton.__version__ < "3.9":
        # The assembler of Triton 3.7 keeps a few numbers there, of kernels in which that of 3.9 keeps none.
        stack += 24
    assert used["LOCAL"] == 0 and used["STACK"] <= stack, f"{name} spills: {used}"
    assert used["REG"] <= budget, f"{name}: {used['REG']} registers, budget {budget}"

"""What is said where a compiled library is missing: why, what it costs, and what to type.

Nothing is said to those who want it so: with `GNFAST_BACKEND=torch` or `GNFAST_BUILD=none` in the environment.
"""

import os
import shlex
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from gnfast.errors import UncompiledWarning, warn_user
from gnfast.kernels.build_info import MODULES, why_not_loaded

PACKAGE = Path(__file__).resolve().parents[1]
_told = False


def notice(device_type: str = "cpu") -> str:
    """One line about the library for such a device, for the caller to show; no warning repeats it.

    Returns:
        "" where the library is loaded or not wanted, or there is none for such devices.
    """
    global _told
    _told = True
    return _line(device_type)


def warn_uncompiled(device_type: str) -> None:
    """An `UncompiledWarning`, once in a process, where something is to run on a CPU for which nothing was built.

    A library that is there but cannot be loaded has given its warning when gnfast was imported.
    """
    global _told
    if not _told and device_type == "cpu":
        _told = True
        if why_not_loaded("cpp") == "not built" and (line := _line("cpu")):
            warn_user(line, UncompiledWarning)


def _line(device_type: str) -> str:
    library = {"cpu": "cpp", "cuda": "cuda"}.get(device_type)
    unwanted = os.environ.get("GNFAST_BACKEND") == "torch" or os.environ.get("GNFAST_BUILD") == "none"
    if library is None or unwanted or (reason := why_not_loaded(library)) is None:
        return ""
    name = MODULES[library]
    if reason == "not built":
        reason = _why_not_built(name.partition(".")[2])
    cost = "slower" if library == "cpp" else "Triton's kernels or PyTorch's operations do its work"
    return f"{name} is not in use ({reason}): {cost}, with the same results; {_what_to_type(library)}"


def _why_not_built(stem: str) -> str:
    names = [stem + suffix for suffix in EXTENSION_SUFFIXES]
    for entry in sys.path:
        folder = Path(entry or ".", "gnfast").resolve()
        if folder != PACKAGE and any((folder / name).exists() for name in names):
            return f"{PACKAGE}, which was not compiled, comes before the compiled {folder}"
    if any(PACKAGE.glob(f"{stem}.*.so")):
        return f"built, but not for Python {sys.version_info.major}.{sys.version_info.minor}"
    return f"not built in {PACKAGE}"


def _what_to_type(library: str) -> str:
    checkout = PACKAGE.parent
    inside = (checkout / "setup.py").exists() and (checkout / "csrc").is_dir()
    place = f"-e {shlex.quote(str(checkout))}" if inside else "-e . in a checkout"
    needs = "a C++ compiler" if library == "cpp" else "nvcc and a CUDA build of PyTorch"
    return f"with {needs}: pip install --no-build-isolation {place}"

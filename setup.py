"""Builds the compiled parts; everything else about the package is in pyproject.toml.

GNFAST_BUILD chooses what to build:
    auto  the CPU library, and the CUDA one where torch is a CUDA build and nvcc is found (default);
          without a C++ compiler or without torch: nothing, with one line that says so
    cpu   the CPU library
    cuda  both libraries
    none  nothing: gnfast then runs on plain PyTorch operations
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import setuptools

MODES = ("auto", "cpu", "cuda", "none")
CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
# Instruction sets beyond x86-64, by what PyTorch calls them. GCC 12 warns of its own header for AVX-512.
INSTRUCTIONS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c", "-Wno-uninitialized"],
}
CUDA_ARCHITECTURES = "8.0;9.0+PTX"


OLDEST = {"setuptools": (77,), "torch": (2, 11)}
"""As in pyproject.toml. Without build isolation nobody else compares setuptools, and pip would replace an older PyTorch
by one that may be for another CUDA."""


def sources(pattern: str) -> list[str]:
    """Files below csrc/. Those called cuda* make the CUDA library, all others the CPU's: *_avx2.cpp and
    *_avx512.cpp with those instructions, cpu_loops.cpp with AVX2 and without."""
    return sorted(map(str, Path("csrc").rglob(pattern)))


def say(line: str) -> None:
    print(f"gnfast: {line}", file=sys.stderr, flush=True)


def require_recent(name: str, version: str | None, remedy: str) -> None:
    if version and tuple(map(int, re.findall(r"\d+", version)[: len(OLDEST[name])])) < OLDEST[name]:
        raise SystemExit(f"gnfast: {name}: got {version}, wanted {'.'.join(map(str, OLDEST[name]))} or newer: {remedy}")


def installed_torch() -> str | None:
    """The version of the torch that this Python has, which an isolated build cannot import."""
    places = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return next((found.version for found in metadata.distributions(name="torch", path=places)), None)


def find_compiler() -> str | None:
    """The C++ compiler's command, after making torch (CXX) and setuptools (LDCXXSHARED) agree on it."""
    if "CXX" in os.environ:
        command = os.environ["CXX"]
        return command if command.split() and shutil.which(shlex.split(command)[0]) else None
    command = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if command:
        os.environ["CXX"] = command
        linker = sysconfig.get_config_var("LDCXXSHARED") or ""
        if sys.platform == "linux" and not (linker and shutil.which(shlex.split(linker)[0])):
            os.environ.setdefault("LDCXXSHARED", f"{command} -shared")
    return command


def unavailable() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return "torch is not importable here (install it first and use --no-build-isolation)"
    if find_compiler() is None:
        wanted = os.environ.get("CXX")
        return f"the C++ compiler CXX={wanted!r} was not found" if wanted else "no C++ compiler was found"
    return None


def find_cuda() -> None:
    """Tells torch where the toolkit of the nvcc on PATH is, which may be a wrapper somewhere else."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    said = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    home = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    if home and Path(home[1], "include", "cuda_runtime_api.h").exists():
        os.environ["CUDA_HOME"] = str(Path(home[1]).resolve())


def cuda_unavailable() -> str | None:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not a CUDA build"
    if CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        return "nvcc was not found (set CUDA_HOME)"
    return None


def extensions(mode: str) -> list:
    find_cuda()
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    x86 = ["-DGNFAST_X86_KERNELS"] if platform.machine() in ("x86_64", "AMD64") else []
    alone = {name: sources(f"*_{name}.cpp") for name in INSTRUCTIONS}
    of_cuda, headers = sources("cuda*.c*"), sources("*.h")
    cpu = CppExtension(
        "gnfast._C",
        [path for path in sources("*.cpp") if path not in sum(alone.values(), of_cuda)],
        extra_compile_args={"cxx": CXX_FLAGS + openmp + x86},
        extra_link_args=openmp,
        depends=headers,
    )
    cpu.instructions = {**alone, "avx2": alone["avx2"] + sources("cpu_loops.cpp")} if x86 else {}
    if mode == "cpu":
        return [cpu]

    reason = cuda_unavailable()
    if reason and mode == "cuda":
        raise SystemExit(f"gnfast: GNFAST_BUILD=cuda: {reason}")
    if reason:
        say(f"building without CUDA: {reason}")
        return [cpu]
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    cuda = CUDAExtension(
        "gnfast._C_cuda",
        of_cuda,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3"]},
        depends=headers,
    )
    return [cpu, cuda]


def build_commands() -> dict:
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        """torch's build, plus sources that need flags of their own."""

        def build_extension(self, ext):
            for name, sources in getattr(ext, "instructions", {}).items():
                capability = [f"-DCPU_CAPABILITY={name.upper()}", f"-DCPU_CAPABILITY_{name.upper()}"]
                arguments = dict(ext.extra_compile_args)
                arguments["cxx"] = arguments["cxx"] + INSTRUCTIONS[name] + capability
                ext.extra_objects += self.compiler.compile(
                    sources,
                    output_dir=str(Path(self.build_temp, name)),
                    include_dirs=ext.include_dirs,
                    extra_postargs=arguments,
                )
            super().build_extension(ext)

    return {"build_ext": Build}


def compiled_parts() -> dict:
    mode = os.environ.get("GNFAST_BUILD") or "auto"
    if mode not in MODES:
        raise SystemExit(f"gnfast: GNFAST_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        say("GNFAST_BUILD=none: installing without compiled parts")
        return {}
    reason = unavailable()
    if reason and mode != "auto":
        raise SystemExit(f"gnfast: GNFAST_BUILD={mode}: {reason}")
    if reason:
        say(f"{reason}: installing without compiled parts, on plain PyTorch operations")
        return {}
    # `pip` of a virtual environment that is not activated does not see that environment's ninja.
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    return {"ext_modules": extensions(mode), "cmdclass": build_commands()}


require_recent("setuptools", setuptools.__version__, "pip install --upgrade setuptools")
require_recent("torch", installed_torch(), "pip would replace it; install the one that you want first")
setuptools.setup(**compiled_parts())

"""Compiles the CUDA sources, without a GPU, and holds each kernel to a register budget with no spills and no stack."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc").rglob("cuda*.cu"))
BINDINGS = sorted((ROOT / "csrc").rglob("cuda*.cpp"))
ARCHITECTURES = ["sm_80", "sm_90"]
# At 64 registers, 1024 threads still fit on a multiprocessor: four blocks of 256, enough to keep memory busy.
REGISTER_BUDGET = {"sign_bits": 64, "spectral": 64}
# What torch's own build passes; kernels must not rely on what these take away.
TORCH_NVCC_FLAGS = [
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
]


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [str(Path(home, "bin", "nvcc")) for home in homes] + ["nvcc"]
    return next((path for path in map(shutil.which, candidates) if path), None)


NVCC = find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def cuda_include_directory() -> Path | None:
    """Where nvcc finds cuda_runtime_api.h, asked of nvcc itself: it may be a wrapper somewhere else."""
    if NVCC is None:
        return None
    run = subprocess.run([NVCC, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
    directories = re.findall(r'"?-I([^"\s]+)"?', run.stderr)
    return next((Path(d).resolve() for d in directories if Path(d, "cuda_runtime_api.h").exists()), None)


def kernel_reports(ptxas: str) -> dict[tuple[str, str], dict[str, int]]:
    """(Mangled kernel name, architecture) -> registers, stack and spills in bytes, from what `ptxas -v` prints."""
    reports = {}
    for block in ptxas.split("Compiling entry function ")[1:]:
        kernel = re.match(r"'(\w+)' for '(\w+)'", block).groups()
        stack, stores, loads = map(
            int,
            re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block).groups(),
        )
        registers = int(re.search(r"Used (\d+) registers", block).group(1))
        reports[kernel] = {"registers": registers, "stack": stack, "spills": stores + loads}
    return reports


@needs_nvcc
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_kernels_stay_in_registers(source, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", "-Werror=all-warnings", "-Xptxas", "-v"]
    for name in ARCHITECTURES:
        command += ["-gencode", f"arch={name.replace('sm', 'compute')},code={name}"]
    command += [*TORCH_NVCC_FLAGS, "-c", str(source), "-o", str(tmp_path / "kernels.o")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reports = kernel_reports(run.stderr)
    assert {name for _, name in reports} == set(ARCHITECTURES), "ptxas reported no kernel"
    budget = REGISTER_BUDGET[source.parent.name]
    over = {
        kernel: report
        for kernel, report in reports.items()
        if report["spills"] or report["stack"] or report["registers"] > budget
    }
    assert not over, f"over the budget of {budget} registers, no stack, no spills: {over}"


@needs_nvcc
@pytest.mark.parametrize("source", BINDINGS, ids=lambda path: path.parent.name)
def test_bindings_compile(source):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    cuda_include = cuda_include_directory()
    if compiler is None or cuda_include is None:
        pytest.skip("needs a C++ compiler and the CUDA headers")
    from torch.utils.cpp_extension import include_paths

    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-DTORCH_EXTENSION_NAME=_C_cuda", "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
    for path in [*include_paths(), cuda_include, sysconfig.get_path("include")]:
        command += ["-isystem", str(path)]
    run = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

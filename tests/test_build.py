"""What setup.py decides, what the libraries say about themselves, and the choice of a backend."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from gnfast.bench import libraries
from gnfast.bench.gpu_ways import IN_TRITON
from gnfast.kernels import backends, build_info
from gnfast.kernels.build_info import INTERFACE
from gnfast.kernels.sign_bits.plain import pack
from tests.processes import run_python

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def setup_py(tmp_path):
    """Runs `setup.py build` in a copy that has no sources to compile, so that only its decisions are seen."""
    project = tmp_path / "project"
    (project / "gnfast").mkdir(parents=True)
    (project / "gnfast" / "__init__.py").touch()
    shutil.copy(ROOT / "setup.py", project)

    def run(before="pass", **environment):
        code = f"{before}; import runpy, sys; sys.argv = ['setup.py', '--quiet', 'build']; runpy.run_path('setup.py')"
        run = run_python("-c", code, cwd=project, **{"CXX": None, "GNFAST_BUILD": None} | environment)
        if run.returncode == 0:
            assert "Traceback" not in run.stderr
        said = [line for line in run.stderr.splitlines() if line.startswith("gnfast: ")]
        return run.returncode, said, run

    return run


def test_none_builds_nothing(setup_py):
    code, said, _ = setup_py(GNFAST_BUILD="none")
    assert (code, said) == (0, ["gnfast: GNFAST_BUILD=none: installing without compiled parts"])


def test_wrong_mode_is_an_error(setup_py):
    code, said, _ = setup_py(GNFAST_BUILD="gpu")
    assert code != 0
    assert said == ["gnfast: GNFAST_BUILD must be one of auto, cpu, cuda, none, got 'gpu'"]


@pytest.mark.parametrize(
    "environment", [{"CXX": "no-such-compiler"}, {"PATH": os.devnull}], ids=["CXX names nothing", "nothing on PATH"]
)
def test_missing_compiler_installs_pure(setup_py, environment):
    code, (line,), _ = setup_py(**environment)
    assert code == 0
    assert "compiler" in line
    assert "was not found" in line or "was found" in line
    assert line.endswith("installing without compiled parts, on plain PyTorch operations")

    code, (line,), _ = setup_py(**environment, GNFAST_BUILD="cpu")
    assert code != 0
    assert line.startswith("gnfast: GNFAST_BUILD=cpu: ")


def test_missing_torch_installs_pure(setup_py):
    code, (line,), _ = setup_py("import sys; sys.modules['torch'] = None")
    assert code == 0
    assert line.startswith("gnfast: torch is not importable here")


@pytest.mark.parametrize(("version", "refused"), [("2.10.0+cpu", True), ("2.11.0", False), ("3.0", False)])
def test_an_older_torch_is_not_replaced(setup_py, tmp_path, version, refused):
    """An isolated build cannot import it: what counts is that it is there."""
    found = tmp_path / "project" / f"torch-{version}.dist-info"
    found.mkdir()
    (found / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    code, (line,), _ = setup_py("import sys; sys.modules['torch'] = None")
    assert (code != 0) == refused
    assert line.startswith(f"gnfast: torch: got {version}, wanted 2.11 or newer" if refused else "gnfast: torch is not")


def test_an_older_setuptools_is_named(setup_py):
    code, (line,), _ = setup_py("import setuptools; setuptools.__version__ = '65.5.0'")
    assert code != 0
    assert line == "gnfast: setuptools: got 65.5.0, wanted 77 or newer: pip install --upgrade setuptools"


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_cuda_mode_says_what_is_missing(setup_py):
    code, (line,), _ = setup_py(GNFAST_BUILD="cuda")
    assert code != 0
    assert "is not a CUDA build" in line


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_compile_failure_is_not_hidden(setup_py, tmp_path):
    for source in (ROOT / "csrc").rglob("*.cpp"):
        path = tmp_path / "project" / source.relative_to(ROOT)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#error broken on purpose\n")
    code, _, run = setup_py(GNFAST_BUILD="cpu")
    assert code != 0
    assert "broken on purpose" in run.stdout + run.stderr


def test_build_info_tells_how_it_was_built():
    info = build_info()
    assert set(info) == {"cpp", "cuda"}
    if info["cpp"]["status"] != "loaded":
        assert info["cpp"] == {"status": "not built"}
        return
    assert info["cpp"]["interface"] == INTERFACE
    assert info["cpp"]["compiler"].startswith(("gcc", "clang"))
    assert torch.__version__.startswith(info["cpp"]["torch"].split("+")[0])
    assert info["cpp"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.gpu
def test_cuda_library_is_in_use():
    assert build_info()["cuda"]["status"] == "loaded"
    in_use = {operation: devices["cuda"] for operation, devices in backends().items() if "cuda" in devices}
    written_in_triton = dict.fromkeys(IN_TRITON, "triton")
    assert in_use == {**dict.fromkeys(in_use, "cuda"), **written_in_triton, "conv2d": "torch"}


def test_backend_override():
    code = "import json; from gnfast.kernels import backends; print(json.dumps(backends()))"
    run = run_python("-c", code, GNFAST_BACKEND="torch")
    assert {b for devices in json.loads(run.stdout).values() for b in devices.values()} == {"torch"}

    run = run_python("-c", code, GNFAST_BACKEND="vulkan")
    assert "ValueError: GNFAST_BACKEND: got 'vulkan', wanted auto, torch, cpp, cuda, triton" in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_backend_override_needs_that_backend():
    run = run_python("-c", "from gnfast.kernels import backends; backends()", GNFAST_BACKEND="cuda")
    assert "RuntimeError: GNFAST_BACKEND=cuda, but that backend is unavailable" in run.stderr


@pytest.mark.parametrize(
    ("library", "status"),
    [
        ("raise ImportError('undefined symbol: elsewhere')", "cannot be loaded: undefined symbol: elsewhere"),
        ("build_info = lambda: {'torch': '2.11'}", "was built from other sources: build it again, by `make build`"),
        (
            "build_info = lambda: {'interface': 'older'}",
            "was built from other sources: build it again, by `make build`",
        ),
    ],
    ids=["not loadable", "before interfaces", "another interface"],
)
def test_unusable_library_is_reported_not_raised(tmp_path, library, status):
    package = tmp_path / "gnfast"
    shutil.copytree(ROOT / "gnfast" / "kernels", package / "kernels")
    (package / "__init__.py").touch()
    (package / "_C.py").write_text(library)
    code = (
        "import torch; from gnfast.kernels import build_info, backends, leaky_relu_pack\n"
        "print(backends()['leaky_relu_pack'], leaky_relu_pack(torch.ones(3))[1].item(), build_info()['cpp']['status'])"
    )
    run = run_python("-c", code, cwd=tmp_path)
    assert run.stdout.startswith("{'cpu': 'torch', 'cuda': 'torch'} 7 " + status), run.stderr
    assert run.stderr.count("RuntimeWarning: gnfast._C " + status) == 1


def test_interface_is_a_digest_of_the_declarations():
    """Else a library from other sources would be taken for one that fits, and fail at its first use."""
    schema, module = ((ROOT / "csrc" / name).read_text() for name in ("schema.cpp", "module.cpp"))
    declared = re.findall(r'"([^"\n]*)"', schema) + re.findall(r'm\.def\("(\w+)"', module)
    wanted = hashlib.sha256("".join(declared).encode()).hexdigest()[:12]
    assert f'INTERFACE "{wanted}"' in (ROOT / "csrc" / "interface.h").read_text()
    assert wanted == INTERFACE


def test_check_of_the_libraries_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "damaged_library.so").write_text("not an ELF file")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(libraries.MODULES, "cpp", "damaged_library")
    assert libraries.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("libraries: damaged_library: cannot be loaded: ")


def test_check_of_the_libraries_knows_what_they_were_built_for(monkeypatch):
    status, built = {"cpp": "loaded", "cuda": "not built"}, {"torch": torch.__version__.split("+")[0]}
    library = types.SimpleNamespace(build_info=lambda: built)
    monkeypatch.setattr(libraries, "attempt", status.get)
    for name in libraries.MODULES.values():
        monkeypatch.setitem(sys.modules, name, library)
    assert libraries.why_not() == "gnfast._C_cuda: not built"
    built["torch"] = "1.0.0"
    assert libraries.why_not().startswith("gnfast._C: built for torch 1.0.0, this is 2.")
    built["torch"] = torch.__version__.split("+")[0]
    status["cuda"] = "loaded"
    monkeypatch.setattr(libraries, "has_cuda_kernel", lambda operator: operator != "leaky_relu_pack")
    monkeypatch.setattr(libraries, "operators", lambda: ["leaky_relu_mask", "leaky_relu_pack"])
    assert libraries.why_not() == "gnfast._C_cuda: registers nothing for leaky_relu_pack"


@pytest.mark.skipif(build_info()["cpp"]["status"] != "loaded", reason="the C++ library is not built")
def test_operators_for_gpus_are_those_with_cuda_sources():
    """Else the check finds fault with every library: make gpu begins with it."""
    folders = {path.parent for path in (ROOT / "csrc").glob("*/cuda*")}
    texts = [path.read_text() for folder in folders for path in folder.iterdir()]
    assert set(libraries.operators()) == {name for text in texts for name in re.findall(r'm\.impl\("(\w+)"', text)}


@pytest.mark.skipif(build_info()["cpp"]["status"] != "loaded", reason="the C++ library is not built")
def test_check_of_the_libraries_runs_an_operator(monkeypatch):
    assert {"leaky_relu_pack", "spectral_norm_iterate"} < set(libraries.operators())
    assert not libraries.has_cuda_kernel("winograd_conv2d")
    device = torch.device("cpu")
    assert libraries.why_wrong_on(device) is None

    def without_an_image(x, slope):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nadvice")

    monkeypatch.setattr(torch.ops.gnfast, "leaky_relu_pack", without_an_image)
    assert "no kernel image" in libraries.why_wrong_on(device)
    monkeypatch.setattr(torch.ops.gnfast, "leaky_relu_pack", pack)
    assert libraries.why_wrong_on(device) is None
    monkeypatch.setattr(torch.ops.gnfast, "leaky_relu_pack", lambda x, slope: pack(x, 0.0))
    assert "differs" in libraries.why_wrong_on(device)


@pytest.mark.gpu
def test_libraries_serve_here():
    # No fork: PyTorch may have asked the driver before.
    command = [sys.executable, "-m", "gnfast.bench.libraries"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "run on" in run.stdout

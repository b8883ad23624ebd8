"""The sdist, and from it a wheel for each Python, each tried out where a user would: `make wheels`.

    python release/wheels.py OUT [--pythons python3.12 …] [--torch "torch==2.13.0 --index-url=…"]

The sdist holds what git has. From what it unpacks to, each Python builds its wheel in a virtual environment of its own,
with the CUDA library where its torch is a CUDA build and nvcc is there. The wheel is then installed into a second one
and used from an empty folder. It serves the Python and the PyTorch that it was built with, on this kind of machine: its
tag is linux_x86_64, which package indices do not take.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Run by a Python with the wheel, from an empty folder.
SMOKE = """
import sys, warnings
from pathlib import Path

warnings.simplefilter("error")
import torch, gnfast
from gnfast.kernels import build_info

assert Path(gnfast.__file__).is_relative_to(sys.prefix), gnfast.__file__
info = build_info()
assert info["cpp"]["status"] == "loaded", info
torch.manual_seed(0)
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.LeakyReLU(0.1), torch.nn.AvgPool2d(2), torch.nn.Flatten()
net = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 9, 1)).double()
x = torch.randn(5, 3, 8, 8, dtype=torch.float64)

def by(impl):
    f_hat = gnfast.normalize_gradient(net, x, impl=impl)
    return [f_hat, *torch.autograd.grad(f_hat.sum(), list(net.parameters()))]

torch.testing.assert_close(by("auto"), by("reference"), rtol=1e-10, atol=1e-12)
print(f"PyTorch {torch.__version__}, CUDA library {info['cuda']['status']}")
"""


def run(*words: str | Path, cwd: Path | None = None, **variables: str) -> str:
    """What a command prints; all that it said, and the end, where it fails."""
    done = subprocess.run(words, cwd=cwd, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\n{shlex.join(map(str, words))} ended with status {done.returncode}")
    return done.stdout


def copy_tracked(to: Path) -> list[str]:
    """Copies what git has of the working tree, and returns the names."""
    names = sorted(filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")))
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name)
    return names


def environment(python: str, at: Path, *packages: str | Path) -> Path:
    """A new virtual environment with these packages: its Python."""
    run(python, "-m", "venv", at)
    run(at / "bin" / "python", "-m", "pip", "install", *packages)
    return at / "bin" / "python"


def build(python: str, torch: list[str], source: Path, out: Path, work: Path) -> str:
    """Builds a wheel and tries it out: a line about it."""
    maker = environment(python, work / "build", *torch, "numpy", "ninja", "setuptools>=77")
    of_cuda = "cuda" in run(maker, "-c", "import torch; print('cuda' if torch.version.cuda else 'cpu')")
    # Not "auto", which would go on without a compiler.
    kind = "cuda" if of_cuda and (shutil.which("nvcc") or os.environ.get("CUDA_HOME")) else "cpu"
    began = time.monotonic()
    words = "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", work / "wheel", source
    run(maker, "-m", "pip", *words, GNFAST_BUILD=kind)
    took = time.monotonic() - began
    (wheel,) = (work / "wheel").iterdir()
    user = environment(python, work / "use", *torch, wheel)
    run(user, "-m", "pip", "check")
    empty = work / "empty"
    empty.mkdir()
    # -I: neither the folder nor PYTHONPATH offers another gnfast.
    found = run(user, "-I", "-c", SMOKE, cwd=empty).strip()
    run(user.parent / "gnfast", "info", cwd=empty)
    shutil.copy(wheel, out)
    version = run(user, "-c", "import platform; print(platform.python_version())").strip()
    size = wheel.stat().st_size / 1e6
    return f"{wheel.name}: {size:.2f} MB, built in {took:.0f} s; works with Python {version}, {found}"


def pythons() -> list[str]:
    """Those that gnfast is for, on PATH and of pyenv: one of each version."""
    homes = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = []
    for name in (f"python3.{minor}" for minor in range(11, 20)):
        of_pyenv = sorted(homes.glob(f"{name.removeprefix('python')}.*/bin/{name}"))
        found += [shutil.which(name) or str(of_pyenv[-1])] if shutil.which(name) or of_pyenv else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder for sdist and wheels")
    parser.add_argument(
        "--pythons", nargs="*", help="commands; one of each version from 3.11 on that is found, if none"
    )
    parser.add_argument(
        "--torch", help="what pip is to install first; the version of requirements/lock.txt, if nothing"
    )
    options = parser.parse_args()
    locked = re.search(r"^torch==\S+", (ROOT / "requirements" / "lock.txt").read_text(), re.MULTILINE)[0]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_tracked(work / "tracked")
        words = "-m", "build", "--sdist", "--no-isolation", "--outdir", work, work / "tracked"
        run(sys.executable, *words, GNFAST_BUILD="none")
        (sdist,) = work.glob("*.tar.gz")
        shutil.copy(sdist, options.out)
        with tarfile.open(sdist) as files:
            files.extractall(work / "unpacked", filter="data")
        (source,) = (work / "unpacked").iterdir()
        print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB", flush=True)
        for index, python in enumerate(options.pythons or pythons()):
            place = work / str(index)
            print(build(python, shlex.split(options.torch or locked), source, options.out, place), flush=True)
            shutil.rmtree(place)


if __name__ == "__main__":
    main()

"""The GPU tests, in many processes: one that hangs ends with its stack, one that loses the device is replaced."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import pytest_outcomes
from benchmarks.gpu.record import FAILURES
from benchmarks.gpu.section import ROOT, Context, Row

# Seconds of one test, after which its process ends with the stacks of its threads.
TEST_LIMIT = 60
# Seconds before a section's limit from which on pytest is ended, so that it can say what it has.
ENDING = 10
# Many tests of kernels that run only where the CUDA library is not built; one of them is in SMOKE.
REPLACED = "not (test_spectral_norm and triton)"

SIGN_BITS, SPECTRAL = "tests/kernels/test_sign_bits.py::test_matches_pytorch", "tests/kernels/test_spectral_norm.py"
JOIN, HEAD, OPERANDS, SUMS, NORM = (
    f"tests/kernels/test_{file}.py::test_kernels_match_the_twin"
    for file in ("join", "head", "operands", "scaled_sums", "batch_norm")
)
MLP, CONV = "tests/kernels/test_mlp.py::test_chains", "tests/kernels/test_conv_triton.py::test_kernels"
LOSS = "tests/kernels/test_loss.py::test_kernels"
CURVES = "tests/kernels/test_curve_kernels.py::test_kernels"
# Each kernel on two shapes.
SMOKE = (
    f"{SIGN_BITS}[torch.float32-100003-contiguous-0.0-cuda-operators]",
    f"{SIGN_BITS}[torch.bfloat16-33-channels_last-0.2-cuda-operators]",
    f"{SPECTRAL}::test_many_weights[torch.float32-cuda-operators]",
    f"{SPECTRAL}::test_one_weight[torch.float32-reversed in memory-3 iterations-cuda-operators]",
    f"{SPECTRAL}::test_many_weights[torch.float32-cuda-triton]",
    f"{JOIN}[odd channels last-torch.float32]",
    f"{JOIN}[more than a block-torch.bfloat16]",
    f"{HEAD}[gn-torch.bfloat16-torch.channels_last]",
    f"{HEAD}[gran-torch.float32-torch.contiguous_format]",
    f"{OPERANDS}[torch.float32-torch.bfloat16]",
    f"{OPERANDS}[torch.float32-torch.float16]",
    f"{SUMS}[torch.float32-37]",
    f"{SUMS}[torch.bfloat16-37]",
    f"{NORM}[odd-torch.float32-channels_last]",
    f"{NORM}[a long chunk-torch.bfloat16-channels_last]",
    f"{LOSS}[hinge-torch.bfloat16]",
    f"{LOSS}[soft-hinge-torch.float32]",
    f"{CURVES}[silu-torch.bfloat16]",
    f"{CURVES}[sin-torch.float32]",
    f"{MLP}[three hidden layers-gn]",
    f"{MLP}[one sample-gran]",
    f"{CONV}[critic-64x64x64-bf16]",
    f"{CONV}[critic, shortcut-128x64x32-bf16]",
)


def all_tests(context: Context) -> Iterator[Row]:
    """Every test that needs a GPU, except those of kernels that the built library replaces."""
    # Only the files with GPU tests: the others may import packages that are not here.
    files = sorted(p for p in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.gpu", p.read_text()))
    files = [path for path in files if path.name == "test_data_augment.py" or not context.quick]
    chosen = ["-k", REPLACED, *(str(path.relative_to(ROOT)) for path in files)]
    yield from _run(context, chosen, 14)


def kernels(context: Context) -> Iterator[Row]:
    """Each kernel on two shapes against its twin."""
    yield from _run(context, SMOKE, 6)


def _run(context: Context, chosen: Sequence[str], processes: int) -> Iterator[Row]:
    parallel = ["-p", "no:xdist"]
    if importlib.util.find_spec("xdist") and not context.quick:
        parallel = ["-n", str(processes), "--max-worker-restart", "64"]
    limited = ["--timeout", str(TEST_LIMIT), "--timeout-method", "thread"]
    # A worker's own stacks are lost with it; faulthandler's are not.
    limited += ["-o", f"faulthandler_timeout={TEST_LIMIT - 5}"]
    if importlib.util.find_spec("pytest_timeout") is None:
        # Nor may the project's settings speak of it then.
        limited = ["-o", "addopts="]
    with tempfile.TemporaryDirectory() as folder:
        outcomes, output = Path(folder, "outcomes"), Path(folder, "output")
        outcomes.touch()
        # Nothing of a pytest that this may be called from.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {pytest_outcomes.OUTCOMES: str(outcomes), pytest_outcomes.FAILED: str(context.out / FAILURES)}
        # Where a library is missing, stage `load` has said so, and pytest is not to refuse.
        environment |= {"GNFAST_BUILD": "none"}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-p", "benchmarks.gpu.pytest_outcomes", *parallel, *limited, *chosen]
        started = time.monotonic()
        with open(output, "w") as file:
            # With processes of its own, of which none may go on.
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
            )
        cut = False
        try:
            process.wait(context.limit_s - ENDING)
        except subprocess.TimeoutExpired:
            cut = True
            # As Ctrl-C: pytest ends its processes and says what it has.
            process.send_signal(signal.SIGINT)
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = [line.partition(" ")[::2] for line in outcomes.read_text().splitlines()]
        said = output.read_text(errors="replace")[-3000:]
    counts = Counter(outcome for outcome, _ in found)
    failed = [test for outcome, test in found if outcome == "failed"]
    yield {"tests": len(found), **counts, "failures": failed, "seconds": round(time.monotonic() - started, 1)}
    problems = [f"{len(failed)} tests failed"] if failed else []
    problems += ["cut short"] if cut else []
    # Status 1 is that of a Python without pytest too.
    if not cut and (not found or process.returncode not in (0, 1)):
        problems.append(f"pytest ended with status {process.returncode}\n{said}")
    if problems:
        raise RuntimeError(", ".join(problems))

"""What `import gnfast` imports, and the first use of it, besides PyTorch and NumPy: every script waits for it."""

import json
import subprocess
import sys

# Of PyTorch's own modules those that take long, and what they import.
HEAVY = {"torch._dynamo", "torch._inductor", "torch.onnx", "torch.utils.flop_counter", "sympy", "triton"}
IMPORTS = """
import json, sys
import gnfast
assert "torch" not in sys.modules
import torch
before = set(sys.modules)
assert gnfast.GradientNorm
print(json.dumps(sorted(set(sys.modules) - before)))
assert gnfast.losses.LOSSES and not hasattr(gnfast, "lozzes")
"""
COUNTS = """
from torch.utils.flop_counter import FlopCounterMode
from gnfast.kernels.winograd import conv2d
x, weight, arguments = torch.randn(2, 8, 9, 9), torch.randn(16, 8, 3, 3), ((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
with FlopCounterMode(display=False) as counter:
    conv2d(x, weight, None, arguments)
print(counter.get_total_flops())
"""


def test_import_is_light_and_flop_counters_that_come_later_know_the_operators():
    # Not from tests/processes.py: there the compiler is imported already.
    run = subprocess.run([sys.executable, "-c", IMPORTS + COUNTS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    new, flops = map(json.loads, run.stdout.splitlines())
    assert not (HEAVY | {"gnfast.losses", "gnfast.train"}) & set(new)
    packages = {name.partition(".")[0] for name in new} - set(sys.stdlib_module_names)
    assert "gnfast.engine.module" in new
    assert {name for name in packages if "cython" not in name} <= {"gnfast", "numpy", "torch"}
    assert flops == 2 * (2 * 9 * 9) * 16 * (8 * 3 * 3)

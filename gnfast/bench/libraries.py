"""Whether the compiled libraries serve this Python, this PyTorch and this GPU:

    python -m gnfast.bench.libraries     one line; exit status 1 if they have to be built (again) here

Without a GPU the CUDA library is loaded all the same, if PyTorch is a CUDA build, but nothing of it runs.
"""

import importlib
import sys

import torch

from gnfast.kernels.backend import TABLE
from gnfast.kernels.build_info import MODULES, attempt
from gnfast.kernels.sign_bits.plain import pack


def why_not() -> str | None:
    """What is wrong with the libraries, or None."""
    running = torch.__version__.split("+")[0]
    for library, name in MODULES.items():
        if (status := attempt(library)) != "loaded":
            return f"{name}: {status}"
        if (built := importlib.import_module(name).build_info()["torch"]) != running:
            return f"{name}: built for torch {built}, this is {running}"
    if missing := [name for name in operators() if not has_cuda_kernel(name)]:
        return f"{MODULES['cuda']}: registers nothing for {', '.join(missing)}"
    return why_wrong_on(torch.device("cuda")) if torch.cuda.is_available() else None


def operators() -> list[str]:
    """Names of the operators that are declared for GPUs as well."""
    of_cpus = tuple(name for name, entry in TABLE.items() if "cuda" not in entry.preferred.get("cuda", ()))
    names = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("gnfast::")}
    return sorted(name for name in names if not name.startswith(of_cpus))


def has_cuda_kernel(operator: str) -> bool:
    """Whether `operator` runs on CUDA tensors."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"gnfast::{operator}", "CUDA")


def why_wrong_on(device: torch.device) -> str | None:
    """What happens when an operator meets its plain PyTorch twin there, which none of the device's kernels computes."""
    x = torch.linspace(-1, 1, 1001)
    try:
        results = [result.cpu() for result in torch.ops.gnfast.leaky_relu_pack(x.to(device), 0.2)]
    except RuntimeError as error:
        # A binary for another architecture: "no kernel image is available for execution on the device".
        return f"leaky_relu_pack raised on {device}: {str(error).splitlines()[0]}"
    if not all(map(torch.equal, results, pack(x, 0.2))):
        return f"leaky_relu_pack differs from its twin on {device}"
    return None


def main() -> int:
    """One line, and the exit status."""
    reason = why_not()
    if reason is not None:
        print(f"libraries: {' '.join(reason.split())}")
        return 1
    cuda = importlib.import_module(MODULES["cuda"]).build_info()
    versions = f"CPython {sys.version_info.major}.{sys.version_info.minor}, torch {cuda['torch']}, CUDA {cuda['cuda']}"
    where = f"run on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "load; no GPU to run them on"
    print(f"libraries: for {versions}, architectures {cuda['architectures']}: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

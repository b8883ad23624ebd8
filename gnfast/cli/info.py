"""`gnfast info`: versions, devices, what was built and what each backend is used for."""

import platform
from pathlib import Path

from gnfast.cli.common import UsageError, columns
from gnfast.io.rows import plain

HELP = """\
usage: gnfast info

Versions, devices, which compiled libraries there are, and what computes each operation on them. Where something was not
built, a line says what to type.

Example:
  gnfast info
"""


def run(words: list[str]) -> int:
    """`gnfast info`."""
    if words:
        if words[0] in ("-h", "--help"):
            print(HELP, end="")
            return 0
        raise UsageError(f"info takes no arguments, got {' '.join(words)}")
    import torch

    import gnfast
    from gnfast.kernels import backends, build_info, tuning_table
    from gnfast.kernels.compiled import notice

    rows = [
        ("gnfast", f"{gnfast.__version__}, in {Path(gnfast.__file__).parent}"),
        ("torch", torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA")),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        tuned = tuning_table.status(torch.device("cuda", index))
        rows.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB; tuned: {tuned}"))
    print(columns(rows))
    print("\nbuilt")
    built = [(f"  {name}", plain(value)) for name, value in build_info().items()]
    print(columns(built))
    if line := notice("cuda" if torch.cuda.is_available() else "cpu"):
        print(f"  {line}")
    print("\nbackends")
    print(columns([(f"  {operation}", plain(chosen)) for operation, chosen in backends().items()]))
    return 0

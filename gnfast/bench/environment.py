"""What a figure was measured on."""

import platform
from typing import Any

import torch

import gnfast
from gnfast.kernels import backends, build_info, tuning_table


def environment(device: torch.device | str) -> dict[str, Any]:
    """Device, versions and threads: what a figure must come with."""
    kind = torch.device(device).type
    described = {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "gnfast": gnfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "build": build_info(),
        "backends": backends(),
    }
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tuned": tuning_table.status(torch.device(device)),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
        }
    else:
        described["capability"] = torch.backends.cpu.get_cpu_capability()
    return described


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

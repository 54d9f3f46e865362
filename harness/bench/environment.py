"""On what was measured."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import Any

import torch
import transformers


def machine(device: torch.device) -> dict[str, Any]:
    """Return device, driver and versions; the driver is None on CPUs and without nvidia-smi."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "driver": _driver() if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)
    return told.stdout.splitlines()[0].strip() if told.returncode == 0 and told.stdout.strip() else None


def _processor() -> str:
    """Model of the CPU as Linux names it, else what Python knows."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            named = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        named = []
    return named[0] if named else platform.processor() or platform.machine()

"""The hardware and software of a measurement."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from typing import Any

import torch
import transformers


def machine(device: torch.device) -> dict[str, Any]:
    """Describe device, driver and versions; the driver is None on CPUs and without nvidia-smi."""
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
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    process = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return process.stdout.splitlines()[0].strip() if process.returncode == 0 and process.stdout.strip() else None


def _processor() -> str:
    """Return the CPU model from /proc/cpuinfo, else the name that Python reports."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()

"""Checks of versions, disk and Hub, which do not import torch, and of the device and its attention kernels."""

import importlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from harness.core.errors import one_line
from harness.core.files import expanded
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.models.checkpoint import run_with_timeout

PACKAGE = "pruning-harness"
OPTIONAL = {"flash": "model.attn=flash_attention_2", "slurm": "hydra/launcher=slurm"}
GIB = 2**30
MIN_FREE = 1  # GiB; with less, answers or downloads soon fill the disk


def versions() -> Iterator[Finding]:
    """Check the versions of Python, of the requirements in pyproject.toml, and of the extras that runs can use."""
    yield Finding("versions", "python", OK, platform.python_version())
    try:
        requirements = _requirements("")
    except PackageNotFoundError:
        yield Finding("versions", PACKAGE, BROKEN, "not installed: pip install -e .")
        return
    for requirement in requirements:
        yield _version(requirement, BROKEN, "not installed: pip install -e .")
    for extra, used_by in OPTIONAL.items():
        for requirement in _requirements(extra):
            yield _version(requirement, ABSENT, f"not installed, {used_by} needs it: pip install -e '.[{extra}]'")


def installed() -> dict[str, str]:
    """Return package -> installed version of the requirements in pyproject.toml."""
    return {requirement.name: Version(version(requirement.name)).public for requirement in _requirements("")}


def outside_tested_range(newest: Mapping[str, str]) -> list[str]:
    """Return the installed packages that are outside their bounds, or newer than the `newest` tested version."""
    outside = []
    try:
        requirements = _requirements("")
    except PackageNotFoundError:
        return [f"{PACKAGE} (not installed)"]
    for requirement in requirements:
        name, specifier = requirement.name, requirement.specifier
        try:
            current, upper = version(name), newest.get(name)
        except PackageNotFoundError:
            outside.append(f"{name} (not installed)")
            continue
        bounds = specifier & SpecifierSet(f"<={upper}" if upper else "")
        if not bounds.contains(current, prereleases=True):
            lower = next((bound.version for bound in specifier if bound.operator == ">="), "any")
            excluded = [bound.version for bound in specifier if bound.operator == "!="]
            without = f" without {', '.join(sorted(excluded))}" if excluded else ""
            outside.append(f"{name} {current} (tested: {lower} to {upper or 'any'}{without})")
    return outside


def _requirements(extra: str) -> list[Requirement]:
    """Return the requirements that an extra adds; for "", those without extras."""
    requirements = [Requirement(text) for text in requires(PACKAGE) or ()]
    return [r for r in requirements if _applies(r, extra) and not (extra and _applies(r, ""))]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(requirement: Requirement, state_if_missing: str, remedy: str) -> Finding:
    try:
        current = version(requirement.name)
    except PackageNotFoundError:
        return Finding("versions", requirement.name, state_if_missing, remedy)
    if not requirement.specifier.contains(current, prereleases=True):
        return Finding("versions", requirement.name, BROKEN, f"{current}, but {requirement.specifier} is needed")
    return Finding("versions", requirement.name, OK, current)


def disk(runs: Path) -> Iterator[Finding]:
    """Check the free space for runs, models, data sets and temporary files."""
    from huggingface_hub import constants

    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    places: dict[str, str | Path] = {
        "runs": runs,
        "models": constants.HF_HUB_CACHE,
        "datasets": datasets,
        "temporary": _temporary(),
    }
    for name, place in places.items():
        path = expanded(place).absolute()
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(existing).free / GIB
        yield Finding("disk", name, OK if free >= MIN_FREE else BROKEN, f"{free:.1f} GiB free in {path}")


def _temporary() -> str:
    import tempfile

    return tempfile.gettempdir()


def hub(seconds: float) -> Finding:
    """Check whether the Hub answers, unless the environment forbids to ask."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    consequence = "models and data sets have to be on this machine"
    if constants.HF_HUB_OFFLINE:
        reason = "not asked, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
        return Finding("hub", "reachable", ABSENT, f"{reason}: {consequence}")
    if not seconds:
        return Finding("hub", "reachable", ABSENT, "not asked: hub=0")
    began = time.perf_counter()
    error = run_with_timeout(seconds, lambda: get_session().head(constants.ENDPOINT, timeout=seconds))
    if error is not None:
        reason = f"{constants.ENDPOINT} does not answer in {seconds:g} s ({type(error).__name__})"
        return Finding("hub", "reachable", ABSENT, f"{reason}: {consequence}")
    return Finding("hub", "reachable", OK, f"{constants.ENDPOINT} answers in {time.perf_counter() - began:.1f} s")


def device() -> Iterator[Finding]:
    """Check the devices that torch sees."""
    import torch

    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        half = "" if torch.cuda.is_bf16_supported() else ", no bfloat16: model.dtype=float16"
        text = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}{half}"
        yield Finding("device", f"cuda:{index}", OK, text)
    if not torch.cuda.device_count():
        if listed := _listed_gpus():
            target = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
            text = f"nvidia-smi lists {listed} GPU(s), but torch, built for {target}, sees none"
            yield Finding("device", "cuda", BROKEN, text)
        cores = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        yield Finding("device", "cpu", OK, f"{cores}: for the pocket models; published ones need a GPU")


def _listed_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def kernels() -> Iterator[Finding]:
    """Check the attention implementations that `model.attn` can select."""
    import torch

    gpu = torch.cuda.is_available()
    backends = ("flash", "mem_efficient", "cudnn", "math")
    enabled = [name for name in backends if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
    yield Finding("kernels", "attention sdpa", OK, ", ".join(enabled) if gpu else "torch's, on the CPU")
    yield Finding("kernels", "attention eager", OK, "matrix products, the slowest")
    yield _importable("flash_attn", "attention flash_attention_2", "pip install -e '.[flash]'", gpu)


def _importable(module: str, name: str, remedy: str, gpu: bool) -> Finding:
    if find_spec(module) is None:
        return Finding("kernels", name, ABSENT, f"{module} is not installed: {remedy}")
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        return Finding(
            "kernels", name, BROKEN, f"{module} is installed and cannot be imported: {one_line(error)[:160]}"
        )
    return Finding("kernels", name, OK if gpu else ABSENT, "ready" if gpu else f"{module} is installed, it needs a GPU")

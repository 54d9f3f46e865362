"""Versions, disk and Hub, found without torch; then the device and the kernels that it runs."""

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
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.models.checkpoint import run_with_timeout

PACKAGE = "pruning-harness"
OPTIONAL = {"flash": "model.attn=flash_attention_2", "slurm": "hydra/launcher=slurm"}
GIB = 2**30
LEAST = 1  # GiB free, below which answers or downloads soon find no room


def versions() -> Iterator[Finding]:
    """Python and what pyproject.toml asks for, with its bounds; then the extras that change what can be run."""
    yield Finding("versions", "python", OK, platform.python_version())
    try:
        needed = _requirements("")
    except PackageNotFoundError:
        yield Finding("versions", PACKAGE, BROKEN, "not installed: pip install -e .")
        return
    for it in needed:
        yield _version(it, BROKEN, "not installed: pip install -e .")
    for extra, used_by in OPTIONAL.items():
        for it in _requirements(extra):
            yield _version(it, ABSENT, f"not installed, {used_by} needs it: pip install -e '.[{extra}]'")


def installed() -> dict[str, str]:
    """Package -> version, of what pyproject.toml asks for."""
    return {it.name: Version(version(it.name)).public for it in _requirements("")}


def outside_tested_range(newest: Mapping[str, str]) -> list[str]:
    """Installed packages that are outside their bounds, or newer than the `newest` version that was tested."""
    outside = []
    try:
        needed = _requirements("")
    except PackageNotFoundError:
        return [f"{PACKAGE} (not installed)"]
    for it in needed:
        try:
            here, upper = version(it.name), newest.get(it.name)
        except PackageNotFoundError:
            outside.append(f"{it.name} (not installed)")
            continue
        bounds = it.specifier & SpecifierSet(f"<={upper}" if upper else "")
        if not bounds.contains(here, prereleases=True):
            lower = next((bound.version for bound in it.specifier if bound.operator == ">="), "any")
            excluded = [bound.version for bound in it.specifier if bound.operator == "!="]
            without = f" without {', '.join(sorted(excluded))}" if excluded else ""
            outside.append(f"{it.name} {here} (tested: {lower} to {upper or 'any'}{without})")
    return outside


def _requirements(extra: str) -> list[Requirement]:
    """What an extra adds, or, for "", what is needed in any case."""
    needed = [Requirement(text) for text in requires(PACKAGE) or ()]
    return [it for it in needed if _applies(it, extra) and not (extra and _applies(it, ""))]


def _applies(needed: Requirement, extra: str) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": extra})


def _version(needed: Requirement, without: str, remedy: str) -> Finding:
    try:
        found = version(needed.name)
    except PackageNotFoundError:
        return Finding("versions", needed.name, without, remedy)
    if not needed.specifier.contains(found, prereleases=True):
        return Finding("versions", needed.name, BROKEN, f"{found}, but {needed.specifier} is needed")
    return Finding("versions", needed.name, OK, found)


def disk(runs: Path) -> Iterator[Finding]:
    """Free space where runs, models, data sets and temporary files go."""
    from huggingface_hub import constants

    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    places: dict[str, str | Path] = {
        "runs": runs,
        "models": constants.HF_HUB_CACHE,
        "datasets": datasets,
        "temporary": _temporary(),
    }
    for name, place in places.items():
        path = Path(place).expanduser().absolute()
        there = next(found for found in (path, *path.parents) if found.exists())
        free = shutil.disk_usage(there).free / GIB
        yield Finding("disk", name, OK if free >= LEAST else BROKEN, f"{free:.1f} GiB free in {path}")


def _temporary() -> str:
    import tempfile

    return tempfile.gettempdir()


def hub(seconds: float) -> Finding:
    """Does the Hub answer, where the environment lets it be asked?"""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    here = "models and data sets have to be on this machine"
    if constants.HF_HUB_OFFLINE:
        return Finding("hub", "reachable", ABSENT, f"not asked, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set: {here}")
    if not seconds:
        return Finding("hub", "reachable", ABSENT, "not asked: hub=0")
    began = time.perf_counter()
    error = run_with_timeout(seconds, lambda: get_session().head(constants.ENDPOINT, timeout=seconds))
    if error is not None:
        what = f"{constants.ENDPOINT} does not answer in {seconds:g} s ({type(error).__name__})"
        return Finding("hub", "reachable", ABSENT, f"{what}: {here}")
    return Finding("hub", "reachable", OK, f"{constants.ENDPOINT} answers in {time.perf_counter() - began:.1f} s")


def device() -> Iterator[Finding]:
    """What torch computes on."""
    import torch

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        half = "" if torch.cuda.is_bf16_supported() else ", no bfloat16: model.dtype=float16"
        said = f"{about.name}, {about.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}{half}"
        yield Finding("device", f"cuda:{index}", OK, said)
    if not torch.cuda.device_count():
        if listed := _listed_gpus():
            built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU alone"
            said = f"nvidia-smi lists {listed} GPU(s), torch, built for {built}, sees none"
            yield Finding("device", "cuda", BROKEN, said)
        cores = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        yield Finding("device", "cpu", OK, f"{cores}: for the pocket models; published ones need a GPU")


def _listed_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def kernels() -> Iterator[Finding]:
    """The values of model.attn."""
    import torch

    gpu = torch.cuda.is_available()
    backends = ("flash", "mem_efficient", "cudnn", "math")
    on = [name for name in backends if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()]
    yield Finding("kernels", "attention sdpa", OK, ", ".join(on) if gpu else "torch's, on the CPU")
    yield Finding("kernels", "attention eager", OK, "matrix products, the slowest")
    yield _importable("flash_attn", "attention flash_attention_2", "pip install -e '.[flash]'", gpu)


def _importable(module: str, name: str, without: str, gpu: bool) -> Finding:
    if find_spec(module) is None:
        return Finding("kernels", name, ABSENT, f"{module} is not installed: {without}")
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # built for another torch or CUDA
        return Finding(
            "kernels", name, BROKEN, f"{module} is installed and cannot be imported: {one_line(error)[:160]}"
        )
    return Finding("kernels", name, OK if gpu else ABSENT, "ready" if gpu else f"{module} is installed, it needs a GPU")

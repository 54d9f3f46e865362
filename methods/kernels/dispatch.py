"""Which path a kernel takes: the plain loop in torch, a lazy search on the CPU, or Triton on a GPU. All pick the same.

CUDA takes the plain loop. The Triton kernels have never run on a GPU, so they must be asked for (`TRITON`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

LARGE = 2**19  # features below which the plain loop on the CPU is as fast as any
TRITON = "HARNESS_TRITON"  # environment variable: 1 asks for the Triton kernels on CUDA, which need triton

Found = TypeVar("Found")

log = logging.getLogger(__name__)
_forced: ContextVar[str | None] = ContextVar("path", default=None)


class UnfitError(Exception):
    """A path does not fit these tokens: too much is as good as equal in float32, or beyond it, or too large."""


def path(features: Tensor) -> str:
    """Return "plain", "cpu" or "gpu" for tokens with these `features` [N, D]."""
    if (forced := _forced.get()) is not None:
        return forced
    if features.device.type == "cuda":
        return "gpu" if wants_triton() else "plain"
    return "cpu" if features.device.type == "cpu" and features.numel() >= LARGE else "plain"


def wants_triton() -> bool:
    """Return whether the Triton kernels were asked for; ValueError if that is unclear or triton is not installed."""
    value = os.environ.get(TRITON, "0")
    if value not in ("0", "1"):
        raise ValueError(f"{TRITON} must be 0 or 1, got {value}: 1 runs selection in Triton kernels on CUDA")
    if value == "1" and importlib.util.find_spec("triton") is None:
        raise ValueError(f"{TRITON}=1 needs triton, which is not installed: pip install triton, or unset {TRITON}")
    return value == "1"


def implementation(device: str) -> str:
    """Return in words what selection runs on a `device` such as "cpu" or "cuda:0"; ValueError as `wants_triton`."""
    if device.startswith("cuda"):
        return "triton" if wants_triton() else "plain loops"
    return f"plain loops; lazy search (CPU) from {LARGE} features on, tokens times width"


def gpu(name: str) -> Any:
    """Return the module of a kernel's Triton path, which needs triton to be imported at all."""
    return import_module(f"methods.kernels.gpu.{name}")


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Take the path `name` inside, whatever the tokens; None lets them choose."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def run(features: Tensor, ways: Mapping[str, Callable[[], Found]], otherwise: str = "the plain loop decides") -> Found:
    """Return what the path for `features` gives, of `ways` by their names; "plain" is the last resort."""
    name = path(features)
    way = ways.get(name, ways["plain"])
    try:
        with torch.no_grad():
            return way()
    except UnfitError as error:
        log.info("%s: %s", error, otherwise)
        return ways["plain"]()


def run_several(
    features: Sequence[Tensor], apart: Callable[[], list[Tensor]], together: Callable[[], list[Tensor]] | None
) -> list[Tensor]:
    """Return what samples with these `features` give: several `together` on a GPU, where that can be, or `apart`."""
    ways = {"plain": apart}
    if together is not None and len(features) > 1:
        ways["gpu"] = together
    return run(features[0], ways, "one sample after the other")

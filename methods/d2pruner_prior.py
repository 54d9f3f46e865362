"""The debiasing prior of D2Pruner: the attention that a place in the image gets, whatever it shows.

A prior is the mean over many images of the attention map of one query, each normalised to sum 1 and resampled to a
canonical grid. Its file also records what it was made from. For an image, the prior is resampled to the image's grid.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from methods.kernels.cosine import snap

CANONICAL = (24, 24)  # LLaVA-1.5's grid, so that its maps are averaged without resampling
FLOOR = 1e-3  # smallest cell, as a share of the mean: a cell without attention would otherwise outrank all others
MADE_FROM = ("prompt", "model", "layer", "images")  # required keys of the metadata


def canonical(attention: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Return the attention [t * h * w] of one image as a map [24, 24] that sums to 1; steps of a video are summed."""
    total = attention.double().reshape(grid).sum(dim=0)
    return _resampled(total / total.sum(), *CANONICAL)


def average(maps: Iterable[tuple[Tensor, tuple[int, int, int]]]) -> Tensor:
    """Return the prior [24, 24] of pairs of an image's attention [t * h * w] and its grid, one image at a time."""
    total, count = torch.zeros(CANONICAL, dtype=torch.float64), 0
    for attention, grid in maps:
        total += canonical(attention, grid).cpu()
        count += 1
    if not count:
        raise ValueError("a prior needs the attention of at least one image")
    return _checked(total / count, "the average of the maps")


def on_grid(prior: Tensor, h: int, w: int) -> Tensor:
    """Resample `prior` [H, W] to a grid [h * w]: bilinear, of sum 1, no cell below 1e-3 of the mean."""
    fitted = _resampled(prior.double(), h, w)
    return snap(fitted.clamp_min(FLOOR * fitted.mean()).flatten())  # interpolating a constant is not constant


def debiased(attention: Tensor, prior: Tensor | None, grids: Sequence[tuple[int, int, int]], eps: float) -> Tensor:
    """Return `attention` [N] over (prior + `eps`), each of sum 1 per image or whole video; as it is without a prior.

    The prior of a video is the same on each of its steps.
    """
    if prior is None:
        return attention
    scores = []
    for part, (t, h, w) in zip(attention.split([t * h * w for t, h, w in grids]), grids, strict=True):
        if t * h * w:
            expected = on_grid(prior, h, w).repeat(t).to(part.device) / t
            total = part.sum()
            scores.append(part / torch.where(total > 0, total, 1.0) / (expected + eps))
    return torch.cat(scores)


def save(path: str | Path, prior: Tensor, metadata: Mapping[str, str]) -> None:
    """Store `prior` [H, W] as float32 in a safetensors file, with `metadata` that has at least MADE_FROM."""
    from safetensors.torch import save_file

    missing = [key for key in MADE_FROM if not metadata.get(key)]
    if missing:
        raise ValueError(f"the metadata of a prior must say {', '.join(MADE_FROM)}; missing: {', '.join(missing)}")
    tensor = _checked(prior, "the prior").float().cpu().contiguous()
    save_file({"prior": tensor}, Path(path), metadata={key: str(value) for key, value in metadata.items()})


def load(path: str | Path, stage: str | None = None) -> tuple[Tensor, dict[str, str]]:
    """Return the prior [H, W] of a file and its metadata, with the `digest` of the file added.

    ValueError if it was made at another decoder layer than `stage`, "layer:j".
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(Path(path).expanduser(), framework="pt") as file:
            prior, metadata = file.get_tensor("prior"), file.metadata() or {}
        metadata["digest"] = hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"prior '{path}' cannot be read: {' '.join(str(error).split())}") from error
    if stage is not None and stage != f"layer:{metadata.get('layer')}":
        prior_layer, layer = metadata.get("layer"), stage.partition(":")[2]
        remedy = f"make one with python -m harness.d2prior model=<model> layer={layer}, or say method.prior=none"
        raise ValueError(f"prior '{path}' was made at decoder layer {prior_layer}, the method is at {stage}: {remedy}")
    return _checked(prior, f"prior '{path}'"), metadata


def digest(images: Iterable[str]) -> str:
    """Return the hash of image names, in any order, which the metadata hold as `images`."""
    return hashlib.sha256(json.dumps(sorted(images), allow_nan=False).encode()).hexdigest()


def _resampled(image: Tensor, h: int, w: int) -> Tensor:
    fitted = functional.interpolate(image[None, None], size=(h, w), mode="bilinear", align_corners=False)[0, 0]
    return fitted / fitted.sum()


def _checked(prior: Tensor, what: str) -> Tensor:
    if prior.dim() != 2 or not prior.is_floating_point():
        raise ValueError(f"{what} must be a map [H, W] of floating point, not {list(prior.shape)} of {prior.dtype}")
    if not bool((prior >= 0).all() & prior.sum().isfinite() & (prior.sum() > 0)):
        raise ValueError(f"{what} must be finite, nowhere negative, and somewhere positive")
    return prior

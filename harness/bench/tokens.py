"""Visual tokens to choose from, made up: in clusters, slowly varying over an image, or noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIELDS = 64  # what slowly varies over an image
REACH = (1.0, 4.0)  # of a half of the fields each, in tokens
MEAN, NOISE = 0.8, 0.6  # of what all tokens share, and of what none do, against the fields
CLUSTER, SPREAD = 20, 0.3  # tokens of a cluster, and their deviation from its centre, of length 1 per dimension
KINDS = ("clusters", "image", "noise")


def features(kind: str, n: int, width: int, generator: torch.Generator) -> Tensor:
    """Return `n` tokens [N, D] in float32.

    "image": FIELDS smooth fields over a grid, in as many directions, of falling weight; a mean; noise. Neighbours have
    a cosine of about 0.76, all others 0.34 in the mean. "noise": all are independent and nearly orthogonal. "clusters":
    such noise for every CLUSTER tokens, plus SPREAD times noise of their own; two of a cluster have a cosine of 0.92.
    """
    if kind == "clusters":
        centres = torch.randn(max(1, n // CLUSTER), width, generator=generator)
        member = torch.randint(len(centres), (n,), generator=generator)
        return centres[member] + SPREAD * torch.randn(n, width, generator=generator)
    if kind == "noise":
        return torch.randn(n, width, generator=generator)
    h = max(side for side in range(1, math.isqrt(n) + 1) if n % side == 0)
    maps = torch.cat([_smooth(FIELDS // 2, h, n // h, reach, generator) for reach in REACH])
    weight = torch.arange(1, FIELDS // 2 + 1).repeat(2) ** -0.5
    x = maps.T @ (weight[:, None] * torch.randn(FIELDS, width, generator=generator))
    shared = MEAN * torch.randn(width, generator=generator)
    return x / x.std() + shared + NOISE * torch.randn(n, width, generator=generator)


def importance(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return what a scorer says of tokens, from 0 to 1: it is linear in them."""
    score = x @ torch.randn(x.shape[1], generator=generator)
    return (score - score.min()) / (score.max() - score.min() + 1e-6)


def _smooth(count: int, h: int, w: int, reach: float, generator: torch.Generator) -> Tensor:
    """Return noise [count, h * w] of variance 1, smoothed by a Gaussian."""
    noise = torch.fft.rfft2(torch.randn(count, h, w, generator=generator))
    y, x = torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)
    field = torch.fft.irfft2(noise * torch.exp(-2 * (math.pi * reach) ** 2 * (y**2 + x**2)), s=(h, w)).flatten(1)
    return field / field.std(dim=1, keepdim=True)

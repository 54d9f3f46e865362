"""Synthetic visual tokens: in clusters, slowly varying over an image, or noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIELDS = 64  # number of smooth fields over an image
REACH = (1.0, 4.0)  # smoothing lengths in tokens, each for half of the fields
MEAN, NOISE = 0.8, 0.6  # weights of a shared mean and of independent noise, relative to the fields
CLUSTER, SPREAD = 20, 0.3  # tokens per cluster, and their deviation from its centre
KINDS = ("clusters", "image", "noise")


def features(kind: str, n: int, width: int, generator: torch.Generator) -> Tensor:
    """Return `n` tokens [N, D] in float32.

    "image": the sum of FIELDS smooth fields over a grid in random directions, with falling weights, a mean, and noise.
    Neighbours have a cosine of about 0.76, other pairs 0.34 on average. "noise": tokens are independent and nearly
    orthogonal. "clusters": one such centre for every CLUSTER tokens, plus SPREAD times noise; two tokens of a cluster
    have a cosine of 0.92.
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
    """Return an importance from 0 to 1 that is a random linear function of the tokens."""
    score = x @ torch.randn(x.shape[1], generator=generator)
    return (score - score.min()) / (score.max() - score.min() + 1e-6)


def _smooth(count: int, h: int, w: int, reach: float, generator: torch.Generator) -> Tensor:
    """Return noise [count, h * w] of variance 1, smoothed by a Gaussian."""
    noise = torch.fft.rfft2(torch.randn(count, h, w, generator=generator))
    y, x = torch.fft.fftfreq(h)[:, None], torch.fft.rfftfreq(w)
    field = torch.fft.irfft2(noise * torch.exp(-2 * (math.pi * reach) ** 2 * (y**2 + x**2)), s=(h, w)).flatten(1)
    return field / field.std(dim=1, keepdim=True)

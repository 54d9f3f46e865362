"""Tensors stored in int8 with one float32 scale per row (output channel): a quarter of float32's size.

The tensor `NAME` of a file is int8, and `NAME.scale` holds its scales: the value is `NAME * NAME.scale`, row by row.
Tensors without a scale are stored as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"
LARGEST = 127


def quantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` for a file: weight matrices and kernels in int8, other tables in float16, vectors in float32."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")
        if tensor.ndim > 1 and name.endswith(".weight"):
            rows = tensor.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * LARGEST) / LARGEST
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
            stored[name + SCALE] = scale
        else:
            stored[name] = tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32)
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def dequantised(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file in float32; ValueError if an int8 tensor and its scales do not go together."""
    scales = {name.removesuffix(SCALE): tensor for name, tensor in stored.items() if name.endswith(SCALE)}
    state = {}
    for name, tensor in stored.items():
        if name.endswith(SCALE):
            continue
        scale = scales.pop(name, None)
        if (tensor.dtype == torch.int8) != (scale is not None):
            raise ValueError(f"{name} is {tensor.dtype}, and its scales are {'missing' if scale is None else 'there'}")
        if scale is None:
            state[name] = tensor.float()
        elif scale.shape != tensor.shape[:1] or scale.dtype != torch.float32:
            raise ValueError(f"{name} has {len(tensor)} rows, its scales are {list(scale.shape)} of {scale.dtype}")
        else:
            state[name] = (tensor.flatten(1) * scale[:, None]).view(tensor.shape)
    if scales:
        raise ValueError(f"{min(scales)} has scales and no values")
    return state

"""Crops of an image, the mosaic that tiles form, and its rows in the prompt, for families that cut images into tiles.

Crop 0 is the whole image, the others are tiles of it in row-major order. Each crop has side x side patches. The patches
of the tiles are put together to a mosaic, and the lines that only show the padding of the image are taken off. In the
prompt, the patches of crop 0 come first, then the mosaic line by line, and a newline row after each line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.models.layout import Placeholders
from methods.tokens import Grid


@dataclass(frozen=True, eq=False)
class Packing:
    """How the crops of one image become rows of the prompt.

    Args:
        side: patches along a side of a crop.
        tiles: (rows, columns) of tiles; (0, 0) for an image that is one crop, which one newline closes.
        mosaic: patch [H, W] at each place of the mosaic, numbered through all crops, without padding; None: no tiles.
        resized: lines and columns to which features of the mosaic are interpolated bilinearly; None: they are not.
    """

    side: int
    tiles: tuple[int, int]
    mosaic: Tensor | None
    resized: tuple[int, int] | None = None

    @property
    def crops(self) -> int:
        """The number of crops: the whole image and its tiles."""
        return 1 + self.tiles[0] * self.tiles[1]

    @property
    def grids(self) -> list[Grid]:
        """(t, h, w) of crop 0 and of the mosaic."""
        base = (1, self.side, self.side)
        return [base] if self.mosaic is None else [base, (1, *self._size(self.mosaic))]

    @cached_property
    def placeholders(self) -> Placeholders:
        """The rows of the image in the prompt."""
        base = self.side**2
        if self.mosaic is None:
            patches = torch.arange(base + 1) < base
            one_crop = torch.zeros(base, dtype=torch.int64)
            return Placeholders(self.grids, patches, torch.full((base + 1,), base), one_crop)
        lines, columns = self._size(self.mosaic)
        ends = base + (columns + 1) * torch.arange(1, lines + 1).repeat_interleave(columns + 1) - 1
        line_ends = torch.cat([torch.full((base,), -1), ends])
        patches = line_ends != torch.arange(len(line_ends))
        place = self.mosaic[_nearest(lines, len(self.mosaic))][:, _nearest(columns, self.mosaic.shape[1])]
        crops = torch.cat([torch.zeros(base, dtype=torch.int64), place.flatten() // base])
        return Placeholders(self.grids, patches, line_ends, crops)

    def carry(self, values: Tensor) -> Tensor:
        """Return what the patches of the prompt have [N, ...] of `values` [crops * side * side, ...] of all patches."""
        base = values[: self.side**2]
        if self.mosaic is None:
            return base
        lines = values[self.mosaic.to(values.device)]
        if self.resized is not None:  # as the model interpolates features
            lines = interpolated(lines.unsqueeze(0), self.resized).squeeze(0)
        return torch.cat([base, lines.flatten(0, 1)])

    def _size(self, mosaic: Tensor) -> tuple[int, int]:
        return self.resized or (mosaic.shape[0], mosaic.shape[1])


@dataclass(frozen=True)
class PooledVideo:
    """How the frames of one video become rows: every frame is one crop, of which lines and columns are halved.

    One newline after the last frame closes the video. It is no patch and stays, as text does.
    """

    side: int  # patches along a side of a frame
    crops: int  # frames

    @property
    def pooled(self) -> int:
        """Tokens along a side of a frame."""
        return math.ceil(self.side / 2)

    @cached_property
    def placeholders(self) -> Placeholders:
        """The rows of the video in the prompt."""
        tokens = self.pooled**2
        count = self.crops * tokens
        frames = torch.arange(self.crops).repeat_interleave(tokens)
        grid = (self.crops, self.pooled, self.pooled)
        return Placeholders([grid], torch.arange(count + 1) < count, crops=frames)

    def carry(self, values: Tensor) -> Tensor:
        """Return what the tokens of the prompt have [N, ...] of `values` [frames * side * side, ...] of all patches."""
        frames = values.unflatten(0, (self.crops, self.side, self.side))
        return interpolated(frames, (self.pooled, self.pooled)).flatten(0, 2)


def mosaic_of(tiles: tuple[int, int], side: int, image: tuple[int, int]) -> Tensor:
    """Return the mosaic [H, W] of (rows, columns) of tiles that show an image of (height, width) pixels.

    The image fills one side of the mosaic. Padding at both ends of the other is as wide as the models assume, which
    round the image's size to seven digits and then down.
    """
    rows, columns = tiles
    patches = side**2 + torch.arange(rows * columns * side**2)  # after those of crop 0
    whole = patches.view(rows, columns, side, side).transpose(1, 2).reshape(rows * side, columns * side)
    (height, width), (lines, across) = image, whole.shape
    if width / height > across / lines:
        padding = (lines - int(round(height * (across / width), 7))) // 2
        return whole[padding : lines - padding]
    padding = (across - int(round(width * (lines / height), 7))) // 2
    return whole[:, padding : across - padding]


def interpolated(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `images` [B, H, W, ...] bilinearly to `size`, as LLaVA-OneVision resizes features."""
    planes = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)
    resized = F.interpolate(planes, size, mode="bilinear").permute(0, 2, 3, 1)
    return resized.reshape(len(images), *size, *images.shape[3:])


def _nearest(count: int, length: int) -> Tensor:
    """Return the places in 0..length-1 that are nearest to `count` evenly spread ones."""
    return (2 * torch.arange(count) + 1) * length // (2 * count)

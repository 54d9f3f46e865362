"""Pictures of images that a model sees in crops, and of frames of one size, recovered from its input tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


def has_crops(inputs: Any) -> bool:
    """Tell whether images come in crops, or videos in frames of one size."""
    return "image_sizes" in inputs or np.ndim(inputs.get("pixel_values_videos")) == 5


def pictures(processor: Any, inputs: Any, grids: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """Yield normalised pixels [H, W, 3] for each temporal step of each grid (t, h, w) of a prompt.

    An image is shown by crop 0, and by the mosaic of its tiles without padding if it has some. ValueError if the
    prompt's placeholders do not have these grids.
    """
    images, clips, parts = _images(processor, inputs), iter(inputs.get("pixel_values_videos", ())), iter(grids)
    video = getattr(processor, "video_token_id", None)
    ids = inputs["input_ids"].flatten().tolist()
    placeholders = [token for token in ids if token in (processor.image_token_id, video)]
    rows = 0
    while rows < len(placeholders) and (grid := next(parts, None)):
        rows += math.prod(grid)
        if placeholders[rows - math.prod(grid)] == video:
            rows += 1  # closes it
            yield from next(clips).permute(0, 2, 3, 1).float().numpy()
            continue
        crops, tiles, size = next(images)
        edge = crops.shape[-1] // grid[1]  # pixels of a patch; what is left over at the end of a crop is no patch
        crops = crops[..., : grid[1] * edge, : grid[1] * edge]
        yield crops[0].permute(1, 2, 0).numpy()
        if tiles is None:
            rows += 1
        else:
            _, height, width = next(parts, (0, 0, 0))
            rows += height * (width + 1)
            yield _mosaic(crops, grid[1], tiles, size)
    if rows != len(placeholders) or next(parts, None) is not None:
        seen = f"the prompt has {len(placeholders)} rows for images and videos"
        raise ValueError(f"{seen}, the recorded grids {grids} do not fit them")


def _images(processor: Any, inputs: Any) -> Iterator[tuple[Any, tuple[int, int] | None, tuple[int, int]]]:
    """Yield crops [crops, 3, H, W] of each image, (rows, columns) of its tiles, and its size before it was resized."""
    from transformers.image_processing_utils import select_best_resolution

    if "pixel_values" not in inputs:
        return
    sizes = inputs["image_sizes"].tolist()
    counts = inputs["batch_num_images"].tolist() if "batch_num_images" in inputs else [1] * len(sizes)
    alone = [count == 1 for count in counts for _ in range(count)]
    for crops, (height, width), tiled in zip(inputs["pixel_values"].float(), sizes, alone, strict=True):
        best = select_best_resolution((height, width), processor.image_processor.image_grid_pinpoints)
        tiles = best[0] // crops.shape[-2], best[1] // crops.shape[-1]
        yield crops, tiles if tiled else None, (height, width)


def _mosaic(crops: Any, side: int, tiles: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the tiles of an image of `size`, put together without padding; a crop has side x side patches."""
    from harness.models.mosaic import mosaic_of

    patches = crops.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # [crops, 3, side, edge, side, edge]
    places = patches.permute(0, 2, 4, 3, 5, 1).flatten(0, 2)[mosaic_of(tiles, side, size)]  # [H, W, edge, edge, 3]
    pixels: np.ndarray = places.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1).numpy()
    return pixels

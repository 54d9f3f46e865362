"""Frames of a video at the size that pixel limits say, for processors whose resizing is turned off."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_video
from qwen_vl_utils.vision_process import get_video_reader_backend, smart_resize
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from harness.models.bad_input import BadInput, reading
from harness.models.limits import PixelLimits
from harness.models.pictures import existing
from harness.models.videos import FRAME_LIST_FPS, OpenVideo, opened
from methods.tokens import Grid

DECODED = 8  # frames of a file that are held at their full size before they are resized


def resized_video(
    media: Any, limits: PixelLimits, patch: int, span: int, grid: Grid | None = None
) -> tuple[torch.Tensor, dict[str, Any], int]:
    """Return frames [T, 3, H, W] of a video, resized, metadata with their times, and how many frames were read.

    The last frame is repeated to fill up a multiple of `span`.
    """
    clip = opened(media)
    if clip.decord is not None and clip.total > 1 and grid is None:
        return _decoded(existing(str(media)), clip, limits, patch, span)
    chosen = clip.chosen(limits)
    count = len(chosen) + -len(chosen) % span
    frames = _resized(clip.read(chosen), count, limits, patch, span, grid)
    metadata = {"fps": clip.rate, "frames_indices": chosen, "total_num_frames": clip.total}
    if clip.rate is None:
        metadata = {"fps": FRAME_LIST_FPS, "frames_indices": list(range(count)), "total_num_frames": count}
    return frames, metadata, len(chosen)


def _decoded(
    file: str, clip: OpenVideo, limits: PixelLimits, patch: int, span: int
) -> tuple[torch.Tensor, dict[str, Any], int]:
    """Return the frames and metadata that fetch_video returns for a file, without all frames at their full size."""
    import decord

    count = len(clip.chosen(limits))
    pixels = limits.of_frames(count, patch, span)
    if get_video_reader_backend() != "decord":
        request = {"video": file, "nframes": count, **pixels}
        frames, metadata = fetch_video(request, image_patch_size=patch, return_video_metadata=True)
        return frames, metadata, count
    chosen = torch.linspace(0, clip.total - 1, count).round().long().tolist()  # as fetch_video rounds
    frames = torch.empty(0)
    for start in range(0, count, DECODED):
        with reading(decord.DECORDError):
            decoded = torch.from_numpy(clip.decord.get_batch(chosen[start : start + DECODED]).asnumpy())
        if not start:
            _, height, width, _ = decoded.shape
            frames = torch.empty(count, 3, *_size(height, width, pixels, patch))
        batch = decoded.permute(0, 3, 1, 2)
        size = list(frames.shape[2:])
        frames[start : start + DECODED] = resize(batch, size, InterpolationMode.BICUBIC, antialias=True)
    return frames, {"fps": clip.rate, "frames_indices": chosen, "total_num_frames": clip.total}, count


def _resized(
    frames: Iterator[Image.Image], count: int, limits: PixelLimits, patch: int, span: int, grid: Grid | None
) -> torch.Tensor:
    # Not fetch_video: it rounds frames of a list to multiples of 56 pixels before it resizes them to multiples of 28.
    first = next(frames)
    rows, columns = _size(first.height, first.width, limits.of_frames(count, patch, span), patch)
    if grid is not None:
        rows, columns = (2 * patch * side for side in grid[1:])
    resized = [np.asarray(frame.resize((columns, rows), Image.Resampling.BICUBIC)) for frame in chain([first], frames)]
    resized += resized[-1:] * (count - len(resized))
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()


def _size(height: int, width: int, pixels: dict[str, Any], patch: int) -> tuple[int, int]:
    with reading(ValueError):  # raised for shapes that smart_resize refuses
        rows, columns = smart_resize(height, width, 2 * patch, pixels["min_pixels"], pixels["max_pixels"])
    if not rows * columns:
        raise BadInput(f"frames of {width} x {height} pixels are too long to be shown in {pixels['max_pixels']} pixels")
    return rows, columns

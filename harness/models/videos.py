"""Frames of videos: evenly spread over a file or over a list of pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.models.bad_input import BadInput, reading
from harness.models.pictures import as_rgb, existing

FRAME_LIST_FPS = 2.0  # frames per second of a list of images, which has no times: Qwen2.5-VL's sampling rate


def has_decord() -> bool:
    """Tell whether decord is installed; there is no wheel for macOS and for ARM."""
    return find_spec("decord") is not None


def checked_video(media: Any) -> str | Sequence[Any]:
    """Return a video as the path of a file or as a list of pictures; BadInput if it is neither, or has no frame."""
    if isinstance(media, dict) and not media.get("url"):
        media = ()  # lmms-eval passes on the whole entry where its address is empty
    if isinstance(media, list | tuple):
        if not media:
            raise BadInput("the video has no frame")
        return media
    if not isinstance(media, str) or not media:
        raise BadInput(f"the video is {media!r:.40}: expected a file or a list of pictures")
    return existing(media)


def spread_frames(media: Any, max_frames: int, span: int = 1) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return evenly spread frames of a file or of a list of images, and metadata with their times.

    A list is filled up with its last frame to a multiple of `span`.
    """
    media = checked_video(media)
    if isinstance(media, str):
        return (_decode if has_decord() else _decode_all)(media, max_frames)
    images = [as_rgb(media[i]) for i in _spread_indices(len(media), min(len(media), max_frames))]
    images += images[-1:] * (-len(images) % span)
    return images, _metadata(FRAME_LIST_FPS, range(len(images)), len(images))


def reader_of(file: str) -> Any:
    """Return decord's reader of a video; BadInput if it has no frame."""
    import decord

    try:
        reader = decord.VideoReader(file)
    except (RuntimeError, decord.DECORDError) as error:
        raise BadInput(f"{Path(file).name} cannot be opened as a video") from error
    if not len(reader):
        raise BadInput(f"{Path(file).name} has no frame")
    return reader


def _decode(file: str, max_frames: int) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return evenly spread frames of a file, the same that fetch_video reads, and their metadata."""
    import decord

    reader = reader_of(file)
    chosen = _spread_indices(len(reader), even_count(len(reader), max_frames))
    with reading(decord.DECORDError):
        images = [Image.fromarray(frame) for frame in reader.get_batch(chosen).asnumpy()]
    return images, _metadata(reader.get_avg_fps(), chosen, len(reader))


def _decode_all(file: str, max_frames: int) -> tuple[list[Image.Image], dict[str, Any]]:
    """Return the same as `_decode` without decord: PyAV decodes all of the file, which is slower than seeking."""
    import av

    try:
        with av.open(file) as container:
            total = sum(1 for _ in container.decode(video=0)) if container.streams.video else 0
    except av.error.InvalidDataError as error:
        raise BadInput(f"{Path(file).name} cannot be decoded: {error.strerror}") from error
    if not total:
        raise BadInput(f"{Path(file).name} has no frame")
    chosen = _spread_indices(total, even_count(total, max_frames))
    with av.open(file) as container:
        fps = float(container.streams.video[0].average_rate or FRAME_LIST_FPS)
        images = {i: frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in set(chosen)}
    return [images[i] for i in chosen], _metadata(fps, chosen, total)


def even_count(total: int, max_frames: int) -> int:
    """Return how many frames of a file to read: an even number for every model, as in fetch_video."""
    return max(2, min(max_frames, total) // 2 * 2)


def _spread_indices(total: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def _metadata(fps: float, indices: Iterable[int], total: int) -> dict[str, Any]:
    return {"fps": fps, "frames_indices": list(indices), "total_num_frames": total}

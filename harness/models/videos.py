"""Videos: which of their frames are shown, and reading those from a file, a list of pictures or an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.core.errors import UserError
from harness.models.bad_input import BadInput, reading
from harness.models.pictures import as_rgb, existing

FRAME_LIST_FPS = 2.0  # frames per second of a list of images, which has no times: Qwen2.5-VL's sampling rate
PART_OF_VIDEO = "the question shows a part of a video, by start and end: only whole videos can be shown"


class FrameRule:
    """Which frames of a video are shown: `max_frames`, or `fps` a second within `min_frames` and `max_frames`.

    Either way they are evenly spaced from the first to the last. A shorter video shows all of its frames.
    """

    max_frames: int
    fps: float | None
    min_frames: int

    def count(self, total: int, rate: float) -> int:
        """Return how many of the `total` frames of a file to show: an even number for every model, as in fetch_video.

        `rate` is the file's own number of frames per second.
        """
        wanted = float(self.max_frames)
        if self.fps is not None:
            wanted = min(max(round(total / rate * self.fps, 6), self.min_frames), self.max_frames)
        return max(2, int(min(wanted, total)) // 2 * 2)


@dataclass(frozen=True)
class OpenVideo:
    """An open video: its number of frames, how many of them make a second, and how to read some.

    `rate` is None for a list, which has no times. `decord` is the reader of a file that decord opened.
    """

    total: int
    rate: float | None
    read: Callable[[Sequence[int]], Iterator[Image.Image]]
    decord: Any = None

    def chosen(self, rule: FrameRule) -> list[int]:
        """Return the indices of the frames to show; UserError if they are asked for by a rate that is not known."""
        if self.rate is not None:
            return _spread(self.total, rule.count(self.total, self.rate))
        if rule.fps is not None:
            shown = f"the question shows a list of {self.total} frames without their times"
            raise UserError(f"model.fps={rule.fps:g} needs a video file, {shown}: pass model.fps=null")
        return _spread(self.total, min(self.total, rule.max_frames))

    def sampled_rate(self, frames: int) -> float:
        """Return how many frames make a second, where `frames` are shown of the clip."""
        return FRAME_LIST_FPS if self.rate is None else frames / self.total * self.rate


def has_decord() -> bool:
    """Tell whether decord is installed; there is no wheel for macOS and for ARM."""
    return find_spec("decord") is not None


def opened(media: Any) -> OpenVideo:
    """Open a video: the path of a file, a list of pictures or an array of frames; BadInput for everything else."""
    media = checked_video(media)
    if isinstance(media, str):
        return (_opened_by_decord if has_decord() else _opened_by_av)(media)
    return OpenVideo(len(media), None, lambda chosen: (as_rgb(media[i]) for i in chosen))


def checked_video(media: Any) -> str | Sequence[Any]:
    """Return a video as the path of a file or as a list of pictures; BadInput if it is neither, or has no frame."""
    if isinstance(media, dict):
        if {"video_start", "video_end"} & media.keys():
            raise BadInput(PART_OF_VIDEO)
        if not media.get("url"):
            media = ()  # lmms-eval passes on the whole entry where its address is empty
    if isinstance(media, list | tuple) or (isinstance(media, np.ndarray) and media.ndim):
        if not len(media):
            raise BadInput("the video has no frame")
        return [_picture(frame) for frame in media]
    if not isinstance(media, str) or not media:
        shown = repr(media) if isinstance(media, str) else type(media).__name__
        raise BadInput(f"the video is {shown}: expected a file, a list of pictures or an array [T, H, W, 3] of 8 bits")
    return existing(media)


def _picture(frame: Any) -> Any:
    """Return a frame that is an array as a picture."""
    if not isinstance(frame, np.ndarray):
        return frame
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        got = f"{frame.dtype} {list(frame.shape)}"
        raise BadInput(f"a frame of the video is an array of {got}: expected 8 bits, uint8 [H, W, 3]")
    return Image.fromarray(frame)


def _opened_by_decord(file: str) -> OpenVideo:
    import decord

    try:
        reader = decord.VideoReader(file)
    except (RuntimeError, decord.DECORDError) as error:
        raise BadInput(f"{Path(file).name} cannot be opened as a video") from error
    if not len(reader):
        raise BadInput(f"{Path(file).name} has no frame")

    def read(chosen: Sequence[int]) -> Iterator[Image.Image]:
        for i in chosen:
            with reading(decord.DECORDError):
                frame = reader.get_batch([i]).asnumpy()[0]
            yield Image.fromarray(frame)

    return OpenVideo(len(reader), _checked_rate(reader.get_avg_fps(), file), read, reader)


def _opened_by_av(file: str) -> OpenVideo:
    """Open a file without decord: PyAV decodes all of the file to count its frames, which is slower than seeking."""
    import av

    try:
        with av.open(file) as container:
            stream = next(iter(container.streams.video), None)
            if stream is not None and stream.codec_context is None:  # PyAV to 18.0 would end the process in decode()
                raise BadInput(f"{Path(file).name} cannot be decoded: no decoder for its frames")
            total = 0 if stream is None else sum(1 for _ in container.decode(stream))
            rate = 0 if stream is None else stream.average_rate or 0
    except av.error.FFmpegError as error:
        if isinstance(error, OSError | MemoryError):  # of the machine, not of the file
            raise
        raise BadInput(f"{Path(file).name} cannot be decoded: {error.strerror}") from error
    if not total:
        raise BadInput(f"{Path(file).name} has no frame")

    def read(chosen: Sequence[int]) -> Iterator[Image.Image]:
        wanted = iter([*chosen, -1])
        following = next(wanted)
        with av.open(file) as container:
            for i, frame in enumerate(container.decode(video=0)):
                while following == i:  # of a video of one frame, twice
                    yield frame.to_image()
                    following = next(wanted)

    return OpenVideo(total, _checked_rate(float(rate), file), read)


def _checked_rate(rate: float, file: str) -> float:
    if not (math.isfinite(rate) and rate > 0):
        raise BadInput(f"{Path(file).name} does not say how many frames make a second, which gives them their times")
    return rate


def _spread(total: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()]

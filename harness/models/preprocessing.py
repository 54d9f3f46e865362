"""Turn chat messages into model inputs. Every image and frame is resized exactly once.

For processors like Qwen's, this module resizes by pixel limits; other processors have a fixed resolution.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils.vision_process import smart_resize

from harness.core.config import ModelConfig
from harness.core.files import json_line
from harness.models.bad_input import BadInput, check_no_placeholder, reading
from harness.models.checkpoint import content_digest
from harness.models.context import check_length
from harness.models.pictures import as_rgb, check_size_as_resized, existing, turn_of
from methods.tokens import Grid

# Most visual tokens of a frame and of a video: the limits of qwen_vl_utils, also of Qwen2.5-VL's published scores
FRAME_TOKENS = 768
VIDEO_TOKENS = 115_200
FRAME_LIST_FPS = 2.0  # frames per second of a list of images, which has no times: Qwen2.5-VL's sampling rate

Message = dict[str, Any]  # {"role": str, "content": [{"type": "image" | "video" | "text", "url" | "text": ...}]}


@dataclass(frozen=True)
class PixelLimits:
    """Limits of pixels per image or frame, and of frames per video. Frames also have the limits of `of_frames`."""

    min_pixels: int = 256 * 784
    max_pixels: int = 2048 * 784
    max_frames: int = 32

    def of_frames(self, count: int, patch: int, span: int) -> dict[str, Any]:
        """Return the limits of a video of `count` frames as arguments of `fetch_video`; a token spans `span` frames."""
        pixels = (2 * patch) ** 2  # of one visual token in one frame
        cap = max(min(FRAME_TOKENS, span * VIDEO_TOKENS / count) * pixels, int(1.05 * self.min_pixels))
        limits = {"min_pixels": self.min_pixels, "max_pixels": min(self.max_pixels, cap)}
        # Without a total, qwen_vl_utils reads the environment's MODEL_SEQ_LEN; it assumes two frames per token.
        return {**limits, "total_pixels": VIDEO_TOKENS * pixels * span // 2}


def limits_of(processor: Any, model: ModelConfig) -> PixelLimits | None:
    """Return the pixel limits for a processor like Qwen's, else None; ValueError if limits do not apply or fit."""
    settings = {key: getattr(model, key) for key in ("min_pixels", "max_pixels", "max_frames")}
    settings = {key: value for key, value in settings.items() if value is not None}
    if not hasattr(processor.image_processor, "merge_size"):
        if settings:
            listed = ", ".join(f"model.{key}={value}" for key, value in settings.items())
            nulls = " ".join(f"model.{key}=null" for key in settings)
            raise ValueError(f"{listed}: {type(processor).__name__} has a resolution of its own, pass {nulls}")
        return None
    limits = PixelLimits(**settings)
    if limits.min_pixels > limits.max_pixels:
        low, high = limits.min_pixels, limits.max_pixels
        raise ValueError(f"model.min_pixels={low} must lie between 1 and model.max_pixels={high}")
    return limits


def to_inputs(
    processor: Any,
    conversations: Sequence[Sequence[Message]],
    limits: PixelLimits | None,
    context: int | None = None,
    grids: Sequence[Grid | None] = (),
) -> Any:
    """Return the model inputs of a batch of conversations, left-padded, as the processor's BatchFeature.

    BadInput if an image or video does not decode, cannot be resized or is of a kind that the model does not take, if a
    text contains what stands for an image in prompts, or if a prompt is longer than `context`.

    Args:
        processor: the model's processor.
        conversations: chat messages of each prompt.
        limits: the result of `limits_of`.
        context: tokens that a prompt may have, as `context_length` returns it; None for any number.
        grids: (t, h, w) in tokens of each image and video, in order, to resize to instead of `limits`.
    """
    inputs = (
        _unresized(processor, conversations)
        if limits is None
        else _resized_once(processor, conversations, limits, grids)
    )
    if context is not None:
        check_length(inputs["attention_mask"], context)
    return inputs


def _resized_once(
    processor: Any, conversations: Sequence[Sequence[Message]], limits: PixelLimits, grids: Sequence[Grid | None]
) -> Any:
    """Return the model inputs from a processor whose resizing is turned off."""
    patch = processor.image_processor.patch_size
    images, videos, metadata = [], [], []
    for (kind, media), grid in zip_longest(media_of(conversations), grids):
        if kind == "image":
            images.append(_image(media, limits, patch, grid))
        elif kind == "video":
            frames, details = _video(media, limits, patch, processor.video_processor.temporal_patch_size, grid)
            videos.append(frames)
            metadata.append(details)
        else:
            raise BadInput(f"the question has {kind}, the model takes images and videos")
    return processor(
        text=_prompts(processor, conversations),
        images=images or None,
        videos=videos or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        images_kwargs={"do_resize": False},
        videos_kwargs={"do_resize": False, "do_sample_frames": False, "video_metadata": metadata or None},
    )


def _unresized(processor: Any, conversations: Sequence[Sequence[Message]]) -> Any:
    """Return the model inputs from a processor that resizes, crops or pads itself."""
    images = []
    for kind, media in media_of(conversations):
        if kind != "image":
            raise BadInput(f"the question has {kind}, the model takes images only: try tasks=pocket_image")
        images.append(as_rgb(media))
        check_size_as_resized(images[-1], processor)
    texts = _prompts(processor, conversations)
    return processor(text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt")


def _prompts(processor: Any, conversations: Sequence[Sequence[Message]]) -> list[str]:
    check_no_placeholder(processor, conversations)
    texts: list[str] = processor.apply_chat_template(
        [[_placeholders(message) for message in messages] for messages in conversations],
        tokenize=False,
        add_generation_prompt=True,
    )
    return texts


def messages_digest(messages: Sequence[Message]) -> str:
    """Return a digest of everything that the model is shown: text, order, pixels of images, content of video files."""
    digest = hashlib.sha256()
    for message in messages:
        for part in message["content"]:
            media = part.get("url")
            head = {key: value for key, value in part.items() if key != "url"}
            digest.update(json_line([message["role"], head], ensure_ascii=True, sort_keys=True, default=str).encode())
            for item in media if isinstance(media, list | tuple) else [media]:
                _update(digest, item)
    return digest.hexdigest()


def visual_digest(messages: Sequence[Message]) -> str | None:
    """Return a digest of the images and videos that the model is shown; None without any.

    Questions with the same one share their picture, so their answers are not independent.
    """
    digest, media = hashlib.sha256(), media_of([messages])
    for kind, shown in media:
        digest.update(kind.encode())
        for item in shown if isinstance(shown, list | tuple) else [shown]:
            _update(digest, item)
    return digest.hexdigest() if media else None


def _update(digest: Any, item: Any) -> None:
    if isinstance(item, Image.Image):
        digest.update(f"{item.mode}{item.size}".encode() + item.tobytes())
        if item.mode == "P":
            digest.update(f"{item.getpalette()}{item.info.get('transparency')}".encode())
        elif "transparency" in item.info:
            digest.update(f"transparent {item.info['transparency']}".encode())
        if (turn := turn_of(item)) is not None:
            digest.update(f"turned {turn.name}".encode())
    elif isinstance(item, str) and Path(item).is_file():
        digest.update(content_digest(Path(item)).encode())
    else:
        digest.update(repr(item).encode())


def media_of(conversations: Sequence[Sequence[Message]]) -> list[tuple[str, Any]]:
    """Return the (kind, image or video) of every part that is not text, in order."""
    parts = [part for messages in conversations for message in messages for part in message["content"]]
    return [(part["type"], part["url"]) for part in parts if part["type"] != "text"]


def _placeholders(message: Message) -> Message:
    content = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
    return {"role": message["role"], "content": content}


def _image(media: Any, limits: PixelLimits, patch: int, grid: Grid | None) -> Image.Image:
    if grid is None:
        pixels = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
        with reading(ValueError):  # raised for shapes that fetch_image refuses
            return fetch_image({"image": as_rgb(media), **pixels}, image_patch_size=patch)
    return as_rgb(media).resize((2 * patch * grid[2], 2 * patch * grid[1]), Image.Resampling.BICUBIC)


def _video(
    media: Any, limits: PixelLimits, patch: int, span: int, grid: Grid | None = None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return frames [T, 3, H, W] of a file or of a list of images, and metadata with their times."""
    if isinstance(media, dict) and not media.get("url"):
        media = ()  # lmms-eval passes on the whole entry where its address is empty
    if isinstance(media, list | tuple):
        if not media:
            raise BadInput("the video has no frame")
        images = [as_rgb(media[i]) for i in _spread_indices(len(media), min(len(media), limits.max_frames))]
        images += images[-1:] * (-len(images) % span)
        metadata = _video_metadata(FRAME_LIST_FPS, range(len(images)), len(images))
        return _resized(images, limits, patch, span, grid), metadata
    if not isinstance(media, str) or not media:
        raise BadInput(f"the video is {media!r:.40}: expected a file or a list of pictures")
    media = existing(media)
    no_decord = find_spec("decord") is None  # there is no wheel for macOS and for ARM
    total = 0 if no_decord else len(_reader(media))
    if total < 2 or grid is not None:  # fetch_video does not support a single frame, or a given size
        images, metadata = (_decode_all if no_decord else _decode)(media, limits.max_frames)
        return _resized(images, limits, patch, span, grid), metadata
    count = _even_count(total, limits.max_frames)
    request = {"video": media, "nframes": count, **limits.of_frames(count, patch, span)}
    try:
        frames, metadata = fetch_video(request, image_patch_size=patch, return_video_metadata=True)
    except Exception:  # fetch_video falls back to a reader that was removed, whose error hides the cause
        _decode(media, limits.max_frames)  # has the clearer error
        raise
    return frames, metadata


def _reader(file: str) -> Any:
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

    reader = _reader(file)
    chosen = _spread_indices(len(reader), _even_count(len(reader), max_frames))
    with reading(decord.DECORDError):
        images = [Image.fromarray(frame) for frame in reader.get_batch(chosen).asnumpy()]
    return images, _video_metadata(reader.get_avg_fps(), chosen, len(reader))


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
    chosen = _spread_indices(total, _even_count(total, max_frames))
    with av.open(file) as container:
        fps = float(container.streams.video[0].average_rate or FRAME_LIST_FPS)
        images = {i: frame.to_image() for i, frame in enumerate(container.decode(video=0)) if i in set(chosen)}
    return [images[i] for i in chosen], _video_metadata(fps, chosen, total)


def _even_count(total: int, max_frames: int) -> int:
    """Return how many frames of a file to read: an even number for every model, as in fetch_video."""
    return max(2, min(max_frames, total) // 2 * 2)


def _spread_indices(total: int, count: int) -> list[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def _video_metadata(fps: float, indices: Iterable[int], total: int) -> dict[str, Any]:
    return {"fps": fps, "frames_indices": list(indices), "total_num_frames": total}


def _resized(images: list[Image.Image], limits: PixelLimits, patch: int, span: int, grid: Grid | None) -> torch.Tensor:
    # Not fetch_video: it rounds frames of a list to multiples of 56 pixels before it resizes them to multiples of 28.
    width, height = images[0].size
    pixels = limits.of_frames(len(images), patch, span)
    with reading(ValueError):  # raised for shapes that smart_resize refuses
        rows, columns = smart_resize(height, width, 2 * patch, pixels["min_pixels"], pixels["max_pixels"])
    if grid is not None:
        rows, columns = (2 * patch * side for side in grid[1:])
    frames = np.stack([np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC)) for image in images])
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float()

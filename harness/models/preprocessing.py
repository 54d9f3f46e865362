"""Turn chat messages into model inputs. Every image and frame is resized exactly once.

For processors like Qwen's, this module resizes by pixel limits; other processors have a fixed resolution.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils.vision_process import smart_resize

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.files import json_line
from harness.models.bad_input import BadInput, check_no_placeholder, reading
from harness.models.checkpoint import content_digest
from harness.models.context import check_length
from harness.models.pictures import as_rgb, check_size_as_padded, check_size_as_resized, turn_of
from harness.models.videos import checked_video, even_count, has_decord, reader_of, spread_frames
from methods.tokens import Grid

# Most visual tokens of a frame and of a video: the limits of qwen_vl_utils, also of Qwen2.5-VL's published scores
FRAME_TOKENS = 768
VIDEO_TOKENS = 115_200

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


@dataclass(frozen=True)
class FrameLimit:
    """Limit of frames per video, for processors with a resolution of their own."""

    max_frames: int = 32


Limits = PixelLimits | FrameLimit | None  # None: images of one resolution only


def limits_of(processor: Any, model: ModelConfig) -> Limits:
    """Return the limits that apply to a processor; ValueError if some are set that do not apply or fit."""
    settings = {key: getattr(model, key) for key in ("min_pixels", "max_pixels", "max_frames")}
    settings = {key: value for key, value in settings.items() if value is not None}
    if not hasattr(processor.image_processor, "merge_size"):
        shows_videos = "pixel_values_videos" in processor.model_input_names  # InternVL's is used for images only
        unused = {key: value for key, value in settings.items() if key != "max_frames" or not shows_videos}
        if unused:
            listed = ", ".join(f"model.{key}={value}" for key, value in unused.items())
            nulls = " ".join(f"model.{key}=null" for key in unused)
            raise ValueError(f"{listed}: {type(processor).__name__} has a resolution of its own, pass {nulls}")
        return FrameLimit(**settings) if shows_videos else None
    limits = PixelLimits(**settings)
    if limits.min_pixels > limits.max_pixels:
        low, high = limits.min_pixels, limits.max_pixels
        raise ValueError(f"model.min_pixels={low} must lie between 1 and model.max_pixels={high}")
    return limits


def to_inputs(
    processor: Any,
    conversations: Sequence[Sequence[Message]],
    limits: Limits,
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
        _resized_once(processor, conversations, limits, grids)
        if isinstance(limits, PixelLimits)
        else _unresized(processor, conversations, limits)
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


def _unresized(processor: Any, conversations: Sequence[Sequence[Message]], limit: FrameLimit | None) -> Any:
    """Return the model inputs from a processor that resizes, crops or pads itself."""
    images: list[list[Image.Image]] = []  # of each conversation
    videos = []
    for messages in conversations:
        images.append([])
        for kind, media in media_of([messages]):
            if kind == "image":
                images[-1].append(as_rgb(media))
                check_size_as_resized(images[-1][-1], processor)
            elif kind == "video" and limit is not None:
                videos.append(_of_one_size(spread_frames(media, limit.max_frames)[0]))
            else:
                raise BadInput(f"the question has {kind}, the model takes images only: try tasks=pocket_image")
    # Processors that treat several images of a prompt otherwise than one take a list for each prompt.
    apart = "batch_num_images" in processor.image_processor.model_input_names
    for of_prompt in images:
        if apart and len(of_prompt) > 1:
            check_size_as_padded(of_prompt)
    if len(counts := {len(frames) for frames in videos}) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise UserError(f"videos of a batch have {listed} frames, this model takes one number: pass model.batch_size=1")
    shown: Any = images if apart else [image for of_prompt in images for image in of_prompt]
    return processor(
        text=_prompts(processor, conversations),
        images=shown if any(images) else None,
        **({"videos": videos, "videos_kwargs": {"do_sample_frames": False}} if videos else {}),
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def _of_one_size(frames: Sequence[Image.Image]) -> np.ndarray:
    """Return frames [T, H, W, 3]; frames of a list that differ from the first in size are resized to it."""
    size = frames[0].size
    return np.stack([np.asarray(frame if frame.size == size else frame.resize(size)) for frame in frames])


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
    media = checked_video(media)
    total = len(reader_of(media)) if isinstance(media, str) and has_decord() else 0
    if total < 2 or grid is not None:  # fetch_video does not support lists as we do, a single frame, or a given size
        images, metadata = spread_frames(media, limits.max_frames, span)
        return _resized(images, limits, patch, span, grid), metadata
    count = even_count(total, limits.max_frames)
    request = {"video": media, "nframes": count, **limits.of_frames(count, patch, span)}
    try:
        frames, metadata = fetch_video(request, image_patch_size=patch, return_video_metadata=True)
    except Exception:  # fetch_video falls back to a reader that was removed, whose error hides the cause
        spread_frames(media, limits.max_frames)  # has the clearer error
        raise
    return frames, metadata


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

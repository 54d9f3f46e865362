"""Turn chat messages into model inputs. Every image and frame is resized exactly once.

For processors like Qwen's, this module resizes by pixel limits; other processors have a fixed resolution.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from math import isqrt
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image
from qwen_vl_utils import fetch_image

from harness.core.errors import UserError
from harness.core.files import json_line
from harness.models.bad_input import BadInput, check_no_placeholder, reading
from harness.models.checkpoint import content_digest
from harness.models.context import check_length
from harness.models.limits import FrameLimit, Limits, PixelLimits
from harness.models.pictures import as_rgb, check_size_as_padded, check_size_as_resized, turn_of
from harness.models.resized_videos import resized_video
from harness.models.videos import PART_OF_VIDEO, opened
from methods.tokens import Grid

Message = dict[str, Any]  # {"role": str, "content": [{"type": "image" | "video" | "text", "url" | "text": ...}]}


class ShownVideo(TypedDict):
    """What a question shows of a video."""

    frames: int  # read from it
    seconds_per_step: float  # of a step of its grid: one frame, or the two that Qwen's tokens span
    tokens: int


def to_inputs(
    processor: Any,
    conversations: Sequence[Sequence[Message]],
    limits: Limits,
    context: int | None = None,
    grids: Sequence[Grid | None] = (),
    shown: list[list[ShownVideo]] | None = None,
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
        shown: gets what each conversation shows of its videos.
    """
    videos: list[list[ShownVideo]] = [[] for _ in conversations]
    inputs = (
        _resized_once(processor, conversations, limits, grids, videos)
        if isinstance(limits, PixelLimits)
        else _unresized(processor, conversations, limits, videos)
    )
    if context is not None:
        check_length(inputs["attention_mask"], context)
    if shown is not None:
        shown += videos
    return inputs


def _resized_once(
    processor: Any,
    conversations: Sequence[Sequence[Message]],
    limits: PixelLimits,
    grids: Sequence[Grid | None],
    shown: list[list[ShownVideo]],
) -> Any:
    """Return the model inputs from a processor whose resizing is turned off."""
    patch = processor.image_processor.patch_size
    images, videos, metadata = [], [], []
    for (number, kind, media), grid in zip_longest(_numbered(conversations), grids):
        if kind == "image":
            images.append(_image(media, limits, patch, grid))
        elif kind == "video":
            span = processor.video_processor.temporal_patch_size
            frames, details, read = resized_video(media, limits, patch, span, grid)
            videos.append(frames)
            metadata.append(details)
            count, _, height, width = frames.shape
            seconds = span * details["total_num_frames"] / (details["fps"] * count)
            tokens = count // span * (height // (2 * patch)) * (width // (2 * patch))
            shown[number].append({"frames": read, "seconds_per_step": seconds, "tokens": tokens})
        else:
            raise BadInput(f"the question has {kind}, the model takes images and videos")
    inputs = processor(
        text=_prompts(processor, conversations),
        images=images or None,
        videos=videos or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        images_kwargs={"do_resize": False},
        videos_kwargs={"do_resize": False, "do_sample_frames": False, "video_metadata": metadata or None},
    )
    _check_seconds(inputs, [video["seconds_per_step"] for of_prompt in shown for video in of_prompt])
    return inputs


def _check_seconds(inputs: Any, expected: Sequence[float]) -> None:
    """Raise RuntimeError if a processor tells the model another time between the steps of a video than is recorded."""
    told = [float(seconds) for seconds in inputs.get("second_per_grid_ts", ())]  # only Qwen2.5-VL's positions need it
    if told and not np.allclose(told, expected, rtol=1e-4):
        raise RuntimeError(f"steps of videos are {list(expected)} seconds apart, the processor tells the model {told}")


def _unresized(
    processor: Any,
    conversations: Sequence[Sequence[Message]],
    limit: FrameLimit | None,
    shown: list[list[ShownVideo]],
) -> Any:
    """Return the model inputs from a processor that resizes, crops or pads itself."""
    images: list[list[Image.Image]] = [[] for _ in conversations]
    videos = []
    for number, kind, media in _numbered(conversations):
        if kind == "image":
            images[number].append(as_rgb(media))
            check_size_as_resized(images[number][-1], processor)
        elif kind == "video" and limit is not None:
            clip = opened(media)
            frames = _of_one_size(clip.read(chosen := clip.chosen(limit)))
            videos.append(frames)
            tokens = len(frames) * _tokens_per_frame(processor)
            seconds = 1 / clip.sampled_rate(len(frames))
            shown[number].append({"frames": len(chosen), "seconds_per_step": seconds, "tokens": tokens})
        else:
            raise BadInput(f"the question has {kind}, {_images_only(processor)}")
    # Processors that treat several images of a prompt otherwise than one take a list for each prompt.
    apart = "batch_num_images" in processor.image_processor.model_input_names
    for of_prompt in images:
        if apart and len(of_prompt) > 1:
            check_size_as_padded(of_prompt)
    if len(counts := {len(frames) for frames in videos}) > 1:
        listed = " and ".join(map(str, sorted(counts)))
        raise UserError(f"videos of a batch have {listed} frames, this model takes one number: pass model.batch_size=1")
    pictures: Any = images if apart else [image for of_prompt in images for image in of_prompt]
    return processor(
        text=_prompts(processor, conversations),
        images=pictures if any(images) else None,
        **({"videos": videos, "videos_kwargs": {"do_sample_frames": False}} if videos else {}),
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def _images_only(processor: Any) -> str:
    if hasattr(processor, "video_processor"):  # InternVL's
        return "the model takes images only where model.max_frames is null: pass model.max_frames=8"
    return "the model takes images only: try tasks=pocket_image"


def _tokens_per_frame(processor: Any) -> int:
    """Return the visual tokens of a frame: InternVL's number, or OneVision's patches with lines and columns halved."""
    if hasattr(processor, "image_seq_length"):
        return int(processor.image_seq_length)
    return ((isqrt(processor.num_image_tokens) + 1) // 2) ** 2


def _of_one_size(frames: Iterator[Image.Image]) -> np.ndarray:
    """Return frames [T, H, W, 3]; frames of a list that differ from the first in size are resized to it."""
    first = next(frames)
    others = (frame if frame.size == first.size else frame.resize(first.size) for frame in frames)
    return np.stack([np.asarray(first), *map(np.asarray, others)])


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
    elif isinstance(item, np.ndarray):
        digest.update(f"array {item.dtype} {item.shape}".encode() + item.tobytes())
    elif isinstance(item, str) and Path(item).is_file():
        digest.update(content_digest(Path(item)).encode())
    else:
        digest.update(repr(item).encode())


def media_of(conversations: Sequence[Sequence[Message]]) -> list[tuple[str, Any]]:
    """Return the (kind, image or video) of every part that is not text, in order.

    BadInput if a part of a video is asked for, since all of it would be shown.
    """
    return [(kind, media) for _, kind, media in _numbered(conversations)]


def _numbered(conversations: Sequence[Sequence[Message]]) -> list[tuple[int, str, Any]]:
    """Return the same with the number of the conversation."""
    numbered = [(i, part) for i, messages in enumerate(conversations) for m in messages for part in m["content"]]
    for _, part in numbered:
        if part.get("start_time") is not None or part.get("end_time") is not None:
            raise BadInput(PART_OF_VIDEO)
    return [(number, part["type"], part["url"]) for number, part in numbered if part["type"] != "text"]


def _placeholders(message: Message) -> Message:
    content = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
    return {"role": message["role"], "content": content}


def _image(media: Any, limits: PixelLimits, patch: int, grid: Grid | None) -> Image.Image:
    if grid is None:
        pixels = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
        with reading(ValueError):  # raised for shapes that fetch_image refuses
            return fetch_image({"image": as_rgb(media), **pixels}, image_patch_size=patch)
    return as_rgb(media).resize((2 * patch * grid[2], 2 * patch * grid[1]), Image.Resampling.BICUBIC)

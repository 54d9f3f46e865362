"""Chat messages to model inputs for Qwen-style processors; every image and frame is resized exactly once, here."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image, fetch_video
from qwen_vl_utils.vision_process import smart_resize, to_rgb

FRAME_LIST_FPS = 2.0  # frames handed over as images carry no clock; two a second is Qwen2.5-VL's own sampling rate

Message = dict[str, Any]  # {"role": str, "content": [{"type": "image" | "video" | "text", "url" | "text": ...}]}


@dataclass(frozen=True)
class PixelLimits:
    """Pixels per image or frame, and frames per video."""

    min_pixels: int
    max_pixels: int
    max_frames: int


def to_inputs(processor: Any, conversations: Sequence[Sequence[Message]], limits: PixelLimits) -> Any:
    """Left-padded tensors of a batch of conversations, as the processor's own BatchFeature."""
    patch = processor.image_processor.patch_size
    images, videos, metadata = [], [], []
    for kind, media in _media(conversations):
        if kind == "image":
            pixels = {"min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
            images.append(fetch_image({"image": media, **pixels}, image_patch_size=patch))
        elif kind == "video":
            frames, about = _video(media, limits, patch)
            videos.append(frames)
            metadata.append(about)
        else:
            raise ValueError(f"the model takes images and videos, got {kind} in a message")
    texts = processor.apply_chat_template(
        [[_placeholders(message) for message in messages] for messages in conversations],
        tokenize=False,
        add_generation_prompt=True,
    )
    return processor(
        text=texts,
        images=images or None,
        videos=videos or None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        images_kwargs={"do_resize": False},
        videos_kwargs={"do_resize": False, "do_sample_frames": False, "video_metadata": metadata or None},
    )


def messages_digest(messages: Sequence[Message]) -> str:
    """Digest of all that the model is shown: text, order, pixels of images and frames, name and size of video files."""
    digest = hashlib.sha256()
    for message in messages:
        for part in message["content"]:
            media = part.get("url")
            head = {key: value for key, value in part.items() if key != "url"}
            digest.update(json.dumps([message["role"], head], sort_keys=True, default=str).encode())
            for item in media if isinstance(media, list | tuple) else [media]:
                _update(digest, item)
    return digest.hexdigest()


def _update(digest: Any, item: Any) -> None:
    if isinstance(item, Image.Image):
        digest.update(f"{item.mode}{item.size}".encode() + item.tobytes())
    elif isinstance(item, str) and Path(item).is_file():
        digest.update(f"{Path(item).name} {Path(item).stat().st_size}".encode())
    else:
        digest.update(repr(item).encode())


def _media(conversations: Sequence[Sequence[Message]]) -> list[tuple[str, Any]]:
    parts = [part for messages in conversations for message in messages for part in message["content"]]
    return [(part["type"], part["url"]) for part in parts if part["type"] != "text"]


def _placeholders(message: Message) -> Message:
    content = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
    return {"role": message["role"], "content": content}


def _video(media: Any, limits: PixelLimits, patch: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Frames [T, 3, H, W] of a file or of a list of images, and where on the clock they lie."""
    if isinstance(media, list | tuple):
        return _frame_list(media, limits, patch)
    import decord

    total = len(decord.VideoReader(media))
    count = max(2, min(limits.max_frames, total) // 2 * 2)  # two frames make one temporal patch
    request = {"video": media, "nframes": count, "min_pixels": limits.min_pixels, "max_pixels": limits.max_pixels}
    frames, metadata = fetch_video(request, image_patch_size=patch, return_video_metadata=True)
    return frames, metadata


def _frame_list(media: Sequence[Any], limits: PixelLimits, patch: int) -> tuple[torch.Tensor, dict[str, Any]]:
    # qwen_vl_utils rounds the frames of a list to multiples of 56 pixels before it resizes them to multiples of 28.
    images = [to_rgb(image if isinstance(image, Image.Image) else Image.open(image)) for image in media]
    keep = np.linspace(0, len(images) - 1, min(len(images), limits.max_frames)).round().astype(int)
    images = [images[i] for i in keep]
    images += images[-1:] * (len(images) % 2)
    width, height = images[0].size
    rows, columns = smart_resize(height, width, 2 * patch, limits.min_pixels, limits.max_pixels)
    frames = np.stack([np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC)) for image in images])
    metadata = {
        "fps": FRAME_LIST_FPS,
        "frames_indices": list(range(len(images))),
        "total_num_frames": len(images),
    }
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float(), metadata

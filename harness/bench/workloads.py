"""Prompts to measure with: random images, clips and words of given sizes, or image files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from harness.core.errors import UserError, as_user_error
from harness.models import adapter_class
from harness.models.bad_input import BadInput
from harness.models.cost.vision import COUNTED, IN_CROPS, tokens_of_side
from harness.models.limits import Limits
from harness.models.preprocessing import Message, to_inputs
from methods.budget import Budget
from methods.resize import smaller
from methods.tokens import Grid, num_tokens

ASPECT = 16 / 9  # of an image with a given number of tokens: 2691 are 39 x 69, a 1080p screen
BEFORE = 4  # one in four words precedes the image
FIRST_WORD = 3  # smaller ids are special in Llama's vocabulary
SPECIAL = ("bos", "eos", "pad", "image", "video", "vision_start", "vision_end")  # no random word is one of them


@dataclass(frozen=True, eq=False)
class Workload:
    """A prompt, which a batch repeats."""

    name: str
    grids: list[Grid]  # (t, h, w) in tokens of its images and videos
    make: Callable[[Sequence[Grid], int], Any]  # grids and batch -> what generate() takes, on the CPU

    @property
    def tokens(self) -> int:
        """Visual tokens of one prompt."""
        return num_tokens(self.grids)

    def prepare(self, batch: int) -> Any:
        """Preprocess: pixels to patches, for files also reading, resizing and the tokenizer."""
        return self.make(self.grids, batch)

    def shrunk(self, budget: Budget) -> Workload:
        """Return the workload with images small enough for `budget`."""
        return replace(self, grids=smaller(self.grids, budget.count(self.tokens)))


def grid_of(size: int | str) -> Grid:
    """Parse a size: a number of visual tokens, "39x69", or "16x20x36" for a clip of 16 steps."""
    sides = str(size).split("x")
    if not all(side.isdecimal() and int(side) for side in sides) or len(sides) > 3:
        raise UserError(
            f"sizes takes numbers of visual tokens, as 2691, or their grids, as 39x69 or 16x20x36: not {size}"
        )
    if len(sides) > 1:
        t, h, w = ([1, 1, 1] + [int(side) for side in sides])[-3:]
        return t, h, w
    h = max(1, round(math.sqrt(int(size) / ASPECT)))
    return 1, h, max(1, round(int(size) / h))


def synthetic(config: Any, size: int | str, text: int, processor: Any = None) -> Workload:
    """Return a prompt of random pixels and `text` random words for a model with this configuration.

    A model with a fixed image size gets the number of images that comes nearest to `size`. Without a `processor`, one
    of the family's class is built from `config`.
    """
    family, grid = config.model_type, grid_of(size)
    if family == "llava":
        side = tokens_of_side(config)
        images = max(1, round(math.prod(grid) / side**2))
        return Workload(f"{side}x{side}*{images}", [(1, side, side)] * images, _llava(config, text, processor))
    if family not in COUNTED:
        raise UserError(f"sizes are for the families {', '.join(COUNTED)}, not {family}: pass images=[file]")
    name = "x".join(str(length) for length in grid[grid[0] == 1 :])
    return Workload(name, [grid], _qwen(config, text, processor))


def of_file(file: str, question: str, processor: Any, limits: Limits, config: Any) -> Workload:
    """Return the prompt that asks `question` about an image file."""
    conversation: list[Message] = [
        {"role": "user", "content": [{"type": "image", "url": file}, {"type": "text", "text": question}]}
    ]

    def make(grids: Sequence[Grid], batch: int) -> Any:
        own = list(grids) * batch if list(grids) != whole else []
        return to_inputs(processor, [conversation] * batch, limits, grids=own)

    whole: list[Grid] = []
    with as_user_error(BadInput, f"images: {file} cannot be shown", "name another file"):
        whole += _grids(make([], 1), config)
    return Workload(file.rpartition("/")[2], whole, make)


def _grids(inputs: Any, config: Any) -> list[Grid]:
    if "image_grid_thw" in inputs:
        merge = config.vision_config.spatial_merge_size
        return [(t, h // merge, w // merge) for t, h, w in inputs["image_grid_thw"].tolist()]
    if config.model_type == "llava":
        images, patch = inputs["pixel_values"], int(config.vision_config.patch_size)
        return [(1, images.shape[-2] // patch, images.shape[-1] // patch)] * len(images)
    if config.model_type in IN_CROPS:
        packing = adapter_class(config.model_type).packing  # type: ignore[attr-defined]
        return [grid for size in inputs["image_sizes"].tolist() for grid in packing(config, *size).grids]
    return [(1, 1, int((inputs["input_ids"] == config.image_token_id).sum()))]  # tiles: only how many matters


def _qwen(config: Any, text: int, processor: Any) -> Callable[[Sequence[Grid], int], Any]:
    vision = config.vision_config
    sizes = {"patch_size": vision.patch_size, "temporal_patch_size": vision.temporal_patch_size}
    sizes |= {"merge_size": vision.spatial_merge_size}
    as_images = processor.image_processor if processor else Qwen2VLImageProcessor(**sizes)
    as_videos = processor.video_processor if processor else Qwen2VLVideoProcessor(**sizes)
    side, span = vision.patch_size * vision.spatial_merge_size, vision.temporal_patch_size

    def make(grids: Sequence[Grid], batch: int) -> dict[str, torch.Tensor]:
        (grid,) = grids
        t, h, w = grid
        kind = "image" if t == 1 else "video"
        pixels = [_pixels(t * span if t > 1 else 1, h * side, w * side)] * batch
        if kind == "image":
            inputs = dict(as_images(images=[frames[0] for frames in pixels], do_resize=False, return_tensors="pt"))
        else:
            inputs = dict(as_videos(videos=pixels, do_resize=False, do_sample_frames=False, return_tensors="pt"))
        markers = [getattr(config, f"vision_{edge}_token_id", None) for edge in ("start", "end")]
        edges = [[] if marker is None else [marker] for marker in markers]
        token = getattr(config, f"{kind}_token_id")
        visual = edges[0] + [token] * (t * h * w) + edges[1]
        words = text - len(visual) + t * h * w  # the markers around an image count as text
        return {**inputs, **_prompt(config, visual, token, words, batch, kind)}

    return make


def _llava(config: Any, text: int, processor: Any) -> Callable[[Sequence[Grid], int], Any]:
    side = tokens_of_side(config)
    size = side * int(config.vision_config.patch_size)
    square = {"height": size, "width": size}
    encode = (
        processor.image_processor if processor else CLIPImageProcessor(size={"shortest_edge": size}, crop_size=square)
    )

    def make(grids: Sequence[Grid], batch: int) -> dict[str, torch.Tensor]:
        images = [_pixels(1, size, size)[0]] * (len(grids) * batch)
        visual = [config.image_token_id] * (side * side * len(grids))
        inputs = dict(encode(images=images, return_tensors="pt"))
        prompt = _prompt(config, visual, config.image_token_id, text, batch, "image")
        del prompt["mm_token_type_ids"]
        return {**inputs, **prompt}

    return make


def _pixels(frames: int, height: int, width: int) -> torch.Tensor:
    """Return 8-bit noise [frames, 3, height, width] from a fixed seed."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=seeded)


def _prompt(config: Any, visual: list[int], token: int, text: int, batch: int, kind: str) -> dict[str, torch.Tensor]:
    """Return ids [batch, S] of `text` random words around the visual tokens, with masks and token types."""
    token_ids = [
        getattr(part, f"{name}_token_id", None) for part in (config, config.get_text_config()) for name in SPECIAL
    ]
    special = [i for value in token_ids for i in (value if isinstance(value, list) else [value]) if i is not None]
    end = min([i for i in special if i > FIRST_WORD], default=config.get_text_config().vocab_size)
    words = torch.randint(FIRST_WORD, end, (text,), generator=torch.Generator().manual_seed(0)).tolist()
    front = text // BEFORE
    ids = torch.tensor([words[:front] + visual + words[front:]]).repeat(batch, 1)
    kinds = (ids == token).int() * (1 if kind == "image" else 2)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}

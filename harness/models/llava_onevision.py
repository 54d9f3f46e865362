"""LLaVA-OneVision: SigLIP without CLS, tiles whose mosaic is made smaller, several images, and pooled videos."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.models import question_tokens
from harness.models.calls import Arguments
from harness.models.llava_next import LlavaNext
from harness.models.mosaic import Packing, PooledVideo
from methods.base import Method

SPACE, BREAK = 220, 198  # in Qwen2's tokenizer; the template writes the one before images and the other after them
MARGIN = 1.1  # a mosaic is resized if its side is larger by this factor than that of the most patches


class LlavaOnevision(LlavaNext):
    """`LlavaOnevisionForConditionalGeneration`, cut before decoder layer 0 or after a later one.

    The only image of a prompt is cut into tiles. If their mosaic is too large, the model resizes its features
    bilinearly, and the signals of the tower are resized with them. Of several images in a prompt, each is one crop.
    """

    family = "llava_onevision"
    version = 1
    prompts = "llava_onevision"
    media: ClassVar[frozenset[str]] = frozenset({"image", "video"})
    fixed_size: ClassVar[str] = "an image becomes crops of one size, 729 tokens each as released"
    arguments: ClassVar[Mapping[str, Arguments]] = {
        **LlavaNext.arguments,
        "root": Arguments.of("video"),
        "multimodal": LlavaNext.arguments["multimodal"] | Arguments.of("video image_counts", "aspect_ratio"),
    }
    encoding_hint = "pass the processor's whole output, inside it"
    question_templates: ClassVar[tuple[str, ...]] = ("qwen2",)

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Also refuse models with another rule for large mosaics."""
        _most_crops(config)
        super().check(method, config)

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image or video.

        The template is Qwen's, with a space before images and a line break after them, which are no words.
        """
        rows = question_tokens.chatml_question(ids, kinds, self._config, self.model.generation_config)
        visual = torch.nn.functional.pad(kinds > 0, (1, 1))
        before, after = visual[rows + 2], visual[rows]  # of a row: whether its successor, its predecessor is visual
        words = ids[rows]
        return rows[~((before & (words == SPACE)) | (after & (words == BREAK)))]

    def _packings(self, kind: str, argument: Callable[[str], Any]) -> Sequence[Packing | PooledVideo]:
        """Return how each image or video becomes rows; `argument` returns an argument of the model by role."""
        if kind == "video":
            pixels = argument("video")
            if pixels is None:  # get_video_features called them otherwise in older versions
                pixels = argument("image")
            videos, frames = pixels.shape[:2]
            return [PooledVideo(self._side, frames)] * videos
        self._refuse_other("aspect_ratio", argument("aspect_ratio"))
        packings = super()._packings(kind, argument)
        counts = argument("image_counts")  # None: each image is the only one of its prompt
        counts = [1] * len(packings) if counts is None else torch.as_tensor(counts).tolist()
        alone = [count == 1 for count in counts for _ in range(count)]
        if len(alone) != len(packings):
            raise ValueError(f"batch_num_images={counts} counts {len(alone)} images, there are {len(packings)}")
        one_crop = Packing(self._side, (0, 0), None)
        return [packing if tiled else one_crop for packing, tiled in zip(packings, alone, strict=True)]

    @classmethod
    def packing(cls, config: Any, height: int, width: int) -> Packing:
        """Return how an image of `height` x `width` pixels, the only one of its prompt, becomes rows."""
        packing = super().packing(config, height, width)
        lines, columns = packing.grids[1][1:]
        ratio = math.sqrt(lines * columns / (_most_crops(config) * packing.side**2))
        return replace(packing, resized=(int(lines // ratio), int(columns // ratio))) if ratio > MARGIN else packing

    @property
    def _side(self) -> int:
        vision = self._config.vision_config
        return int(vision.image_size) // int(vision.patch_size)


def _most_crops(config: Any) -> int:
    """Return the number of crops that have as many patches as a mosaic may have."""
    rule = config.vision_aspect_ratio
    if not (match := re.fullmatch(r"anyres_max_(\d+)", rule)):
        raise ValueError(f"the model has vision_aspect_ratio={rule}: supported is anyres_max_N, such as anyres_max_9")
    return int(match[1])

"""LLaVA-NeXT (LLaVA-1.6): CLIP sees the whole image and its tiles; a newline row closes each line of the mosaic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from harness.models.calls import NAMES, Arguments, Call, HookError
from harness.models.hooks import Handles
from harness.models.layout import Placeholders
from harness.models.llava import Llava
from harness.models.mosaic import Packing, PooledVideo, mosaic_of
from harness.models.vision_tower import VisionSignals
from methods.base import Method, Signal

VICUNA_IDS = 33_000  # Vicuna has 32,000 ids and a few for images, Yi has 64,000


class LlavaNext(Llava):
    """`LlavaNextForConditionalGeneration`, cut before decoder layer 0 or after a later one.

    An image has two grids, of crop 0 and of the mosaic without padding. The tower reads each crop by itself, so its
    signals are those of the crops; patches of padding count there and have no row.
    """

    family = "llava_next"
    version = 1
    prompts = "llava"
    fixed_size: ClassVar[str] = "an image becomes 3 to 5 crops of one size, 576 tokens each as released"
    has_newlines: ClassVar[bool] = True
    arguments: ClassVar[Mapping[str, Arguments]] = {
        **Llava.arguments,
        "multimodal": Llava.arguments["multimodal"] | Arguments.of("image_sizes"),
    }
    encoding_hint = "pass pixel_values and image_sizes, inside it"
    question_templates: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2")

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Also refuse to search the question in prompts of Yi and of Llama 3, which have the class of Vicuna."""
        text = config.text_config
        if Signal.TEXT in method.needs and text.model_type == "llama" and text.vocab_size > VICUNA_IDS:
            reason = f"a Llama with {text.vocab_size} ids is no Vicuna, and its template is not known"
            raise ValueError(f"{method.name} reads the question: {reason}")
        super().check(method, config)

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._encoding: Sequence[Packing | PooledVideo] = []  # what is being encoded; the tower gets crops alone

    def hook_generation(self, handles: Handles) -> None:
        """Also record how images become rows when they are encoded, ahead of the prefill or within it."""
        super().hook_generation(handles)
        for kind in sorted(self.media):
            replacement = partial(self._record_packings, kind)
            handles.replace_method(self.modules()["multimodal"], replacement, f"get_{kind}_features")

    def _record_packings(
        self, kind: str, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        passed = inspect.signature(method).bind(*args, **kwargs).arguments
        self._encoding = self._packings(kind, lambda role: passed.get(NAMES[role][0]))
        try:
            return method(*args, **kwargs)
        finally:
            self._encoding = []

    def record_vision_pass(self, call: Call, output: Any, signals: VisionSignals | None) -> None:
        """Record what the tower encoded, with its signals in the order of the prompt's rows."""
        if signals is not None:
            signals = signals.mapped(partial(_carry, self._encoding))
        super().record_vision_pass(call, output, signals)

    def encoded_grids(self, call: Call) -> list[Placeholders]:
        """Return the rows of every image that the tower encodes, as crops [crops, 3, H, W]."""
        crops = sum(packing.crops for packing in self._encoding)
        if crops != len(call.require("image")):
            raise HookError(f"the vision tower got {len(call.require('image'))} crops, sizes of images give {crops}")
        return [packing.placeholders for packing in self._encoding]

    def declared_grids(self, kind: str, call: Call) -> list[Placeholders] | None:
        """Return the rows of every image of the batch."""
        if kind not in self.media or call.get(kind) is None:
            return None
        return [packing.placeholders for packing in self._packings(kind, call.get)]

    def _packings(self, kind: str, argument: Callable[[str], Any]) -> Sequence[Packing | PooledVideo]:
        """Return how each image becomes rows; `argument` returns an argument of the model by role."""
        sizes = argument("image_sizes")
        if sizes is None:
            remedy = "pass the processor's whole output"
            raise ValueError(f"images of family {self.family} came without image_sizes: {remedy}")
        return [self.packing(self._config, height, width) for height, width in torch.as_tensor(sizes).tolist()]

    @classmethod
    def packing(cls, config: Any, height: int, width: int) -> Packing:
        """Return how an image of `height` x `width` pixels, the only one of its prompt, becomes rows."""
        vision = config.vision_config
        pixels, side = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
        lines, columns = select_best_resolution((height, width), config.image_grid_pinpoints)
        tiles = lines // pixels, columns // pixels
        return Packing(side, tiles, mosaic_of(tiles, side, (height, width)))


def _carry(packings: Sequence[Packing | PooledVideo], values: Tensor) -> Tensor:
    """Return what the patches in the prompt have of `values` of all patches of all crops."""
    parts = values.split([packing.crops * packing.side**2 for packing in packings])
    return torch.cat([packing.carry(part) for packing, part in zip(packings, parts, strict=True)])

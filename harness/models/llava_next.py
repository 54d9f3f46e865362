"""LLaVA-NeXT (LLaVA-1.6): CLIP sees the whole image and its tiles; a newline row closes each line of the mosaic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from harness.models.calls import Arguments, Call, HookError
from harness.models.hooks import Handles
from harness.models.layout import Placeholders
from harness.models.llava import Llava
from harness.models.mosaic import Packing, mosaic_of
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
        self._image_sizes: Tensor | None = None  # of the images that are being encoded; the tower does not get them

    def hook_generation(self, handles: Handles) -> None:
        """Also record the sizes of images when they are encoded, ahead of the prefill or within it."""
        super().hook_generation(handles)
        handles.replace_method(self.modules()["multimodal"], self._record_sizes, "get_image_features")

    def _record_sizes(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._image_sizes = inspect.signature(method).bind(*args, **kwargs).arguments.get("image_sizes")
        try:
            return method(*args, **kwargs)
        finally:
            self._image_sizes = None

    def record_vision_pass(self, call: Call, output: Any, signals: VisionSignals | None) -> None:
        """Record what the tower encoded, with its signals in the order of the prompt's rows."""
        if signals is not None:
            packings = self._packings(self._image_sizes)
            signals = signals.mapped(lambda values: _carry(packings, values))
        super().record_vision_pass(call, output, signals)

    def encoded_grids(self, call: Call) -> list[Placeholders]:
        """Return the rows of every image that the tower encodes, as crops [crops, 3, H, W]."""
        packings = self._packings(self._image_sizes)
        crops = sum(packing.crops for packing in packings)
        if crops != len(call.require("image")):
            raise HookError(f"the vision tower got {len(call.require('image'))} crops, sizes of images give {crops}")
        return [packing.placeholders for packing in packings]

    def declared_grids(self, kind: str, call: Call) -> list[Placeholders] | None:
        """Return the rows of every image of the batch."""
        if kind != "image" or call.get("image") is None:
            return None
        return [packing.placeholders for packing in self._packings(call.get("image_sizes"))]

    def _packings(self, sizes: Tensor | None) -> list[Packing]:
        """Return how each image of `sizes` [images, 2], (height, width) in pixels, becomes rows."""
        if sizes is None:
            remedy = "pass the processor's whole output"
            raise ValueError(f"images of family {self.family} came without image_sizes: {remedy}")
        vision = self._config.vision_config
        pixels, side = int(vision.image_size), int(vision.image_size) // int(vision.patch_size)
        packings = []
        for height, width in torch.as_tensor(sizes).tolist():
            lines, columns = select_best_resolution((height, width), self._config.image_grid_pinpoints)
            tiles = lines // pixels, columns // pixels
            packings.append(Packing(side, tiles, mosaic_of(tiles, side, (height, width))))
        return packings


def _carry(packings: list[Packing], values: Tensor) -> Tensor:
    """Return what the patches in the prompt have of `values` of all patches of all crops."""
    parts = values.split([packing.crops * packing.side**2 for packing in packings])
    return torch.cat([packing.carry(part) for packing, part in zip(packings, parts, strict=True)])

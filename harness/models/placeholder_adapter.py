"""Base of families that mark visual tokens by placeholder ids, and whose images may be encoded before the prefill."""

from __future__ import annotations

import inspect
import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from harness.models.adapter import Adapter
from harness.models.calls import Call
from harness.models.compat import ENCODES_AHEAD
from harness.models.hooks import Handles
from harness.models.layout import Layout, Placeholders, cached_length
from harness.models.placeholder_rows import CODES, count_copies, crops, repeated, split_images, structure
from harness.models.vision_tower import VisionSignals, split_signals
from methods.tokens import Grid

NO_IDS = (
    "pruning finds visual tokens by their ids: pass input_ids instead of, or with, inputs_embeds; "
    "for text alone pass mm_token_type_ids of zeros"
)

MIXED_COPIES = (
    "beams and several answers need the images of a prompt in its own order, before transformers 5.18 they get others: "
    "install a newer version, or give each prompt one image of one tile"
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A recorded pass through the vision tower."""

    output: weakref.ref[Any]
    images: list[Placeholders]  # of each image or video
    signals: VisionSignals | None


class PlaceholderAdapter(Adapter):
    """A family that replaces the ids `image_token_id` and `video_token_id` by visual tokens."""

    encoding_hint: ClassVar[str]  # advice if images were encoded outside the prune block
    steps_apart: ClassVar[bool] = False  # True if there is text between the time steps of a video

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # generate() encodes images first, and passes the output of the tower to the prefill without its grids.
        self._encoded: list[Encoded] = []
        self._expanded = 1  # rows per prompt in the next prefill of generate()

    @abstractmethod
    def encoded_grids(self, call: Call) -> Sequence[Grid | Placeholders]:
        """Return (t, h, w) in tokens of each image or video that a pass through "vision" with `call` encodes.

        An image whose rows are not the patches of one grid alone is described by `Placeholders`.
        """

    @abstractmethod
    def declared_grids(self, kind: str, call: Call) -> Sequence[Grid | Placeholders] | None:
        """Return the same of every image or video, or None if the arguments of "multimodal" lack them."""

    @property
    def hidden_size(self) -> int:
        """Width D of a visual token where it enters the language model."""
        return int(self._config.get_text_config().hidden_size)

    @property
    def placeholders(self) -> list[int]:
        """Token ids that stand for visual tokens in a prompt."""
        return list(self._placeholders().values())

    def _placeholders(self) -> dict[str, int]:
        ids = {kind: getattr(self._config, f"{kind}_token_id", None) for kind in CODES}
        return {kind: int(token) for kind, token in ids.items() if token is not None}

    @property
    def _config(self) -> Any:
        return self.model.config

    def has_visuals(self, call: Call) -> bool:
        """Tell whether a pass has images, videos or placeholders; in a decoding step, placeholders do not count."""
        if self._pixels(call) or any(output is not None for output in call.get("encoded", {}).values()):
            return True
        ids = call.get("ids")
        if cached_length(call.get("cache")):
            return False
        if ids is None:
            types = call.get("kinds")
            if types is None or bool(types.any()):
                raise ValueError(NO_IDS)
            return False
        return bool(self._kinds(ids).any())

    def record_vision_pass(self, call: Call, output: Any, signals: VisionSignals | None) -> None:
        """Record the grids and signals of what the vision tower just encoded."""
        # The latest record stays: a pass that encodes images and then videos may have freed the first output already.
        earlier = [record for record in self._encoded[:-1] if record.output() is not None]
        images = list(map(Placeholders.of, self.encoded_grids(call)))
        self._encoded = [*earlier, *self._encoded[-1:], Encoded(weakref.ref(output), images, signals)]

    def vision_signals(self, call: Call, layout: Layout) -> list[VisionSignals]:
        """Return the signals of each prompt, read in this pass or when generate() encoded the images."""
        kinds = self._pixels(call)  # encoded in this pass, in this order
        passes = dict(zip(kinds, self._encoded[-len(kinds) :], strict=True)) if kinds else {}
        for kind, output in call.get("encoded", {}).items():
            if output is not None and kind not in passes:
                passes[kind] = self._find_encoded(kind, output)
        signals = {CODES[kind]: record.signals for kind, record in passes.items() if record.signals}
        patches = layout.kinds * layout.visual[:: layout.copies]
        return split_signals(patches.repeat_interleave(layout.encoded, dim=0), signals)[:: layout.encoded]

    def hook_generation(self, handles: Handles) -> None:
        """Record how often generate() copies the pixels of a prompt for beams, which it does before 5.18."""
        if not ENCODES_AHEAD:
            handles.replace_method(self.model, self._record_copies, "_expand_inputs_for_generation")

    def _record_copies(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._expanded = inspect.signature(method).bind(*args, **kwargs).arguments.get("expand_size", 1)
        return method(*args, **kwargs)

    def layout(self, call: Call) -> Layout:
        """Locate the placeholders of images and videos, and assign the grids to them in order of appearance."""
        ids = call.get("ids")
        if ids is None:
            raise ValueError(NO_IDS)
        kinds = self._kinds(ids)
        images = {kind: self._images(kind, call) for kind in CODES}
        copies, encoded = count_copies(kinds, images), 1
        if copies == 1 and self._expanded > 1 and torch.equal(ids, repeated(ids, self._expanded)):
            copies = encoded = self._expanded
        self._expanded = 1
        mixed = encoded > 1 and self._mixes_copies()
        try:
            per_prompt = split_images(kinds[:: copies // encoded].cpu(), images, self.steps_apart)[::encoded]
        except ValueError:
            if mixed:
                raise ValueError(MIXED_COPIES) from None
            raise
        obstacle = MIXED_COPIES if mixed and any(len(images) > 1 for images in per_prompt) else _obstacle(call)
        grids = [[grid for image in images for grid in image.grids] for images in per_prompt]
        visual, line_ends = structure(kinds[::copies], per_prompt)
        visual = visual.repeat_interleave(copies, dim=0)
        line_ends = None if line_ends is None else line_ends.repeat_interleave(copies, dim=0)
        return Layout(visual, grids, kinds[::copies], copies, encoded, obstacle, line_ends, crops(per_prompt))

    def _mixes_copies(self) -> bool:
        """Tell whether generate() copies images a, b to a, a, b, b, while two copies of the prompt need a, b, a, b."""
        name = "_expand_inputs_for_generation"
        return getattr(type(self.model), name) is getattr(GenerationMixin, name)

    def _pixels(self, call: Call) -> list[str]:
        """Return the kinds of media whose pixels are in a pass, in the order in which the model encodes them."""
        return [kind for kind in CODES if kind in self.media and call.get(kind) is not None]

    def _kinds(self, ids: Tensor) -> Tensor:
        """Return [B, S]: 1 on placeholders of images, 2 on those of videos, else 0."""
        kinds = torch.zeros_like(ids, dtype=torch.int8)
        for kind, token in self._placeholders().items():
            kinds += (ids == token).to(torch.int8) * CODES[kind]
        return kinds

    def _images(self, kind: str, call: Call) -> list[Placeholders]:
        declared = self.declared_grids(kind, call)
        encoded = call.get("encoded", {}).get(kind)
        if declared is None and encoded is not None:
            return self._find_encoded(kind, encoded).images
        return list(map(Placeholders.of, declared or ()))

    def _find_encoded(self, kind: str, encoded: Any) -> Encoded:
        """Return the record of the pass with the output `encoded`; ValueError if there is none."""
        for record in self._encoded:
            if _is_same_output(record.output(), encoded):
                return record
        raise ValueError(
            f"{kind}s were encoded outside the prune block, or prefill_chunk_size splits them: "
            f"{self.encoding_hint.format(kind=kind)}, and pass the prompt in one chunk"
        )


def _is_same_output(recorded: Any, encoded: Any) -> bool:
    """Tell whether `encoded` is the output `recorded` of the vision tower, or a chunked prefill's full copy of it."""
    if recorded is None or recorded is encoded:
        return recorded is not None
    recorded, encoded = (torch.cat(list(output.pooler_output)) for output in (recorded, encoded))
    return torch.equal(recorded.to(encoded.device), encoded)  # a model on several devices may have moved it


def _obstacle(call: Call) -> str | None:
    if cached_length(call.get("cache")):
        remedy = "pass the whole conversation without its cache and without prefill_chunk_size"
        return f"an image after a cached prefix cannot be pruned: {remedy}"
    if call.get("encoded") and call.get("use_cache") is False:
        return "generate(use_cache=False) would prune again for every token: leave the cache on"
    return None

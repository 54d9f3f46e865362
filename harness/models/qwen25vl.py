"""Qwen2.5-VL: visual tokens of 28 x 28 pixels, M-RoPE position triples, images and videos in one sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from harness.models.adapter import DecoderParts
from harness.models.calls import Arguments, Call
from harness.models.compat import rotate_qwen25
from harness.models.layout import Grid
from harness.models.placeholder_adapter import PlaceholderAdapter
from harness.models.question_tokens import question
from harness.models.qwen_vision import Qwen25Tower
from harness.models.vision_tower import VisionTower
from methods.base import Signal


class Qwen25VL(PlaceholderAdapter):
    """`Qwen2_5_VLForConditionalGeneration`, cut in front of decoder layer 0 or between two later ones."""

    family = "qwen2_5_vl"
    version = 1
    prompts = "qwen2_5_vl"
    supplies: ClassVar[frozenset[Signal]] = frozenset(Signal)
    targets: ClassVar[Mapping[str, str]] = {
        "multimodal": "model",
        "vision": "model.visual",
        "decoder": "model.language_model",
        "first_layer": "model.language_model.layers.0",
    }
    decoder: ClassVar[DecoderParts] = DecoderParts(
        path="model.language_model", layers="model.language_model.layers", norm="model.language_model.norm"
    )
    arguments: ClassVar[Mapping[str, Arguments]] = {
        "root": Arguments.of("video"),
        "multimodal": Arguments.of("video image_grids video_grids"),
        "vision": Arguments.of("grids"),
    }
    encode_here = "pass {kind}_grid_thw along with them"

    @property
    def tower(self) -> VisionTower:
        """How the vision tower is read."""
        return Qwen25Tower(self.model)

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image or video."""
        return question(ids, kinds, self._config, self.model.generation_config)

    def positions(self, call: Call) -> Tensor:
        """Return the M-RoPE triples [3, B, S] of the full sequence."""
        states, ids = call.require("embeddings"), call.get("positions")
        batch, length = states.shape[:2]
        if ids is None:  # what the model itself falls back to
            ids = torch.arange(length, device=states.device).view(1, 1, -1)
        elif ids.ndim == 2:
            ids = ids.unsqueeze(0)
        elif len(ids) == 4:
            # generate() puts 1-D text positions in front, which only serve to find packed sequences by their jumps.
            # Without dropped rows they would jump, so they are left out once it is sure that nothing is packed.
            if call.get("mask") is None and bool((ids[0].diff(dim=-1) != 1).any()):
                raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
            ids = ids[1:]
        return ids.expand(3, batch, length)

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Turn q and k [B, H, S, d] by the library's own function."""
        return rotate_qwen25(q, k, cos, sin, self._config.get_text_config())

    def position_ids(self, positions: Tensor) -> Tensor:
        """Return triples [3, B, L]; those of text are three times the same."""
        return positions.expand(3, -1, -1)

    def encoded_grids(self, call: Call) -> list[Grid]:
        """Return (t, h, w) in merged tokens of what the tower encodes."""
        return self._merged(call.require("grids"))

    def given_grids(self, kind: str, call: Call) -> list[Grid] | None:
        """Return (t, h, w) in merged tokens of every image (or video) of the batch."""
        given = call.get(f"{kind}_grids")
        return None if given is None else self._merged(given)

    def _merged(self, patches: Tensor) -> list[Grid]:
        merge = int(self._config.vision_config.spatial_merge_size)
        return [(t, h // merge, w // merge) for t, h, w in patches.tolist()]

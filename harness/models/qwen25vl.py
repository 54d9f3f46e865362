"""Qwen2.5-VL: visual tokens of 28 x 28 pixels, M-RoPE positions with three coordinates, images and videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from harness.models.adapter import DecoderParts
from harness.models.calls import Arguments, Call
from harness.models.compat import rotate_qwen25, window_order
from harness.models.coordinates import Coordinates
from harness.models.hooks import submodule
from harness.models.placeholder_adapter import PlaceholderAdapter
from harness.models.question_tokens import chatml_question
from harness.models.vision_tower import VisionTower
from methods.base import Signal
from methods.tokens import Grid


class Qwen25VL(PlaceholderAdapter):
    """`Qwen2_5_VLForConditionalGeneration`, cut before decoder layer 0 or after a later one."""

    family = "qwen2_5_vl"
    version = 1
    prompts = "qwen2_5_vl"
    coordinates: ClassVar[Coordinates | None] = Coordinates.PIXELS
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
    encoding_hint = "pass {kind}_grid_thw along with them"

    @property
    def tower(self) -> VisionTower:
        """Description of the vision tower, from which signals are read."""
        return Qwen25Tower(self.model)

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image or video."""
        return chatml_question(ids, kinds, self._config, self.model.generation_config)

    def positions(self, call: Call) -> Tensor:
        """Return the M-RoPE positions [3, B, S] of the full sequence."""
        states, ids = call.require("embeddings"), call.get("positions")
        batch, length = states.shape[:2]
        if ids is None:  # the default of the model
            ids = torch.arange(length, device=states.device).view(1, 1, -1)
        elif ids.ndim == 2:
            ids = ids.unsqueeze(0)
        elif len(ids) == 4:
            # generate() adds 1-D text positions as the first row. They only serve to find packed sequences by their
            # jumps. Dropping tokens would make jumps, so the row is removed after a check that nothing is packed.
            if call.get("mask") is None and bool((ids[0].diff(dim=-1) != 1).any()):
                raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
            ids = ids[1:]
        return ids.expand(3, batch, length)

    def rotate(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate q and k [B, H, S, d] by transformers' function."""
        return rotate_qwen25(q, k, cos, sin, self._config.get_text_config())

    def position_ids(self, positions: Tensor) -> Tensor:
        """Return positions [3, B, L]; the three coordinates of text are equal."""
        return positions.expand(3, -1, -1)

    def encoded_grids(self, call: Call) -> list[Grid]:
        """Return (t, h, w) in tokens of each image or video that the tower encodes."""
        return self._in_tokens(call.require("grids"))

    def declared_grids(self, kind: str, call: Call) -> list[Grid] | None:
        """Return (t, h, w) in tokens of every image or video of the batch."""
        patches = call.get(f"{kind}_grids")
        return None if patches is None else self._in_tokens(patches)

    def _in_tokens(self, patches: Tensor) -> list[Grid]:
        merge = int(self._config.vision_config.spatial_merge_size)
        return [(t, h // merge, w // merge) for t, h, w in patches.tolist()]


class QwenTower(VisionTower):
    """A vision tower of Qwen's kind: four rows in sequence become one token."""

    path: ClassVar[str] = "model.visual"
    arguments: ClassVar[Arguments] = Arguments.of("grids")
    attention_arguments: ClassVar[Arguments] = Arguments.of("rotation")
    has_cls: ClassVar[bool] = False
    middle: ClassVar[Mapping[str, int]] = {"official": 15, "paper": 16}
    middle_of: ClassVar[int] = 32
    rotate: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # transformers' function of (q, k [T, H, d], cos, sin)

    def __init__(self, model: nn.Module) -> None:
        self._config: Any = getattr(model.config, "vision_config")  # noqa: B009 (unknown to the type checker)
        submodule(model, self.path)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return int(self._config.depth)

    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return the names of a block's attention, and of its joint projection to q, k and v."""
        attention = f"{self.path}.blocks.{layer}.attn"
        return attention, (f"{attention}.qkv",)

    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d], rotated by transformers' function."""
        (qkv,) = projected
        q, k, _ = qkv.view(len(qkv), 3, int(self._config.num_heads), -1).unbind(1)
        q, k = self.rotate(q, k, *call.require("rotation"))
        return q.transpose(0, 1), k.transpose(0, 1)

    def segments(self, call: Call) -> list[int]:
        """Return the number of patches of every image and every time step of a video."""
        return [h * w for t, h, w in call.require("grids").tolist() for _ in range(t)]

    def merge(self, patches: Tensor, call: Call) -> Tensor:
        """Average groups of four."""
        return patches.view(-1, self.patches_per_token(), *patches.shape[1:]).mean(1)

    def patches_per_token(self) -> int:
        """Return the number of patches in a token."""
        return int(self._config.spatial_merge_size) ** 2


class Qwen25Tower(QwenTower):
    """Qwen2.5-VL's tower of 32 layers. Its rows are sorted by window, within each image or time step."""

    arguments: ClassVar[Arguments] = Arguments.of("grids", "window_order")
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def merge(self, patches: Tensor, call: Call) -> Tensor:
        """Average groups of four, and undo the sorting by window."""
        means = super().merge(patches, call)
        order = call.get("window_order")
        order = window_order(self._config, call.require("grids")) if order is None else torch.as_tensor(order)
        return means[order.to(means.device).argsort()]

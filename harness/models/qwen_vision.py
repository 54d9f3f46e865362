"""Reading the vision towers of Qwen's models: no CLS, 2-D rotary positions, 2 x 2 patches merged into a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from harness.models.calls import Arguments, Call
from harness.models.compat import window_order
from harness.models.hooks import submodule
from harness.models.vision_tower import VisionTower


class QwenTower(VisionTower):
    """Four rows in sequence become one token."""

    path: ClassVar[str] = "model.visual"
    arguments: ClassVar[Arguments] = Arguments.of("grids")
    attention_arguments: ClassVar[Arguments] = Arguments.of("rotation")
    has_cls: ClassVar[bool] = False
    middle: ClassVar[Mapping[str, int]] = {"official": 15, "paper": 16}
    middle_of: ClassVar[int] = 32
    rotate: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # (q, k [T, H, d], cos, sin), the library's own

    def __init__(self, model: nn.Module) -> None:
        self._config: Any = getattr(model.config, "vision_config")  # noqa: B009 (unknown to the type checker)
        submodule(model, self.path)

    @property
    def depth(self) -> int:
        """The number of layers."""
        return int(self._config.depth)

    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return a block's attention, and its projection to q, k and v at once."""
        attention = f"{self.path}.blocks.{layer}.attn"
        return attention, (f"{attention}.qkv",)

    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d], turned by the library's own function."""
        (qkv,) = projected
        q, k, _ = qkv.view(len(qkv), 3, int(self._config.num_heads), -1).unbind(1)
        q, k = self.rotate(q, k, *call.require("rotation"))
        return q.transpose(0, 1), k.transpose(0, 1)

    def units(self, call: Call) -> list[int]:
        """Return the number of patches of every image and every step of a video."""
        return [h * w for t, h, w in call.require("grids").tolist() for _ in range(t)]

    def merged(self, patches: Tensor, call: Call) -> Tensor:
        """Average groups of four."""
        return patches.view(-1, self.group(), *patches.shape[1:]).mean(1)

    def group(self) -> int:
        """Return the number of patches in a token."""
        return int(self._config.spatial_merge_size) ** 2


class Qwen25Tower(QwenTower):
    """Qwen2.5-VL's, of 32 layers: rows stand in window order, which stays within an image or step."""

    arguments: ClassVar[Arguments] = Arguments.of("grids", "window_order")
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def merged(self, patches: Tensor, call: Call) -> Tensor:
        """Average groups of four and undo the windows."""
        means = super().merged(patches, call)
        order = call.get("window_order")
        order = window_order(self._config, call.require("grids")) if order is None else torch.as_tensor(order)
        return means[order.to(means.device).argsort()]

"""Qwen2-VL: like Qwen2.5-VL, with full attention in every layer of its vision tower."""

from __future__ import annotations

from typing import ClassVar

from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

from harness.models.coordinates import Coordinates
from harness.models.qwen25vl import Qwen25VL, QwenTower


class Qwen2Tower(QwenTower):
    """The vision tower of 32 layers. Its rows keep their order, and all patches of an image or time step are a segment.

    No comparison was published on this family, so layers have the numbers of Qwen2.5-VL's, which are as many.
    """

    rotate = staticmethod(apply_rotary_pos_emb_vision)


class Qwen2VL(Qwen25VL):
    """`Qwen2VLForConditionalGeneration`, cut before decoder layer 0 or after a later one."""

    family = "qwen2_vl"
    version = 1
    prompts = "qwen2_vl"
    coordinates: ClassVar[Coordinates | None] = Coordinates.THOUSANDTHS

    @property
    def tower(self) -> Qwen2Tower:
        """Description of the vision tower, from which signals are read."""
        return Qwen2Tower(self.model)

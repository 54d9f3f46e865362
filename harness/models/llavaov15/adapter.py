"""Adapter of LLaVA-OneVision-1.5: a CLS row before every image and frame, 1-D positions, norms of q and k.

It has Qwen2.5-VL's processor, and so its placeholders, grids, and way in which generate() passes encoded images.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.models.qwen3.modeling_qwen3 import apply_rotary_pos_emb

from harness.models.adapter import DecoderParts
from harness.models.calls import Call
from harness.models.llavaov15 import MODEL_TYPE
from harness.models.qwen25vl import Qwen25VL, QwenTower


class RiceTower(QwenTower):
    """The vision tower. Attention is full within a unit [CLS, patches] of one image or frame; 4 patches make a token.

    A patch gets the score of its place in its unit, as in the published comparison. With `unpack="released"`, features
    of the second and later units are shifted by one row per earlier unit. A token there has the score, keys and states
    of its place, not of every patch that it was made from.

    HiPrune's authors did not run this family. arXiv 2602.13315 took layer 16 of 24; in the two families that both ran,
    its layer is one after the authors', so "official" is 15 here.
    """

    has_cls: ClassVar[bool] = True
    middle_of: ClassVar[int] = 24
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def segments(self, call: Call) -> list[int]:
        """Return the number of rows of every image and frame: its patches, and one for CLS."""
        return [patches + 1 for patches in super().segments(call)]


class LlavaOnevision15(Qwen25VL):
    """`LlavaOnevision15ForConditionalGeneration`, cut before decoder layer 0 or after a later one."""

    family = MODEL_TYPE
    version = 1
    prompts = "llava_onevision1_5"
    coordinates = None  # nothing public says what its answers count in
    decoder: ClassVar[DecoderParts] = DecoderParts(
        path="model.language_model",
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        projections=("q_norm", "k_norm"),
        one_dimensional=True,
    )
    rotate = staticmethod(apply_rotary_pos_emb)

    @property
    def tower(self) -> RiceTower:
        """Description of the vision tower, from which signals are read."""
        return RiceTower(self.model)

    def positions(self, call: Call) -> Tensor:
        """Return the positions [1, B, S] of the full sequence, which the model always passes on."""
        return call.require("positions").expand(call.require("embeddings").shape[:2]).unsqueeze(0)

    def position_ids(self, positions: Tensor) -> Tensor:
        """Convert positions [1, B, L] to the decoder's form [B, L]."""
        return positions[0]

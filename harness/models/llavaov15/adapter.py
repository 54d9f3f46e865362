"""LLaVA-OneVision-1.5 under `prune`: a CLS row in front of every image and frame, plain 1-D positions, q and k norms.

Placeholders, grids and how generate() hands over what was encoded are those of Qwen2.5-VL, whose processor it has.
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
    """Every image and frame is a unit [CLS, patches] that attention fills whole; four patches in sequence make a token.

    A score belongs to a patch by its place in its unit, as in the published comparison. With `unpack="released"` the
    features of the second and later units stand one row further on for each earlier one, so that a token there has the
    score of the place that it fills, not of every patch that went into it.

    HiPrune's authors did not run this family: arXiv 2602.13315 took layer 16 of 24, and in the two families that both
    ran its layer is the one behind the authors', as is 15 here.
    """

    has_cls: ClassVar[bool] = True
    middle_of: ClassVar[int] = 24
    rotate = staticmethod(apply_rotary_pos_emb_vision)

    def units(self, call: Call) -> list[int]:
        """Return the number of patches of every image and frame, and one for its CLS."""
        return [patches + 1 for patches in super().units(call)]


class LlavaOnevision15(Qwen25VL):
    """`LlavaOnevision15ForConditionalGeneration`, cut in front of decoder layer 0 or between two later ones."""

    family = MODEL_TYPE
    version = 1
    prompts = "llava_onevision1_5"
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
        """How the vision tower is read."""
        return RiceTower(self.model)

    def positions(self, call: Call) -> Tensor:
        """Return the positions [1, B, S] of the full sequence, which the model always passes on."""
        return call.require("positions").expand(call.require("embeddings").shape[:2]).unsqueeze(0)

    def position_ids(self, positions: Tensor) -> Tensor:
        """Return positions [1, B, L] as the decoder takes them, [B, L]."""
        return positions[0]

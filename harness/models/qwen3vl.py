"""Qwen3-VL: like Qwen2.5-VL, with tokens of 32 x 32 pixels, DeepStack, and the time before every step of a video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from harness.models.adapter import DecoderParts
from harness.models.calls import Arguments, Call
from harness.models.coordinates import Coordinates
from harness.models.qwen25vl import Qwen25VL, QwenTower


class Qwen3Tower(QwenTower):
    """The vision tower, without windows. Of its 27 layers in the 8B model, "middle" is 12 ("official") or 13 ("paper").

    No comparison was published on this family, so layers have the roles of Qwen2.5-VL, at the same share of the depth.
    """

    rotate = staticmethod(apply_rotary_pos_emb_vision)


class Qwen3VL(Qwen25VL):
    """`Qwen3VLForConditionalGeneration`, cut before decoder layer 0 or after a later one.

    DeepStack (arXiv 2406.04334) adds features of earlier vision layers to visual rows after the first decoder layers.
    They are dropped or averaged together with their token. A video is one grid of all its time steps, although the time
    is written before each. A step that loses all of its tokens keeps its time and the two marks around them, which are
    text: the times that are left are those of the frames, and no position moves.
    """

    family = "qwen3_vl"
    version = 1
    prompts = "qwen3_vl"
    coordinates: ClassVar[Coordinates | None] = Coordinates.THOUSANDTHS
    vision_fields: ClassVar[tuple[str, ...]] = ("pooler_output", "deepstack_features")
    decoder: ClassVar[DecoderParts] = DecoderParts(
        path="model.language_model",
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        projections=("q_norm", "k_norm"),
    )
    arguments: ClassVar[Mapping[str, Arguments]] = {
        **Qwen25VL.arguments,
        "decoder": Arguments.of("visual_rows added"),
    }
    rotate = staticmethod(apply_rotary_pos_emb)
    steps_apart: ClassVar[bool] = True

    @property
    def tower(self) -> Qwen3Tower:
        """Description of the vision tower, from which signals are read."""
        return Qwen3Tower(self.model)

    def added(self, call: Call) -> list[Tensor]:
        """Return the DeepStack features [B, S, D] of each of the first layers."""
        states, visual = call.require("embeddings"), call.get("visual_rows")
        if visual is None:
            return []
        visual = visual.to(states.device).unsqueeze(-1)
        return [
            states.new_zeros(states.shape).masked_scatter(visual, features.to(states))
            for features in call.get("added", ())
        ]

    def added_arguments(self, added: Sequence[Tensor], visual: Tensor) -> dict[str, Any]:
        """Return the arguments of DeepStack: the mask of visual rows, and [N, D] for each of the first layers."""
        return {"visual_rows": visual, "added": [rows[visual] for rows in added]}

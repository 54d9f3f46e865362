"""LLaVA-1.5: images of one size, one token per patch, 1-D positions, a standard language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from harness.models import question_tokens
from harness.models.adapter import DecoderParts
from harness.models.calls import NAMES, Arguments, Call
from harness.models.coordinates import Coordinates
from harness.models.image_towers import TOWERS, ImageTower, feature_layer
from harness.models.layout import Layout, Placeholders
from harness.models.placeholder_adapter import PlaceholderAdapter
from harness.models.vision_tower import VisionSignals
from methods.base import Method, Signal
from methods.tokens import Grid

# All rotate q and k directly after their projections, by the same function.
TEXT_MODELS = ("llama", "mistral", "qwen2")
# Text model -> what finds the question in its template.
TEMPLATES: Mapping[str, Callable[..., Tensor]] = {
    "llama": question_tokens.vicuna_question,
    "mistral": question_tokens.mistral_question,
    "qwen2": question_tokens.chatml_question,
}


class Llava(PlaceholderAdapter):
    """`LlavaForConditionalGeneration`, with a tower of `TOWERS`, cut before decoder layer 0 or after a later one."""

    family = "llava"
    version = 1
    prompts = "llava"
    coordinates: ClassVar[Coordinates | None] = Coordinates.SHARES
    media: ClassVar[frozenset[str]] = frozenset({"image"})
    supplies: ClassVar[frozenset[Signal]] = frozenset(Signal)
    fixed_size: ClassVar[str] = "every image becomes one size, 336 x 336 pixels as released"
    targets: ClassVar[Mapping[str, str]] = {
        "multimodal": "model",
        "vision": "model.vision_tower",
        "decoder": "model.language_model",
        "first_layer": "model.language_model.layers.0",
    }
    vision_fields: ClassVar[tuple[str, ...]] = ("hidden_states",)
    decoder: ClassVar[DecoderParts] = DecoderParts(
        path="model.language_model",
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        one_dimensional=True,
    )
    arguments: ClassVar[Mapping[str, Arguments]] = {
        "multimodal": Arguments.of("", "feature_layer feature_strategy"),
        "vision": Arguments.of("image", "layers_wanted"),
    }
    rotate = staticmethod(apply_rotary_pos_emb)
    encoding_hint = "pass pixel_values, inside it"
    towers: ClassVar[Mapping[str, type[ImageTower]]] = TOWERS
    question_templates: ClassVar[tuple[str, ...]] = ("llama", "qwen2")  # text models whose templates `question` knows

    @property
    def tower(self) -> ImageTower:
        """Description of the vision tower, from which signals are read."""
        return self.towers[self._config.vision_config.model_type](self.model)

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Also refuse models of this class with another tower, joined vision layers, or CLS as a token."""
        if reason := _unsupported(method, config, cls):
            raise ValueError(reason)
        super().check(method, config)

    def layout(self, call: Call) -> Layout:
        """Locate the visual tokens; ValueError if a call asks for other features than the configuration names."""
        for role in ("feature_layer", "feature_strategy"):
            self._refuse_other(role, call.get(role))
        return super().layout(call)

    def record_vision_pass(self, call: Call, output: Any, signals: VisionSignals | None) -> None:
        """Record what the tower encoded; with generate(), only this call shows which layer is asked for."""
        layers = call.get("layers_wanted")
        self._refuse_other("feature_layer", None if isinstance(layers, bool) else layers)
        super().record_vision_pass(call, output, signals)

    def _refuse_other(self, role: str, passed: Any) -> None:
        (name,) = NAMES[role]
        configured = getattr(self._config, name)
        if passed is not None and passed != configured:
            remedy = "leave it out, or set it in the model's configuration"
            raise ValueError(f"{name}={passed} is not what the vision tower is read for, {configured}: {remedy}")

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image, by the template of the text model."""
        find = TEMPLATES.get(self._config.text_config.model_type, question_tokens.chatml_question)
        return find(ids, kinds, self._config, self.model.generation_config)

    def positions(self, call: Call) -> Tensor:
        """Return the 1-D positions [1, B, S] of the full sequence."""
        states, ids = call.require("embeddings"), call.get("positions")
        batch, length = states.shape[:2]
        if ids is None:  # the default of the language model
            ids = torch.arange(length, device=states.device).view(1, -1)
        elif call.get("mask") is None and bool((ids.diff(dim=-1) != 1).any()):
            raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
        return ids.expand(batch, length).unsqueeze(0)

    def position_ids(self, positions: Tensor) -> Tensor:
        """Convert positions [1, B, L] to the decoder's form [B, L]."""
        return positions[0]

    def encoded_grids(self, call: Call) -> Sequence[Grid | Placeholders]:
        """Return (1, h, w) of every image that the tower encodes."""
        return [(1, *self.tower.patches(call))] * len(call.require("image"))

    def declared_grids(self, kind: str, call: Call) -> Sequence[Grid | Placeholders] | None:
        """Return (1, h, w) of every image of the batch."""
        return self.encoded_grids(call) if kind == "image" and call.get("image") is not None else None


def _unsupported(method: Method, config: Any, family: type[Llava]) -> str | None:
    """Return what `config` has that this adapter does not support, or None."""
    tower, text = config.vision_config.model_type, config.text_config.model_type
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    if tower not in family.towers:
        return f"the model has a tower of type {tower}: supported are {', '.join(family.towers)}"
    expected = "default" if family.towers[tower].has_cls else "full"  # "default" leaves out the first row
    if strategy != expected:
        what = "keeps CLS as a token" if strategy == "full" else "drops the first patch"
        return f"the model {what} (vision_feature_select_strategy={strategy}): supported with {tower} is {expected}"
    if not isinstance(layer, int):
        return f"the model joins vision layers (vision_feature_layer={layer}): supported is a single one"
    if Signal.LLM in method.needs and text not in TEXT_MODELS:
        return f"{method.name} reads a decoder layer of type {text}: supported are {', '.join(TEXT_MODELS)}"
    inside = method.stage not in ("input", "pixels")
    if inside and text == "mistral" and config.text_config.sliding_window is not None:
        window = config.text_config.sliding_window
        return f"{method.name} cuts inside the language model, whose layers attend within {window} tokens"
    if Signal.TEXT in method.needs and text not in family.question_templates:
        supported = ", ".join(family.question_templates)
        return f"{method.name} reads the question, which is not found in prompts of {text}: supported are {supported}"
    if method.needs & {Signal.VIT_ATTENTION, Signal.VIT_KEYS, Signal.VIT_FEATURES} and feature_layer(config) < 0:
        return f"{method.name} reads the vision layer that the features leave: here they are what enters layer 0"
    return None

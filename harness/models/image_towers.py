"""Vision towers that see images of one size, one token per patch, by `model_type` of their configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.models.calls import Arguments, Call
from harness.models.compat import CLIP_ENCODER, DINOV2_QK, SIGLIP_ENCODER
from harness.models.vision_tower import VisionTower


class ImageTower(VisionTower):
    """A tower whose pass has hidden states [images, cls + h * w, C], with CLS first if it has one.

    Layers have the roles that LLaVA-1.5's have: "last" is the layer whose output the features are, "middle" is 8
    ("official") or 9 ("paper") of 24. No comparison was published with other towers than CLIP in these families.
    """

    path: ClassVar[str] = "model.vision_tower"
    arguments: ClassVar[Arguments] = Arguments.of("image")
    middle: ClassVar[Mapping[str, int]] = {"official": 8, "paper": 9}
    middle_of: ClassVar[int] = 24
    level: ClassVar[str] = ""  # a level of names that newer versions of transformers have dropped, with its dot
    layers: ClassVar[str]  # the layers, below `path`
    attention: ClassVar[str]  # the attention, below a layer
    projections: ClassVar[tuple[str, str]]  # the modules below it whose outputs hold q and k

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._whole, self._config = config, config.vision_config

    @property
    def depth(self) -> int:
        """The number of layers, including those after the features."""
        return int(self._config.num_hidden_layers)

    @property
    def last(self) -> int:
        """The layer whose output the features are: 22 of 24 in LLaVA-1.5."""
        return feature_layer(self._whole)

    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return the names of a layer's attention and of its projections to q and k."""
        attention = f"{self.block(layer)}.{self.attention}"
        return attention, [f"{attention}.{name}" for name in self.projections]

    def block(self, layer: int) -> str:
        """Return the name of a layer."""
        return f"{self.path}.{self.layers}.{layer}"

    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d]; these towers do not rotate them."""
        heads = int(self._config.num_attention_heads)
        q, k = (part.reshape(-1, heads, part.shape[-1] // heads).transpose(0, 1) for part in projected)
        return q, k

    def segments(self, call: Call) -> list[int]:
        """Return h * w, and 1 for CLS, for every image."""
        h, w = self.patches(call)
        return [self.has_cls + h * w] * len(call.require("image"))

    def merge(self, patches: Tensor, call: Call) -> Tensor:
        """Return `patches`, because each is a token."""
        return patches

    def patches(self, call: Call) -> tuple[int, int]:
        """Return (h, w) in patches of the images [images, 3, H, W] in `call`, which have one size."""
        height, width = call.require("image").shape[-2:]
        return height // int(self._config.patch_size), width // int(self._config.patch_size)


class ClipTower(ImageTower):
    """CLIP, with CLS."""

    has_cls: ClassVar[bool] = True
    level = CLIP_ENCODER.removesuffix("encoder")
    layers, attention, projections = f"{CLIP_ENCODER}.layers", "self_attn", ("q_proj", "k_proj")


class SiglipTower(ImageTower):
    """SigLIP, without CLS: patches receive the attention of all patches."""

    has_cls: ClassVar[bool] = False
    level = SIGLIP_ENCODER.removesuffix("encoder")
    layers, attention, projections = f"{SIGLIP_ENCODER}.layers", "self_attn", ("q_proj", "k_proj")


class Dinov2Tower(ImageTower):
    """DINOv2, with CLS and no registers. It interpolates its positions, so an image may have any number of patches."""

    has_cls: ClassVar[bool] = True
    layers = "encoder.layer"
    attention, projections = DINOV2_QK


TOWERS: Mapping[str, type[ImageTower]] = {
    "clip_vision_model": ClipTower,
    "siglip_vision_model": SiglipTower,
    "dinov2": Dinov2Tower,
}


def feature_layer(config: Any) -> int:
    """Return the layer whose output the features are; -1 if they are the input of layer 0."""
    states = int(config.vision_config.num_hidden_layers) + 1  # the first is the input of layer 0
    return int(config.vision_feature_layer) % states - 1


def key_mapping(model_class: type[nn.Module], tower: str) -> dict[str, str]:
    """Return `key_mapping` of from_pretrained for towers whose tensor names lack a level that this version has.

    Versions of transformers with that level do not add it to a checkpoint that was saved by a version without it.
    """
    level = TOWERS[tower].level if tower in TOWERS else ""
    names = getattr(model_class, "_checkpoint_conversion_mapping", {})
    return {rf"^(model\.)?vision_tower\.(?!{level})": f"model.vision_tower.{level}"} | names if level else {}

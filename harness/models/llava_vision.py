"""Reading the CLIP tower of LLaVA-1.5: CLS first, learned positions, full attention, one token per patch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.models.calls import Arguments, Call
from harness.models.compat import CLIP_ENCODER
from harness.models.vision_tower import VisionTower


class ClipTower(VisionTower):
    """A pass has one row of patches [images, 1 + h * w, C], CLS in front."""

    path: ClassVar[str] = "model.vision_tower"
    arguments: ClassVar[Arguments] = Arguments.of("image")
    has_cls: ClassVar[bool] = True
    middle: ClassVar[Mapping[str, int]] = {"official": 8, "paper": 9}
    middle_of: ClassVar[int] = 24

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self._whole, self._config = config, config.vision_config

    @property
    def depth(self) -> int:
        """The number of layers, with those behind the features."""
        return int(self._config.num_hidden_layers)

    @property
    def last(self) -> int:
        """The layer whose output the features are: 22 of 24 as released."""
        return feature_layer(self._whole)

    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return a layer's attention, and its projections to q and k."""
        attention = f"{self.path}.{CLIP_ENCODER}.layers.{layer}.self_attn"
        return attention, (f"{attention}.q_proj", f"{attention}.k_proj")

    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d], which have no positions of their own."""
        heads = int(self._config.num_attention_heads)
        q, k = (part.reshape(-1, heads, part.shape[-1] // heads).transpose(0, 1) for part in projected)
        return q, k

    def units(self, call: Call) -> list[int]:
        """Return 1 + h * w for every image."""
        h, w = self.patches(call)
        return [1 + h * w] * len(call.require("image"))

    def merged(self, patches: Tensor, call: Call) -> Tensor:
        """Return `patches`: each is a token."""
        return patches

    def patches(self, call: Call) -> tuple[int, int]:
        """Return (h, w) of the images [images, 3, H, W] in `call`, which are of one size."""
        height, width = call.require("image").shape[-2:]
        return height // int(self._config.patch_size), width // int(self._config.patch_size)


def feature_layer(config: Any) -> int:
    """Return the layer whose output the features are; -1 if they are what enters layer 0."""
    states = int(config.vision_config.num_hidden_layers) + 1  # the first of them is what enters layer 0
    return int(config.vision_feature_layer) % states - 1


def loading_options(model_class: type[nn.Module]) -> dict[str, Any]:
    """Return what from_pretrained needs to read a tower without the level "vision_model" in the names of its tensors.

    Versions of transformers that have the level do not add it to a checkpoint that was saved by one without.
    """
    level = CLIP_ENCODER.removesuffix("encoder")
    names = getattr(model_class, "_checkpoint_conversion_mapping", {})
    bare = {rf"^(model\.)?vision_tower\.(?!{level})": f"model.vision_tower.{level}"}
    return {"key_mapping": bare | names} if level else {}

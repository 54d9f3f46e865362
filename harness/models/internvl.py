"""InternVL3: images in tiles of one size, 2 x 2 patches of a ViT with CLS in a token, 1-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.models import question_tokens
from harness.models.calls import Call
from harness.models.llava import ClipTower, Llava
from methods.tokens import Grid


class InternTower(ClipTower):
    """Each tile is an image of its own, CLS in front; the square of patches of a token stands in two rows of it.

    No comparison was published on this family: its roles are those of LLaVA-1.5, "last" being the layer whose output
    the features are (23 of 24 in the released 8B model), "middle" 8 ("official") or 9 ("paper") of 24.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        self._downsample: float = config.downsample_ratio

    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return a layer's attention, and what comes last before q and k are taken apart into heads."""
        attention = f"{self.path}.encoder.layer.{layer}.attention"
        return attention, (f"{attention}.q_norm", f"{attention}.k_norm")

    def merged(self, patches: Tensor, call: Call) -> Tensor:
        """Average squares of patches, in the order of the pixel shuffle: row by row in each tile."""
        (h, w), side = self.patches(call), self.side()
        squares = patches.view(-1, h // side, side, w // side, side, *patches.shape[1:])
        return squares.mean((2, 4)).flatten(0, 2)

    def group(self) -> int:
        """Return the number of patches in a token."""
        return self.side() ** 2

    def side(self) -> int:
        """Return the number of patches along a side of a token."""
        return round(1 / self._downsample)

    def patches(self, call: Call) -> tuple[int, int]:
        """Return (h, w) of the tiles [tiles, 3, H, W] in `call`."""
        (height, width), (rows, columns) = call.require("image").shape[-2:], self._config.patch_size
        return height // rows, width // columns


class InternVL(Llava):
    """`InternVLForConditionalGeneration`, cut in front of decoder layer 0 or between two later ones.

    Every tile of an image is a grid; so is every frame of a video, which comes as images with text between them.
    """

    family = "internvl"
    version = 1
    prompts = "internvl_hf"
    vision_fields: ClassVar[tuple[str, ...]] = ("last_hidden_state", "hidden_states")
    tower_type: ClassVar[str] = "internvl_vision"
    asked_in: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3")
    fixed_size: ClassVar[str] = "an image becomes tiles of one size, 256 tokens each as released"

    @property
    def tower(self) -> InternTower:
        """How the vision tower is read."""
        return InternTower(self.model)

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image; Qwen's format, a break behind each image."""
        configs = self._config, self.model.generation_config
        rows = question_tokens.chatml_question(ids, kinds, *configs)
        ends = torch.isin(ids, ids.new_tensor(question_tokens.named(configs, question_tokens.ENDS)))
        breaks = ids[1:][ends[:-1]]  # what follows the end of a turn
        first, before = ids[rows], (rows - 2).clamp(min=0)  # the image, and one token that closes it
        return rows[~((kinds[before] > 0) & (kinds[before + 1] == 0) & torch.isin(first, breaks))]

    def encoded_grids(self, call: Call) -> list[Grid]:
        """Return (1, h, w) in tokens of every tile that the tower encodes."""
        side = self.tower.side()
        h, w = self.tower.patches(call)
        return [(1, h // side, w // side)] * len(call.require("image"))

"""InternVL2.5 and InternVL3: tiles of one size, a ViT with CLS, 2 x 2 patches per token, 1-D positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.models import question_tokens
from harness.models.calls import Call
from harness.models.coordinates import Coordinates
from harness.models.image_towers import ImageTower
from harness.models.llava import Llava
from methods.base import Method, Signal
from methods.tokens import Grid

INTERNLM2_END, INTERNLM2_IMAGE = 92542, 92546  # <|im_end|> and <IMG_CONTEXT> in the tokenizer of InternLM2.5


class InternTower(ImageTower):
    """The vision tower. Each tile is an image of its own, with CLS first; a token is a square of 2 x 2 patches.

    No comparison was published on this family, so layers have the roles of LLaVA-1.5: "last" is the layer whose output
    the features are (23 of 24 in the released 8B model), "middle" is 8 ("official") or 9 ("paper") of 24.
    """

    has_cls: ClassVar[bool] = True
    layers, attention = "encoder.layer", "attention"
    projections = "q_norm", "k_norm"  # before the split into heads

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config: Any = model.config
        self._downsample: float = config.downsample_ratio

    def merge(self, patches: Tensor, call: Call) -> Tensor:
        """Average squares of patches in the order of the pixel shuffle, which is row by row in each tile."""
        (h, w), side = self.patches(call), self.side()
        squares = patches.view(-1, h // side, side, w // side, side, *patches.shape[1:])
        return squares.mean((2, 4)).flatten(0, 2)

    def patches_per_token(self) -> int:
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
    """`InternVLForConditionalGeneration`, cut before decoder layer 0 or after a later one.

    Every tile of an image is a grid. So is every frame of a video, which comes as images with text between them. The
    language model is Qwen's, or in some models of InternVL2.5 InternLM2.5, which checkpoints hold as one of Llama's.
    """

    family = "internvl"
    version = 1
    prompts = "internvl_hf"
    coordinates: ClassVar[Coordinates | None] = Coordinates.THOUSANDTHS
    media: ClassVar[frozenset[str]] = frozenset({"image", "video"})
    vision_fields: ClassVar[tuple[str, ...]] = ("last_hidden_state", "hidden_states")
    towers: ClassVar[Mapping[str, type[ImageTower]]] = {"internvl_vision": InternTower}
    question_templates: ClassVar[tuple[str, ...]] = ("qwen2", "qwen3", "llama")
    frames_apart: ClassVar[str] = "its models get each frame as an image of its own"
    fixed_size: ClassVar[str] = "an image becomes tiles of one size, 256 tokens each as released"

    @property
    def tower(self) -> InternTower:
        """Description of the vision tower, from which signals are read."""
        return InternTower(self.model)

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Also refuse to look for the question in prompts of another Llama than InternLM2.5."""
        super().check(method, config)
        other = config.text_config.model_type == "llama" and config.image_token_id != INTERNLM2_IMAGE
        if Signal.TEXT in method.needs and other:
            known = f"only InternLM2.5's is known, whose image_token_id is {INTERNLM2_IMAGE}"
            raise ValueError(
                f"{method.name} reads the question, which is not found with this tokenizer: of language models of type "
                f"llama {known}, here it is {config.image_token_id}"
            )

    def _pixels(self, call: Call) -> list[str]:
        """Return the kinds of media whose pixels are in a pass: frames of videos come as images."""
        return [] if call.get("image") is None else ["image"]

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image; ValueError if <|im_end|> has no id.

        The template is Qwen's, with a line break after each image, which is no word.
        """
        configs = self._config, self.model.generation_config
        if self._config.text_config.model_type == "llama":
            named = question_tokens.ids_of(configs, question_tokens.ENDS)
            if INTERNLM2_END not in named:
                raise ValueError(
                    f"the question ends at <|im_end|>, id {INTERNLM2_END}, but eos_token_id in config.json and "
                    f"generation_config.json is {named}: add it to generation_config.json"
                )
        rows = question_tokens.chatml_question(ids, kinds, *configs)
        ends = torch.isin(ids, ids.new_tensor(question_tokens.ids_of(configs, question_tokens.ENDS)))
        breaks = ids[1:][ends[:-1]]  # a line break follows the end of a turn
        tokens, before = ids[rows], (rows - 2).clamp(min=0)  # two rows before: the image, then one closing token
        return rows[~((kinds[before] > 0) & (kinds[before + 1] == 0) & torch.isin(tokens, breaks))]

    def encoded_grids(self, call: Call) -> list[Grid]:
        """Return (1, h, w) in tokens of every tile that the tower encodes."""
        side = self.tower.side()
        h, w = self.tower.patches(call)
        return [(1, h // side, w // side)] * len(call.require("image"))

"""The second pocket model under training: LLaVA's architecture, with a CLIP tower whose CLS token names the picture.

The tower starts as neighbourhoods: positions are waves on coordinates of their own, and some heads are set so that a
patch attends to the patch beside it, or to its row or column, as convolutions would. Where these look stays as it is
set, what they carry is trained: left free, they are blurred before anything is there to carry. Patches enter as their
principal components. The decoder starts as the trained one of the first pocket model, whose
words are the same; it has to learn that positions count rows of text now, not places in the picture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from harness.pocket import LLAVA_WEIGHTS, WEIGHTS
from harness.pocket.draw import TRAIN_SEED, scene_at
from harness.pocket.recipe.attention_init import hold, hold_notes
from harness.pocket.recipe.batches import normalised, use_grouped_attention
from harness.pocket.recipe.learner import Pocket
from harness.pocket.recipe.model import PATCH, SIDE, build_llava
from harness.pocket.recipe.vocab import build_llava_processor
from harness.pocket.scenes import KINDS, Scene, dense_targets

COLUMNS = SIDE // PATCH
WAVES = 8  # frequencies an axis, cosine and sine each: as many coordinates as a head is wide
CLS_WEIGHT = 0.02  # of a picture's loss against the sum over its tokens' mean
AMPLITUDE, SHARPNESS = 2.0, 3.0
BESIDE = ((0, 1), (0, -1), (1, 0), (-1, 0))
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
# Which heads attend where at the start, by layer: an offset in (rows, columns), None for the whole of that axis.
PLACES: tuple[tuple[tuple[int | None, int | None], ...], ...] = (
    BESIDE,
    CORNERS,
    ((0, None), (None, 0), (0, -1), (0, -2)),
    ((0, None), (None, 0), (0, -1), (0, 1)),
    ((0, None), (0, -1), (0, -2), (0, -3)),
)


class LlavaPocket(Pocket):
    """The pocket model of LLaVA's architecture; its pictures are squares of 16 x 16 patches, mostly empty."""

    weights = LLAVA_WEIGHTS
    kinds = tuple(kind for kind in KINDS if kind != "video")
    flat = True

    def build(self) -> tuple[Any, Any]:
        """Processor and randomly initialised model."""
        processor = build_llava_processor()
        return processor, build_llava(processor.tokenizer)

    def vision_parts(self) -> Any:
        """Tower, projector, and a throw-away map from the CLS token to words."""
        tower, projector = self.model.model.vision_tower, self.model.model.multi_modal_projector
        use_grouped_attention(tower)
        width = tower.config.hidden_size
        summary = torch.nn.Linear(width, width).to(self.device)
        parts = torch.nn.ModuleDict({"tower": tower, "projector": projector, "summary": summary})
        begin_tower(
            tower, torch.cat([_patches(scene_at(kind, TRAIN_SEED, i)) for kind in self.kinds for i in range(40)])
        )
        return parts

    @property
    def last_map(self) -> tuple[torch.nn.Module, Any]:
        """The module that holds the last linear map of the vision parts, and its name there."""
        return self.vision["projector"], "linear_2"

    def encode(self, scenes: list[Scene], whole: bool = True) -> list[Tensor]:
        """Visual tokens of each scene: all [256, D], or without those of the empty rest of the square [N_i, D]."""
        order = sorted(range(len(scenes)), key=lambda i: math.prod(scenes[i].frames[0].size))
        size = len(scenes) if whole else max(1, len(scenes) // 4)  # like sizes together, for little padding
        found: dict[int, Tensor] = {}
        self.summaries: dict[int, Tensor] = {}
        with self.autocast:
            for start in range(0, len(scenes), size):
                part = order[start : start + size]
                tokens, cls = self._run([scenes[i] for i in part], whole)
                found |= dict(zip(part, tokens, strict=True))
                self.summaries |= dict(zip(part, cls, strict=True))
        return [found[i].float() for i in range(len(scenes))]

    def _run(self, scenes: list[Scene], whole: bool) -> tuple[list[Tensor], Tensor]:
        tower = self.vision["tower"]
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight.flatten(1)
        places = [_square() if whole else _places(scene) for scene in scenes]
        longest = max(len(place) for place in places)
        rows = []
        for scene, place in zip(scenes, places, strict=True):
            content = torch.zeros(COLUMNS**2, weight.shape[1], device=self.device)
            content[_places(scene)] = _patches(scene).to(self.device)
            rows.append(F.pad(content[place], (0, 0, 0, longest - len(place))))
        index = torch.stack([F.pad(place + 1, (0, longest - len(place))) for place in places]).to(self.device)
        x = torch.stack(rows) @ weight.T + embeddings.position_embedding(index)
        cls = embeddings.class_embedding + embeddings.position_embedding.weight[0]
        x = tower.pre_layrnorm(torch.cat([cls.expand(len(x), 1, -1), x], dim=1))
        lengths = torch.tensor([len(place) for place in places], device=self.device)
        mask = (torch.arange(longest + 1, device=self.device) <= lengths[:, None])[:, None, None]
        mask = mask.expand(-1, 1, longest + 1, -1)
        *layers, last = tower.encoder.layers
        for layer in layers:
            x = layer(x, mask)
        tokens = self.vision["projector"](x[:, 1:])
        summary = tower.post_layernorm(last(x, mask)[:, 0])
        return [row[: len(place)] for row, place in zip(tokens, places, strict=True)], summary

    def targets(self, scenes: list[Scene], whole: bool = True) -> Tensor:
        """What lies at each of the tokens that `encode` gives; nothing in the empty rest of the square."""
        parts = []
        for scene in scenes:
            target = torch.from_numpy(dense_targets(scene, self.labels))
            if whole:
                square = target.new_zeros(COLUMNS**2, target.shape[1])
                square[_places(scene)] = target
                target = square
            parts.append(target)
        return torch.cat(parts)

    def grid(self, scene: Scene) -> tuple[int, int, int]:
        """The whole square, always."""
        return 1, COLUMNS, COLUMNS

    def whole_picture(self, target: Tensor, scenes: list[Scene], whole: bool) -> Tensor:
        """CLIP's CLS token learns what is in a picture; here which words its patches carry, as one description."""
        table = self.model.get_input_embeddings().weight[self.label_rows].detach()
        sizes = [COLUMNS**2 if whole else len(_places(scene)) for scene in scenes]
        there = torch.stack([part.amax(0) for part in target.split(sizes)])
        cls = torch.stack([self.summaries[i] for i in range(len(scenes))]).float()
        logits = 10 * self.vision["summary"](cls) @ table.T - 2
        return F.binary_cross_entropy_with_logits(logits, there, reduction="sum") / len(scenes) * CLS_WEIGHT

    def begin_decoder(self) -> None:
        """Start from the decoder of the first pocket model: the same shapes, words and prompts."""
        tensors = load_file(WEIGHTS / "model.safetensors")
        decoder = {k.removeprefix("model."): t.float() for k, t in tensors.items() if k.startswith("model.")}
        mine = self.decoder.state_dict()
        assert torch.allclose(decoder["embed_tokens.weight"], mine["embed_tokens.weight"], atol=1e-3), "other words"
        self.decoder.load_state_dict(decoder | {"embed_tokens.weight": mine["embed_tokens.weight"]})
        hold_notes(self.decoder)


def _patches(scene: Scene) -> Tensor:
    """Flat patches [h * w, 3 * 28 * 28] of a picture, as a convolution's weights are laid out."""
    pixels = normalised(scene.frames[:1])[0]
    h, w = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    return pixels.view(3, h, PATCH, w, PATCH).permute(1, 3, 0, 2, 4).reshape(h * w, -1)


def _places(scene: Scene) -> Tensor:
    """Where the patches of a picture [N] stand in the square: it lies in the upper left corner."""
    width, height = scene.frames[0].size
    return (torch.arange(height // PATCH)[:, None] * COLUMNS + torch.arange(width // PATCH)).flatten()


def _square() -> Tensor:
    return torch.arange(COLUMNS**2)


@torch.no_grad()
def begin_tower(tower: Any, patches: Tensor) -> None:
    """Set patch embedding, positions and some heads as the module says; `patches` [M, 3 * 28 * 28] are examples."""
    content = tower.config.hidden_size - 4 * WAVES  # coordinates before those of positions
    drawn = patches[patches.std(1) > patches.std(1).mean()]  # not the empty ones: content must not drown positions
    variance, axes = torch.linalg.eigh(torch.cov(drawn.T.double()))
    axes, variance = axes.flip(1)[:, :content], variance.flip(0)[:content]
    weight = tower.embeddings.patch_embedding.weight
    weight.zero_()
    weight[:content] = (axes / (variance + variance[content // 2]).sqrt()).T.reshape(content, *weight.shape[1:]).float()
    table = tower.embeddings.position_embedding.weight.zero_().requires_grad_(False)
    places = torch.arange(COLUMNS**2)
    table[1:, content:] = AMPLITUDE * _waves(places // COLUMNS, places % COLUMNS)
    tower.embeddings.class_embedding.normal_()
    hold(weight, slice(content, None))
    for layer in tower.encoder.layers:
        for written in (layer.self_attn.out_proj, layer.mlp.fc2):
            for parameter in (written.weight, written.bias):
                parameter[content:] = 0
                hold(parameter, slice(content, None))
    for layer, offsets in zip(tower.encoder.layers, PLACES, strict=False):
        attention, size = layer.self_attn, layer.self_attn.head_dim
        assert size == 4 * WAVES, "positions fill a head"
        for head, (down, right) in enumerate(offsets):
            mine = slice(head * size, (head + 1) * size)
            for projection, turned in ((attention.q_proj, _turn(down, right)), (attention.k_proj, torch.eye(size))):
                projection.weight[mine] = F.pad(SHARPNESS * turned, (content, 0))
                projection.bias[mine] = 0
                hold(projection.weight, mine)
                hold(projection.bias, mine)


def _frequencies() -> Tensor:
    return torch.linspace(0.2, 2.8, WAVES)


def _waves(row: Tensor, column: Tensor) -> Tensor:
    """[..., 4 * WAVES]: cosine and sine of the row at each frequency, then of the column."""
    angles = [place[..., None] * _frequencies() for place in (row, column)]
    return torch.cat([part for angle in angles for part in (angle.cos(), angle.sin())], dim=-1)


def _turn(down: int | None, right: int | None) -> Tensor:
    """The matrix that takes the waves of a place to those of the place at an offset; zero on an axis that is free."""
    turned = torch.zeros(4 * WAVES, 4 * WAVES)
    for axis, step in enumerate((down, right)):
        if step is None:
            continue
        angle, start = _frequencies() * step, 2 * WAVES * axis
        for wave in range(WAVES):
            c, s = start + wave, start + WAVES + wave
            turned[c, c], turned[c, s] = angle[wave].cos(), -angle[wave].sin()
            turned[s, c], turned[s, s] = angle[wave].sin(), angle[wave].cos()
    return turned

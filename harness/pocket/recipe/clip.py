"""`LlavaPocket`: the second pocket model under training, in LLaVA's architecture with a CLIP tower.

Some heads of the tower start as convolutions: positions are waves in coordinates of their own, and a patch attends to a
neighbour, to its row or to its column. Queries and keys of these heads stay fixed and their values are trained; trained
queries and keys blur before there are values to carry. Patches enter as their principal components. The decoder starts
from the trained decoder of the first pocket model, which has the same words. It has to learn that positions now count
tokens instead of rows and columns of the image.
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
CLS_WEIGHT = 0.02  # weight of the image-level loss
FREQUENCIES = torch.linspace(0.2, 2.8, WAVES)
AMPLITUDE, SHARPNESS = 2.0, 3.0
SQUARE = torch.arange(COLUMNS**2)  # indices of its patches
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
# Where the first heads of each layer attend: an offset in (rows, columns), None for the whole axis.
PLACES: tuple[tuple[tuple[int | None, int | None], ...], ...] = (
    NEIGHBOURS,
    CORNERS,
    ((0, None), (None, 0), (0, -1), (0, -2)),
    ((0, None), (None, 0), (0, -1), (0, 1)),
    ((0, None), (0, -1), (0, -2), (0, -3)),
)


class LlavaPocket(Pocket):
    """The pocket model in LLaVA's architecture; images are squares of 16 x 16 patches, most of them padding."""

    weights = LLAVA_WEIGHTS
    kinds = tuple(kind for kind in KINDS if kind != "video")
    flat = True

    def build(self) -> tuple[Any, Any]:
        """Return the processor and a randomly initialised model."""
        processor = build_llava_processor()
        return processor, build_llava(processor.tokenizer)

    def vision_parts(self) -> Any:
        """Return tower, projector, and a layer from the CLS token to words that is used in training only."""
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
        """The parent module of the last linear layer of the vision parts, and the name of the layer."""
        return self.vision["projector"], "linear_2"

    def encode(self, scenes: list[Scene], whole: bool = True) -> list[Tensor]:
        """Return the visual tokens of each scene: [256, D] if `whole`, else without the padding [N_i, D]."""
        order = sorted(range(len(scenes)), key=lambda i: math.prod(scenes[i].frames[0].size))
        size = len(scenes) if whole else max(1, len(scenes) // 4)  # batches of similar size, for little padding
        tokens_of: dict[int, Tensor] = {}
        self.summaries: dict[int, Tensor] = {}
        with self.autocast:
            for start in range(0, len(scenes), size):
                part = order[start : start + size]
                tokens, cls = self._run([scenes[i] for i in part], whole)
                tokens_of |= dict(zip(part, tokens, strict=True))
                self.summaries |= dict(zip(part, cls, strict=True))
        return [tokens_of[i].float() for i in range(len(scenes))]

    def _run(self, scenes: list[Scene], whole: bool) -> tuple[list[Tensor], Tensor]:
        tower = self.vision["tower"]
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight.flatten(1)
        places = [SQUARE if whole else _places(scene) for scene in scenes]
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
        """Return the dense targets of the tokens of `encode`; zero in the padding."""
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
        """Return the grid of the whole square."""
        return 1, COLUMNS, COLUMNS

    def whole_picture(self, target: Tensor, scenes: list[Scene], whole: bool) -> Tensor:
        """Return the loss of the CLS token, which learns the set of words of all patches."""
        table = self.model.get_input_embeddings().weight[self.label_rows].detach()
        sizes = [COLUMNS**2 if whole else len(_places(scene)) for scene in scenes]
        present = torch.stack([part.amax(0) for part in target.split(sizes)])
        cls = torch.stack([self.summaries[i] for i in range(len(scenes))]).float()
        logits = 10 * self.vision["summary"](cls) @ table.T - 2
        return F.binary_cross_entropy_with_logits(logits, present, reduction="sum") / len(scenes) * CLS_WEIGHT

    def begin_decoder(self) -> None:
        """Start from the decoder of the first pocket model, which has the same shapes, words and prompts."""
        tensors = load_file(WEIGHTS / "model.safetensors")
        decoder = {k.removeprefix("model."): t.float() for k, t in tensors.items() if k.startswith("model.")}
        own = self.decoder.state_dict()
        assert torch.allclose(decoder["embed_tokens.weight"], own["embed_tokens.weight"], atol=1e-3), "other words"
        self.decoder.load_state_dict(decoder | {"embed_tokens.weight": own["embed_tokens.weight"]})
        hold_notes(self.decoder)


def _patches(scene: Scene) -> Tensor:
    """Return flat patches [h * w, 3 * 28 * 28] of an image, in the layout of convolution weights."""
    pixels = normalised(scene.frames[:1])[0]
    h, w = pixels.shape[1] // PATCH, pixels.shape[2] // PATCH
    return pixels.view(3, h, PATCH, w, PATCH).permute(1, 3, 0, 2, 4).reshape(h * w, -1)


def _places(scene: Scene) -> Tensor:
    """Return the indices [N] of an image's patches in the square; the image lies in the upper left corner."""
    width, height = scene.frames[0].size
    return (torch.arange(height // PATCH)[:, None] * COLUMNS + torch.arange(width // PATCH)).flatten()


@torch.no_grad()
def begin_tower(tower: Any, patches: Tensor) -> None:
    """Initialise patch embedding, positions and heads as described above, from example patches [M, 3 * 28 * 28]."""
    content = tower.config.hidden_size - 4 * WAVES  # coordinates before those of positions
    # Padding has little variance: the whitening below would inflate the content over the positions.
    filled = patches[patches.std(1) > patches.std(1).mean()]
    variance, axes = torch.linalg.eigh(torch.cov(filled.T.double()))
    axes, variance = axes.flip(1)[:, :content], variance.flip(0)[:content]
    weight = tower.embeddings.patch_embedding.weight
    weight.zero_()
    weight[:content] = (axes / (variance + variance[content // 2]).sqrt()).T.reshape(content, *weight.shape[1:]).float()
    table = tower.embeddings.position_embedding.weight.zero_().requires_grad_(False)
    table[1:, content:] = AMPLITUDE * _waves(SQUARE // COLUMNS, SQUARE % COLUMNS)
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


def _waves(row: Tensor, column: Tensor) -> Tensor:
    """Return [..., 4 * WAVES]: cosine and sine of the row at each frequency, then of the column."""
    angles = [place[..., None] * FREQUENCIES for place in (row, column)]
    return torch.cat([part for angle in angles for part in (angle.cos(), angle.sin())], dim=-1)


def _turn(down: int | None, right: int | None) -> Tensor:
    """Return the matrix that shifts the waves of a position by an offset; zero on an axis without offset."""
    turned = torch.zeros(4 * WAVES, 4 * WAVES)
    for axis, step in enumerate((down, right)):
        if step is None:
            continue
        angle, start = FREQUENCIES * step, 2 * WAVES * axis
        for wave in range(WAVES):
            c, s = start + wave, start + WAVES + wave
            turned[c, c], turned[c, s] = angle[wave].cos(), -angle[wave].sin()
            turned[s, c], turned[s, s] = angle[wave].sin(), angle[wave].cos()
    return turned

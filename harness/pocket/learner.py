"""The model under training, its words, and the scenes it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.pocket.easyvqa import easyvqa_scene, n_train_images
from harness.pocket.model import WIDTH, build_model
from harness.pocket.packed import patchify, use_grouped_attention, use_packed_attention
from harness.pocket.prime import NOTES
from harness.pocket.scenes import KINDS, Scene
from harness.pocket.vocab import OPTIONS, SHAPES, SPECIALS, build_processor, label_words, token_of

TRAIN_SEED, PROBE_SEED = 1, 2  # the suite itself is drawn from seed 3 (harness.pocket.data)
MERGE = 2
NAMED_GAIN = 0.6  # brings the words in a visual token to about the length of the words in a question


def scene_at(kind: str, seed: int, index: int) -> Scene:
    """The scene of a kind at an index of a seed's endless sequence; easy-VQA gives its own training images."""
    if kind == "easyvqa":
        return easyvqa_scene("train", index % n_train_images())
    return KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind), index]))


def spread(share: dict[str, int]) -> list[str]:
    """Each kind as often as its share says."""
    return [kind for kind, times in share.items() for _ in range(times)]


class Pocket:
    """The model under training and what all stages share."""

    def __init__(self, work: Path, device: str) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device = work, torch.device(device)
        self.processor = build_processor()
        self.tokenizer = self.processor.tokenizer
        model: Any = build_model(self.tokenizer)
        self.model: Any = model.to(self.device)
        self.vision = self.model.model.visual
        use_packed_attention(self.vision)
        use_grouped_attention(self.model.model.language_model)
        self.labels = {word: i for i, word in enumerate(label_words())}
        rows = [self.tokenizer.convert_tokens_to_ids(token_of(word)) for word in self.labels]
        assert len({*rows, self.tokenizer.unk_token_id}) == len(rows) + 1, "a label word is not one token of its own"
        self.label_rows = torch.tensor(rows, device=self.device)
        self.draw_words()
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def draw_words(self) -> None:
        """Embeddings of unit length, so that a visual token, the sum of a few, lives on the scale of words.

        Label words are orthogonal to one another and to all others, so that naming one says nothing of the rest; a
        plural lies close to its singular.
        """
        table = self.model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(table.shape, generator=generator).to(table)
        drawn = torch.cat([rows[self.label_rows], torch.randn(len(NOTES), WIDTH, generator=generator).to(table)])
        basis, _ = torch.linalg.qr(drawn.T)  # [D, words + notes]
        rows = F.normalize(rows - rows @ basis @ basis.T, dim=1)
        words = basis[:, : len(self.labels)]
        rows[self.label_rows] = words.T
        for word in (*SHAPES, "object", "bar"):
            plural = self.tokenizer.convert_tokens_to_ids(f"▁{word}es" if word == "cross" else f"▁{word}s")
            assert plural != self.tokenizer.unk_token_id, word
            rows[plural] = 0.9 * words.T[self.labels[word]] + 0.44 * rows[plural]
        table.copy_(rows)
        others = [*OPTIONS, *(f"▁{letter}" for letter in OPTIONS), "▁assistant", *SPECIALS[3:7]]
        tokens = {word: token_of(word) for word in self.labels} | {token: token for token in others}
        self.words = {word: rows[self.tokenizer.convert_tokens_to_ids(token)] for word, token in tokens.items()}
        self.notes = dict(zip(NOTES, basis[:, len(self.labels) :].T, strict=True))

    def encode(self, scenes: list[Scene]) -> list[Tensor]:
        """Visual tokens of each scene, [N_i, D] float32."""
        patches, grids = zip(*[patchify(s.frames) for s in scenes], strict=True)
        with self.autocast:
            tokens = self.vision(
                torch.cat(patches).to(self.device), grid_thw=torch.tensor(grids, device=self.device)
            ).pooler_output
        return list(tokens.float().split([t * h * w // MERGE**2 for t, h, w in grids]))

    @torch.no_grad()
    def settle_tokens(self) -> None:
        """Fold the scale of words and the placeholder that all share into the last map: what the decoder gets."""
        table = self.model.get_input_embeddings().weight
        words = table[self.label_rows]
        last = self.vision.merger.mlp[2]
        project = NAMED_GAIN * words.T @ words  # what no word names stays out
        last.weight.copy_(project @ last.weight)
        last.bias.copy_(project @ last.bias + self.words["<|image_pad|>"])

    def load(self, stage: str) -> None:
        """Weights of a finished stage."""
        state = torch.load(self.work / f"{stage}.pt", weights_only=True)
        if "vision" in state:
            self.vision.load_state_dict(state["vision"])
        else:
            self.model.model.language_model.load_state_dict(
                {k.removeprefix("decoder."): v for k, v in state["decoder"].items()}
            )

"""`Pocket`: the model under training, its word embeddings and its targets, for the architecture of Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.pocket import WEIGHTS
from harness.pocket.draw import SHARES
from harness.pocket.recipe.attention_init import NOTES, prime
from harness.pocket.recipe.batches import Encoded, pack, patchify, use_grouped_attention, use_packed_attention
from harness.pocket.recipe.model import WIDTH, build_model
from harness.pocket.recipe.vocab import SPECIALS, build_processor, label_words, token_of
from harness.pocket.scenes import KINDS, TOKEN, Question, Scene, dense_targets
from harness.pocket.words import OPTIONS, SHAPES

MERGE = 2
NAMED_GAIN = 0.6  # brings the words in a visual token to about the length of the words in a question


class Pocket:
    """The model under training, with what all stages share."""

    weights = WEIGHTS  # folder of the shipped weights
    kinds = tuple(KINDS)  # of scenes that the model supports
    shares = SHARES  # of the kinds in the training of the decoder
    probes = 440  # scenes on which the training of the decoder reports
    flat = False  # whether positions are numbers instead of M-RoPE triples

    def __init__(self, work: Path, device: str) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device = work, torch.device(device)
        self.processor, model = self.build()
        self.tokenizer = self.processor.tokenizer
        self.model: Any = model.to(self.device)
        self.decoder = self.model.model.language_model
        self.vision = self.vision_parts()
        use_grouped_attention(self.decoder)
        self.labels = {word: i for i, word in enumerate(label_words())}
        rows = [self.tokenizer.convert_tokens_to_ids(token_of(word)) for word in self.labels]
        assert len({*rows, self.tokenizer.unk_token_id}) == len(rows) + 1, "a label word is not one token of its own"
        self.label_rows = torch.tensor(rows, device=self.device)
        self.draw_words()
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)

    # What depends on the architecture.

    def build(self) -> tuple[Any, Any]:
        """Return the processor and a randomly initialised model."""
        processor = build_processor()
        return processor, build_model(processor.tokenizer)

    def vision_parts(self) -> Any:
        """Return the modules that produce visual tokens."""
        use_packed_attention(self.model.model.visual)
        return self.model.model.visual

    @property
    def last_map(self) -> tuple[torch.nn.Module, Any]:
        """The parent module of the last linear layer of the vision parts, and the name of the layer."""
        return self.vision.merger.mlp, "2"

    def encode(self, scenes: list[Scene], whole: bool = True) -> list[Tensor]:
        """Return the visual tokens of each scene, [N_i, D] float32."""
        patches, grids = zip(*[patchify(s.frames) for s in scenes], strict=True)
        with self.autocast:
            tokens = self.vision(
                torch.cat(patches).to(self.device), grid_thw=torch.tensor(grids, device=self.device)
            ).pooler_output
        return list(tokens.float().split([t * h * w // MERGE**2 for t, h, w in grids]))

    def encode_once(self, scenes: list[Scene]) -> list[Tensor]:
        """Return what `encode` does."""
        return self.encode(scenes)

    def targets(self, scenes: list[Scene], whole: bool = True) -> Tensor:
        """Return the dense targets of the tokens of `encode`, [sum of N_i, words]."""
        return torch.from_numpy(np.concatenate([dense_targets(scene, self.labels) for scene in scenes]))

    def grid(self, scene: Scene) -> tuple[int, int, int]:
        """Return (t, h, w) in tokens of a scene, as the decoder gets it."""
        width, height = scene.frames[0].size
        return max(1, len(scene.frames) // 2), height // TOKEN, width // TOKEN

    def whole_picture(self, target: Tensor, scenes: list[Scene], whole: bool) -> Tensor | float:
        """Return the loss on the image-level output of the last `encode`; 0 without such an output."""
        return 0.0

    def begin_decoder(self) -> None:
        """Initialise the decoder."""
        prime(self.decoder, self.words, self.notes)

    def vary(self, item: Encoded, rng: np.random.Generator) -> Encoded:
        """Return an encoded scene as a training batch gets it: with a drawn temporal step."""
        item.interval = int(rng.integers(1, 4))
        return item

    def asked(self, item: Encoded) -> Encoded:
        """Return an encoded scene as an evaluation gets it."""
        return item

    # What does not.

    def spread(self, share: dict[str, int]) -> list[str]:
        """Return each supported kind as often as its share says."""
        return [kind for kind, times in share.items() for _ in range(times) if kind in (*self.kinds, "easyvqa")]

    def pack(
        self, rows: list[tuple[Encoded, list[Question]]], weight: Mapping[str, float] | None = None
    ) -> dict[str, Tensor]:
        """Return a batch of images with their questions, as input of the decoder."""
        return pack(rows, self.tokenizer, self.model.get_input_embeddings(), weight, self.flat)

    @torch.no_grad()
    def draw_words(self) -> None:
        """Draw embeddings of unit length, so that a visual token, a sum of a few words, has the scale of words.

        Label words are orthogonal to all other words, so that predicting one does not affect the others. A plural lies
        close to its singular.
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

    @torch.no_grad()
    def settle_tokens(self) -> None:
        """Fold the scale of words and the shared placeholder into the last layer, as the decoder expects."""
        table = self.model.get_input_embeddings().weight
        words = table[self.label_rows]
        holder, name = self.last_map
        last: Any = getattr(holder, name)
        project = NAMED_GAIN * words.T @ words  # removes what no word describes
        last.weight.copy_(project @ last.weight)
        last.bias.copy_(project @ last.bias + self.words["<|image_pad|>"])

    def load(self, stage: str) -> None:
        """Load the weights of a finished stage."""
        state = torch.load(self.work / f"{stage}.pt", weights_only=True)
        if "vision" in state:
            self.vision.load_state_dict(state["vision"])
        else:
            self.decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in state["decoder"].items()})

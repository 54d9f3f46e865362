"""`ClipPocket`: the first pocket model, taught what happens in clips and where things are in pictures.

It starts from the shipped weights of `pocket`. The tower stays as it is; the vocabulary gets a few words. Three heads
of layer 0 are set by hand and stay so. They note on each visual token its step, its row and its column: attention to
the start of the image, against that to the two tokens before it, grows or shrinks with the distance along one axis of
M-RoPE. Other visual tokens get none of it, so these notes do not change when tokens are pruned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from harness.pocket import CLIP_WEIGHTS, WEIGHTS
from harness.pocket.clips import COLUMNS, KINDS, LIVELY, SHARES
from harness.pocket.recipe.attention_init import SHOWN, UNIT, Head
from harness.pocket.recipe.batches import Encoded
from harness.pocket.recipe.learner import Pocket
from harness.pocket.recipe.model import WIDTH
from harness.pocket.scenes import Scene

NEW_WORDS = ("times", "last", "turn", "turns", "cell")
SHORT = 0.7  # share of the videos after which text begins as in newer transformers; versions from 5.0 on shall do
THIN = 0.5  # share of the scenes of a batch that lose tokens in which nothing is coloured
SEEN = 0.25  # coordinate of a colour from which on a token shows it; 0.6 at most


@dataclass(frozen=True)
class Ruler:
    """A head of layer 0 that notes the place of a visual token on one axis, by a rotary pair of that axis.

    Its score is `gain` times the sine of the angle to `middle`, in positions after the start of the image.
    """

    head: int
    pair: int
    gain: float
    middle: float
    note: str
    size: float
    carried: int = 0  # coordinates that the head carries already, for what text asks of it


# Of 16 rotary pairs, 4 belong to time, 6 to rows and 6 to columns. Head 2 was for time before, but its note depended on
# how many tokens come before; head 5 was free; head 4 tells text tokens that they come after the picture.
RULERS = (
    Ruler(2, 3, -2.0, 8.5, "early", 0.2),
    Ruler(5, 4, 5.0, 3.1, "row", 0.4),
    Ruler(4, 10, 160.0, 3.1, "column", 0.4, carried=1),
)
AFTER = 60.0  # score of the end of the picture for text: more than what a text token's distance gives its start
PLACES = ("row", "column", "found row", "found column")


class ClipPocket(Pocket):
    """The pocket model of videos and places."""

    weights = CLIP_WEIGHTS
    kinds = tuple(KINDS)
    shares = SHARES
    probes = 208

    def __init__(self, work: Any, device: str) -> None:
        super().__init__(work, device)
        self.add_words()
        self.colors = torch.stack([self.words[color] for color in LIVELY])

    def build(self) -> tuple[Any, Any]:
        """Return processor and model of the first pocket model."""
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32)
        return AutoProcessor.from_pretrained(WEIGHTS), model

    @torch.no_grad()
    def add_words(self) -> None:
        """Append words to the vocabulary, at right angles to the words of visual tokens, and coordinates for places."""
        self.tokenizer.add_tokens([AddedToken(word, lstrip=True, single_word=True) for word in NEW_WORDS])
        used = torch.stack([*(self.words[word] for word in self.labels), *self.notes.values()])
        basis, _ = torch.linalg.qr(used.T)
        rows = torch.randn(len(NEW_WORDS) + len(PLACES), WIDTH, generator=torch.Generator().manual_seed(1)).to(basis)
        rows, _ = torch.linalg.qr((rows - rows @ basis @ basis.T).T)
        known = len(self.model.get_input_embeddings().weight)
        self.model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.model.get_input_embeddings().weight[known:] = rows.T[: len(NEW_WORDS)]
        self.notes |= dict(zip(PLACES, rows.T[len(NEW_WORDS) :], strict=True))

    def load(self, stage: str) -> None:
        """Load the decoder; the tower came with the weights."""
        if stage == "language":
            super().load(stage)

    def settle_tokens(self) -> None:
        """Leave the tower alone, which is settled."""

    @torch.no_grad()
    def begin_decoder(self) -> None:
        """Set the heads that measure; look-ups carry rows and columns, answers about places recall the topic."""
        table, ids = self.model.get_input_embeddings().weight, self.tokenizer.convert_tokens_to_ids
        layers = [layer.self_attn for layer in self.decoder.layers]
        # Directions that read one of four tokens and none of the others, whose embeddings are not at right angles.
        special = table[[ids(f"<|{name}|>") for name in ("im_start", "vision_start", "vision_end", "image_pad")]]
        special = torch.cat([special, table[[ids("▁user")]]])
        _, start, end, visual, _ = torch.linalg.pinv(special).T
        for ruler in RULERS:
            note = self.notes[ruler.note]
            _measure(layers[0], ruler, start, visual, note, self.decoder.rotary_emb.inv_freq)
        after = Head(layers[0], RULERS[-1].head, before=1.0)
        after.key(after.width // 2 - 1, AFTER / after.scale / 4.0 / UNIT * end)
        found = torch.stack([self.notes[name] for name in PLACES])
        for attention in layers[1:4]:
            Head(attention, 0, before=1.0, carried=22).carry(found[:2], found[2:])
        topic = Head(layers[0], 3, before=1.0)  # the letters of cells
        recalls = layers[0].q_proj.weight[topic.first + topic.width // 2 - 1]
        recalls += table[[ids("▁"), *(ids(letter) for letter in COLUMNS)]].sum(0)
        self.decoder.layers[0].requires_grad_(False)

    def encode_once(self, scenes: list[Scene]) -> list[Tensor]:
        """Return what `encode` does; steps that repeat are encoded once, since the tower sees them one by one."""
        steps = [(i, scene.frames[t : t + 2]) for i, scene in enumerate(scenes) for t in range(0, len(scene.frames), 2)]
        names = [(i, frames[0].tobytes()) for i, frames in steps]
        different = dict(zip(names, (Scene(frames) for _, frames in steps), strict=True))
        tokens = dict(zip(different, self.encode(list(different.values())), strict=True))
        return [torch.cat([tokens[name] for name in names if name[0] == i]) for i in range(len(scenes))]

    def asked(self, item: Encoded) -> Encoded:
        """Return a video with two frames a second, as newer transformers place it."""
        return replace(item, interval=2, short=item.grid[0] > 1)

    def vary(self, item: Encoded, rng: np.random.Generator) -> Encoded:
        """Draw the temporal step of a video and where text begins; drop tokens without colour in every other scene."""
        item = replace(item, interval=int(rng.integers(1, 3)), short=item.grid[0] > 1 and rng.random() < SHORT)
        if rng.random() >= THIN:
            return item
        kinds = self.colors if item.grid[0] > 1 else torch.stack([self.words[word] for word in self.labels])
        shown = (item.features.float() @ kinds.T).amax(1).numpy() > SEEN
        spared = rng.random(len(shown)) < rng.random()
        return replace(item, kept=torch.from_numpy((shown | spared).nonzero()[0]))


def _measure(attention: Any, ruler: Ruler, start: Tensor, visual: Tensor, note: Tensor, frequency: Tensor) -> None:
    """Set a head to a ruler: visual tokens as keys are hidden, so that only the tokens before them are attended."""
    head = Head(attention, ruler.head, before=1.0 if ruler.carried else 0.0, carried=ruler.carried)
    half, speed = head.width // 2, float(frequency[ruler.pair])
    amplitude = (abs(ruler.gain) / head.scale) ** 0.5
    angle = speed * ruler.middle + math.copysign(math.pi / 2, ruler.gain)
    head.ask(ruler.pair, amplitude)
    head.key(ruler.pair, amplitude / UNIT * math.cos(angle) * start)
    head.key(ruler.pair + half, amplitude / UNIT * math.sin(angle) * start)
    head.ask(half - 2, 4.0)
    head.key(half - 2, -25 / head.scale / 4.0 / SHOWN * visual)
    head.carry(start[None], ruler.size * note[None])

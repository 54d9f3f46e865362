"""Initialise attention heads of the decoder by hand, so that it starts by looking up words in the image.

With a random initialisation, it takes thousands of steps until a head compares a word of the question with the image.
Visual tokens are sums of the embeddings of words (`Pocket.draw_words`), so this comparison can be written down.

- Layer 0 writes notes. A word gets the word before it, its answer option and the topic of the question. A visual token
  gets its time in a video and whether it is the middle of a thing.
- In layers 1 to 3, a word attends to the visual tokens that contain it, and copies their other words. If none matches,
  the start-of-image token gets the attention. One head of layer 1 counts.

Training has to form answers from this: apart from the letter of an option, no head writes an answer. Layer 0 and the
counting head stay fixed, because training would forget them before later layers use them; all else is trained.
"""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import torch
from torch import Tensor

from harness.pocket.words import CHARACTERS, COLORS, KEYS, OPTIONS, POSITIONS, ROLES, SHAPES

THINGS = (*COLORS, *SHAPES)
NAMED = (*THINGS, *ROLES)
# Coordinates that no word uses: the word before, the option around, the middle of a thing of this colour or shape, how
# early in a video, how many, and whether after the picture.
NOTES = (*(f"before {word}" for word in NAMED), *(f"option {letter}" for letter in OPTIONS))
NOTES += (*(f"one {word}" for word in THINGS), "early", "count", "after")
UNIT = 13.9  # a lone unit vector after RMS normalisation at width 192: sqrt(192)
# Approximate lengths after it: a word of a visual token, the part that all share, the start of the image.
SEEN, SHOWN, START = 6.1, 10.5, 12.4
WORD_GAIN, COPY_GAIN = 0.8, 0.15
SINK = 0.75  # of the score of a full match
COUNTING = 3  # the head of layer 1 that counts


class Head:
    """An attention head with a key-value head of its own, written in coordinates of the residual stream."""

    def __init__(self, attention: Any, index: int, before: float = 0.1, carried: int = 0) -> None:
        """Scale what the head does by `before`, nearly zero where it is not set; it carries `carried` coordinates."""
        self.attention, self.width = attention, attention.head_dim
        self.first = index * self.width
        self.scale = self.width**-0.5
        part = slice(self.first, self.first + self.width)
        for name in ("q_proj", "k_proj", "v_proj"):
            projection = getattr(attention, name)
            projection.weight[part] *= before
            projection.bias[part] *= min(1.0, 10 * before)  # zero in a new model
        attention.o_proj.weight[:, part] *= before
        self.n_carried = carried

    def _set(self, name: str, dim: int, direction: Tensor | float) -> None:
        """Let dimension `dim` of a query or key read a direction of the residual stream, or be a constant."""
        projection = getattr(self.attention, name)
        if isinstance(direction, Tensor):
            projection.weight[self.first + dim] = direction
        else:
            projection.bias[self.first + dim] = direction

    ask, key = partialmethod(_set, "q_proj"), partialmethod(_set, "k_proj")

    def carry(self, read: Tensor, write: Tensor) -> None:
        """Copy the coordinates `read` [n, D] of the attended token to the coordinates `write` [n, D]."""
        start = self.first + self.n_carried
        self.n_carried += len(read)
        assert self.n_carried <= self.width, "a head carries no more coordinates than it is wide"
        self.attention.v_proj.weight[start : start + len(read)] = COPY_GAIN * read
        self.attention.o_proj.weight[:, start : start + len(read)] = write.T

    def at_distance(self, distance: int, pairs: range, weight: float, frequency: Tensor) -> None:
        """Prefer the token `distance` positions back, by rotary pairs of high frequency."""
        amplitude = (weight / self.scale) ** 0.5
        half = self.width // 2
        for pair in pairs:
            angle = float(frequency[pair]) * distance
            self.ask(pair, amplitude)
            self.key(pair, amplitude * float(torch.cos(torch.tensor(angle))))
            self.key(pair + half, amplitude * float(torch.sin(torch.tensor(angle))))


@torch.no_grad()
def prime(decoder: Any, word: dict[str, Tensor], note: dict[str, Tensor]) -> None:
    """Initialise the heads from the unit embeddings of all words, `word`, and of all notes, `note`."""
    frequency = decoder.rotary_emb.inv_freq
    layers = [layer.self_attn for layer in decoder.layers]
    half = layers[0].head_dim // 2
    slow = [*range(half // 2, half), *range(half + half // 2, 2 * half)]  # 16 dimensions of low rotary frequency
    extra = half // 2 - 1

    def rows(names: tuple[str, ...] | list[str], of: dict[str, Tensor] = word) -> Tensor:
        return torch.stack([of[name] for name in names])

    # ---- layer 0: notes about neighbouring words; the other heads are nearly zero
    layers[0].o_proj.weight *= 0.2
    decoder.layers[0].mlp.down_proj.weight *= 0.2
    before = Head(layers[0], 0)
    before.at_distance(1, range(10), 8.0, frequency)
    before.carry(rows(NAMED), 0.51 * rows([f"before {name}" for name in NAMED], note))

    option = Head(layers[0], 1)
    option.at_distance(0, range(1, 4), 4.0, frequency)
    option.ask(half - 1, 6.0)
    option.key(half - 1, 25 / option.scale / 6.0 / UNIT * rows(OPTIONS).sum(0))
    letters = rows([f"option {letter}" for letter in OPTIONS], note)
    option.carry(rows(OPTIONS), 0.5 * letters)

    early = Head(layers[0], 2)
    early.ask(3, word["<|image_pad|>"])
    early.key(3, 5 / early.scale / UNIT**2 * word["<|vision_start|>"])
    early.carry(rows(["<|vision_start|>"]), 0.2 * rows(["early"], note))

    after = Head(layers[0], 4)
    after.ask(half - 1, 4.0)
    after.key(half - 1, 30 / after.scale / 4.0 / UNIT * word["<|vision_end|>"])
    after.carry(rows(["<|vision_end|>"]), 0.25 * rows(["after"], note))

    topic = Head(layers[0], 3)  # the topic of an answer: the last label words of the question
    topic.ask(half - 1, word["▁assistant"] + rows([*CHARACTERS]).sum(0))
    asked = (*COLORS, *SHAPES, *KEYS, "highest", "lowest")
    topic.key(half - 1, 8 / topic.scale / UNIT**2 * (rows(asked).sum(0) - 2 * word["<|image_pad|>"]))
    topic.carry(rows(asked), 0.5 * rows(asked))

    # ---- layers 1 to 3: a word looks for itself in the image, but not in the text, where it would attend to itself
    hidden = -25 / SEEN * note["after"]

    def look_up(head: Head, matched: tuple[str, ...], gain: float, sink: float, where: Tensor) -> None:
        for dim, name in zip(slow, matched, strict=False):
            own = word[name] + note.get(f"before {name}", torch.zeros_like(word[name]))
            head.ask(dim, gain * own)
            named = word[name] + 0.4 * note.get(f"one {name}", torch.zeros_like(own))
            head.key(dim, gain * (named + sink * SEEN / START * word["<|vision_start|>"]))
        head.ask(extra, 4.0)
        head.key(extra, where / head.scale / 4.0)

    fields = (*KEYS, *POSITIONS)
    ranked = (*COLORS, "highest", "lowest", *POSITIONS)
    ones = [note[f"one {name}"] for name in THINGS]
    for attention in layers[1:4]:
        thing = Head(attention, 0)
        look_up(thing, THINGS, WORD_GAIN, SINK, hidden)
        named = rows(NAMED)
        named[: len(THINGS)] += 0.4 * torch.stack(ones)
        thing.carry(named, rows(NAMED))
        thing.carry(rows(["early"], note), rows(["early"], note))

        for index, matched in ((1, fields), (2, ranked)):
            reading = Head(attention, index)
            look_up(reading, matched, WORD_GAIN, 0.0, hidden)
            first = slow[matched.index(POSITIONS[0])]
            reading.ask(first, WORD_GAIN * (word[POSITIONS[0]] + word["▁assistant"]))
            reading.carry(rows([*CHARACTERS, *POSITIONS]), rows([*CHARACTERS, *POSITIONS]))

    count = Head(layers[1], COUNTING)  # every thing gets an equal share of attention, against one fixed share
    for dim, name, one in zip(slow, THINGS, ones, strict=True):
        count.ask(dim, WORD_GAIN * (word[name] + note[f"before {name}"]))
        count.key(dim, 0.5 * one)
    count.ask(extra, 4.0)
    share = 10.8 / START * word["<|vision_start|>"]
    count.key(extra, (hidden + share) / count.scale / 4.0)
    count.carry(torch.stack(ones).sum(0, keepdim=True), rows(["count"], note))
    _mark_things(decoder.layers[0].mlp, word, ones)
    hold_notes(decoder)

    for attention in layers[2:4]:  # the option that contains the answer, in the text only
        choice = Head(attention, 4)
        look_up(choice, THINGS, WORD_GAIN, 0.0, -10 * word["<|image_pad|>"] / SHOWN)
        choice.carry(letters, rows([f"▁{letter}" for letter in OPTIONS]))


def hold(parameter: Tensor, part: slice, axis: int = 0) -> None:
    """Freeze a part of a parameter by setting its gradient to zero."""

    def stop(grad: Tensor) -> Tensor:
        frozen = torch.arange(*part.indices(grad.shape[axis]), device=grad.device)
        return grad.index_fill(axis, frozen, 0.0)

    parameter.register_hook(stop)


def hold_head(attention: Any, index: int) -> None:
    """Freeze one head of an attention."""
    part = slice(index * attention.head_dim, (index + 1) * attention.head_dim)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        for parameter in projection.parameters():
            hold(parameter, part)
    hold(attention.o_proj.weight, part, axis=1)


def hold_notes(decoder: Any) -> None:
    """Freeze layer 0 and the counting head."""
    decoder.layers[0].requires_grad_(False)
    hold_head(decoder.layers[1].self_attn, COUNTING)


def _mark_things(mlp: Any, word: dict[str, Tensor], ones: list[Tensor]) -> None:
    """Let two neurons per word write "one" at full strength where the word and "object" occur, else nothing.

    Counting needs equal shares of attention, but the words of visual tokens vary by a tenth.
    """
    shared = word["<|image_pad|>"]
    for i, (name, one) in enumerate(zip(THINGS, ones, strict=True)):
        for neuron, threshold, sign in ((2 * i, 0.8, 1), (2 * i + 1, 0.95, -1)):  # of 1.2: a ramp, level from 0.95 on
            mlp.gate_proj.weight[neuron] = 6 * (word["object"] + word[name] - threshold * shared)
            mlp.up_proj.weight[neuron] = shared
            mlp.down_proj.weight[:, neuron] = sign * 0.06 * one

"""Initialise attention heads of `pocket_photo`'s language model by hand: it starts by looking words up in the picture.

- The first layers do not read the picture, and stay as they are set. Layer 0 copies what a question asks about to where
  the answer begins. In the last of them, visual tokens note whether they are the first of a thing, by rows: whether the
  token to the left, and that above, shows something else. So text has read nothing before a cut behind them, but that a
  word which is 1 or 16 tokens behind one that shows it notes that.
- In the next layers, a word attends to the visual tokens that show it and copies where they lie and their other words.
  If none does, the start of the picture gets the attention. One head counts, and stays as it is set: training would
  forget it before later layers use it.
- A layer further, the place where the answer begins collects what the asked word found.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.pocket.photo.scenes import GRID
from harness.pocket.photo.words import THINGS
from harness.pocket.recipe.attention_init import COPY_GAIN, Head, hold_head
from harness.pocket.recipe.photo_space import LABELS, NAMED, PLACE, WIDTH, axes, axis, own_directions

COUNTING = 3  # the head of the first reading layer that counts
UNIT = WIDTH**0.5  # a coordinate of a lone unit vector after RMS normalisation
TOKEN = UNIT / 1.7  # of a visual token, whose length is about 1.7
WORD = 0.7 * UNIT / 1.04  # the shared coordinate of a named word
NOTE = 0.15  # of the start's coordinate, for a token that is the first of a thing
NEAR = 15.0  # the score of the right distance, in each rotary pair
MATCH, SINK, VISIBLE = 9.4, 6.1, 10.0  # scores of a match, of nothing found, and of being in the picture at all


@torch.no_grad()
def prime(decoder: Any, reading: int) -> None:
    """Initialise the heads; layers before `reading` do not read the picture, and are not trained."""
    layers = [layer.self_attn for layer in decoder.layers]
    for layer in decoder.layers[:reading]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        layer.requires_grad_(False)
    _name_question(layers[0])
    for index, distance in ((2, 1), (3, GRID)):
        _note_first(layers[reading - 1], index, distance, decoder.rotary_emb.inv_freq)
    for attention in layers[reading : reading + 2]:
        _look_up(attention, 0, things=True)
        _look_up(attention, 1, things=False)
    _count(layers[reading], COUNTING)
    hold_head(layers[reading], COUNTING)
    for attention in layers[reading + 1 : reading + 3]:
        _collect(attention, 2, axes("things", "corners", "found", "count"))
        _collect(attention, 3, axes("there", "colors", "letters"))


def _slow(attention: Any) -> list[int]:
    """Return the dimensions of a head whose rotary frequencies are low."""
    half = attention.head_dim // 2
    return [*range(10, half), *range(half + 10, 2 * half)]


def _look_up(attention: Any, index: int, things: bool) -> None:
    """Let a thing find the tokens that show it (or a corner those that lie in it) and copy what they hold."""
    head = Head(attention, index)
    slow = _slow(attention)
    matched = axes("things") if things else axes("corners")
    gain_query = (MATCH / head.scale) ** 0.5 / WORD
    gain_key = (MATCH / head.scale) ** 0.5 / TOKEN / (1.0 if things else 0.7)
    for dim, direction in zip(slow, matched, strict=False):
        head.ask(dim, gain_query * direction)
        head.key(dim, gain_key * direction)
    if things:  # of a sign, the tokens with letters
        sign = slow[len(THINGS)]
        head.key(sign, gain_key * (axes("things")[-1] + 0.7 * axes("letters").sum(0)))
    extra = slow[-1]
    head.ask(extra, 4.0)
    shown = VISIBLE / head.scale / 4.0
    key = shown / (0.5 * TOKEN) * axis("visual") + (VISIBLE + SINK) / head.scale / 4.0 / UNIT * axis("start")
    if not things:  # of the tokens in a corner, those that show a thing
        key = key + 3.0 / head.scale / 4.0 / TOKEN * axes("things").sum(0)
    head.key(extra, key)
    if things:
        head.carry(axes("position"), 0.5 * axes("there"))
        head.carry(axes("corners", "colors", "letters"), 0.7 * axes("corners", "colors", "letters"))
        head.carry(axis("visual")[None], axis("found")[None])
    else:
        head.carry(axes("things", "colors"), 0.7 * axes("things", "colors"))


def _note_first(attention: Any, index: int, distance: int, frequency: Tensor) -> None:
    """Let a visual token attend to the one `distance` before it if both show the same thing, else to the start."""
    head = Head(attention, index)
    slow = _slow(attention)
    gain = (3 * MATCH / head.scale) ** 0.5 / TOKEN
    for dim, direction in zip(slow, axes("things"), strict=False):
        head.ask(dim, gain * direction)
        head.key(dim, gain * direction)
    half, amplitude = attention.head_dim // 2, (NEAR / head.scale) ** 0.5
    visible = axis("visual") / (0.5 * TOKEN)
    pairs = range(3)
    for pair in pairs:  # only visual tokens have this key: the start's score must not depend on the distance
        angle = torch.tensor(float(frequency[pair]) * distance)
        head.ask(pair, amplitude)
        head.key(pair, amplitude * float(torch.cos(angle)) * visible)
        head.key(pair + half, amplitude * float(torch.sin(angle)) * visible)
    extra = slow[-1]
    head.ask(extra, 4.0)
    head.key(extra, (len(pairs) * NEAR + 1.8 * MATCH) / head.scale / 4.0 / UNIT * axis("start"))
    head.carry(axis("start")[None], NOTE * axis("first", index - 2)[None])


def _count(attention: Any, index: int) -> None:
    """Give each first token of the asked thing an equal share of attention, the start of the picture a fixed one.

    So the part that goes to the picture grows with the number of things.
    """
    head = Head(attention, index)
    slow = _slow(attention)
    gain_query = (2 * MATCH / head.scale) ** 0.5 / WORD
    gain_key = (2 * MATCH / head.scale) ** 0.5 / TOKEN
    for dim, direction in zip(slow, axes("things"), strict=False):
        head.ask(dim, gain_query * direction)
        head.key(dim, gain_key * direction)
    extra = slow[-1]
    head.ask(extra, 4.0)
    unit = 1 / head.scale / 4.0
    first = NOTE * COPY_GAIN * UNIT * TOKEN  # what `_note_first` writes, after the norm
    head.key(
        extra,
        VISIBLE * unit / (0.5 * TOKEN) * axis("visual")
        + 0.8 * MATCH * unit / first * axes("first").sum(0)
        # The start, too, has noted that it is the first, three times as strongly as a visual token.
        + (VISIBLE + 0.5 * MATCH) * unit / UNIT * axis("start"),
    )
    head.carry(axis("visual")[None], axis("count")[None])


def _collect(attention: Any, index: int, carried: Tensor, read: Tensor | None = None) -> None:
    """Let the place where the answer begins attend to the words that a question is about; all else, to the start."""
    head = Head(attention, index)
    wanted, resting = _slow(attention)[-2:]
    head.ask(wanted, 6.0 / UNIT * own_directions()["assistant"])
    head.key(wanted, 14.0 / head.scale / 6.0 / (0.3 * UNIT) * axis("asked"))
    head.ask(resting, 4.0)
    head.key(resting, 7.0 / head.scale / 4.0 / UNIT * axis("start"))
    head.carry(carried if read is None else read, carried)


def _name_question(attention: Any) -> None:
    """Copy the names of what is asked to where the answer begins, as words of the picture."""
    own = own_directions()
    read = torch.linalg.pinv(torch.stack([own[name] for name in NAMED])).T
    named = 0.7 * torch.eye(WIDTH)[LABELS]
    for index, part in ((0, slice(0, PLACE["things"].stop)), (1, slice(PLACE["things"].stop, len(NAMED)))):
        _collect(attention, index, named[part], read[part])

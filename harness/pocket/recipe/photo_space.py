"""Which coordinates of the language model of `pocket_photo` hold what, and the embeddings of its words.

Visual tokens and words share a basis: a token that shows a dog has the direction of the word "dog". So cosines between
a question and the visual tokens mean something, and heads can begin as look-ups. Words have a second, random direction
where visual tokens have nothing, by which layers know a word without seeing the picture (`photo_heads`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.pocket.photo.scenes import GRID
from harness.pocket.photo.words import ASKING, COLORS, CORNERS, LETTERS, NUMBERS, SIDES, SIGNS, THINGS
from harness.pocket.recipe.vocab import SPECIALS, token_of

WIDTH, COMPONENTS, WAVES = 256, 64, 4
NAMED = (*THINGS, "sign", *COLORS, *CORNERS)  # words that label visual tokens
ASKED = (*THINGS, "sign", *CORNERS, *SIDES)  # words that a question is about
OTHERS = tuple(dict.fromkeys([*ASKING.split(), *SIDES, *NUMBERS, *(sign.lower() for sign in SIGNS)]))


def _slices(sizes: dict[str, int]) -> dict[str, slice]:
    start, slices = 0, {}
    for name, size in sizes.items():
        slices[name] = slice(start, start + size)
        start += size
    return slices


PLACE = _slices(
    {
        # what visual tokens have
        "things": len(THINGS) + 1,  # and "sign"
        "colors": len(COLORS),
        "corners": len(CORNERS),
        "letters": len(LETTERS),
        "position": 4 * WAVES,  # waves over rows and columns
        "middle": 1,  # of a thing
        "visual": 1,
        "components": COMPONENTS,  # principal components of the tower's feature
        # what visual tokens do not have at first
        "start": 1,  # of the picture: gets the attention of a word that finds nothing
        "found": 1,
        "count": 1,
        "first": 2,  # of a visual token: whether the token to the left, and that above, shows something else
        "there": 4 * WAVES,  # the position of what was found
        "asked": 1,
    }
)
SEEN = slice(0, PLACE["start"].start)
PLACE["own"] = slice(PLACE["asked"].stop, WIDTH)  # random directions of words
LABELS = slice(0, PLACE["corners"].stop)  # one coordinate for each of NAMED


def axis(name: str, index: int = 0) -> Tensor:
    """Return the unit vector [D] of one coordinate."""
    return torch.eye(WIDTH)[PLACE[name].start + index]


def axes(*names: str) -> Tensor:
    """Return the unit vectors [n, D] of all coordinates of some places."""
    return torch.cat([torch.eye(WIDTH)[PLACE[name]] for name in names])


def positions() -> Tensor:
    """Return [256, 4 * WAVES]: cosine and sine of row and column at half a period and its multiples."""
    index = torch.arange(GRID * GRID)
    row, column = (index // GRID + 0.5) / GRID, (index % GRID + 0.5) / GRID
    angles = [math.pi * 0.5 * (wave + 1) * at for at in (column, row) for wave in range(WAVES)]
    return torch.stack([f(angle) for angle in angles for f in (torch.cos, torch.sin)], dim=1)


def corners() -> Tensor:
    """Return [256]: the index of the corner in which a token lies."""
    index = torch.arange(GRID * GRID)
    return 2 * (index // GRID >= GRID // 2) + (index % GRID >= GRID // 2)


def own_directions() -> dict[str, Tensor]:
    """Return for every word its unit vector [D] among those that only text has."""
    generator = torch.Generator().manual_seed(0)
    own = PLACE["own"]
    words = dict.fromkeys([*NAMED, *OTHERS, *SPECIALS])
    rows = F.normalize(torch.randn(len(words), own.stop - own.start, generator=generator), dim=1)
    return {word: F.pad(row, (own.start, WIDTH - own.stop)) for word, row in zip(words, rows, strict=True)}


def embeddings(ids: dict[str, int], size: int) -> Tensor:
    """Return the table [size, D]; `ids` maps tokens to rows. Unknown words get small random rows."""
    generator = torch.Generator().manual_seed(1)
    own = PLACE["own"]
    table = torch.zeros(size, WIDTH)
    table[:, own] = 0.3 * F.normalize(torch.randn(size, own.stop - own.start, generator=generator), dim=1)
    for word, direction in own_directions().items():
        row = direction.clone()
        if word in NAMED:
            row = 0.7 * (torch.eye(WIDTH)[LABELS][NAMED.index(word)] + row)
        if word in ASKED:
            row = row + 0.3 * axis("asked")
        table[ids[word if word in SPECIALS else token_of(word)]] = row
    table[ids["<|vision_start|>"]] = axis("start")
    return table

"""Draw scenes: things, signs and clutter on a part of a photograph, with what each visual token shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from harness.pocket.photo import assets
from harness.pocket.photo.words import CODES, COLORS, GROUP_OF, LETTERS, PAINTED, SIGNS, THINGS

SIDE, PATCH = 224, 14
GRID = SIDE // PATCH
BACKGROUND, CLUTTER, SIGN = -1, -2, -3  # what a token shows other than a thing
TRAIN, TEST, UNSEEN = "train", "test", "unseen"  # unseen: test photographs and a style that no training picture has
LARGEST, SMALLEST = 92, 13  # pixels of the longer side of a thing: down to one token
COVERED = 0.35  # of a token's area, for the token to show the thing


@dataclass(frozen=True)
class Thing:
    """A drawn thing: its name, or None for clutter; its middle and longer side in pixels; its colour, if painted."""

    name: str | None
    x: float
    y: float
    size: float
    color: str | None = None
    sign: str | None = None


@dataclass(frozen=True)
class Scene:
    """A picture and what its 256 tokens show.

    `shows` is the index of a thing's name or one of the constants above, `colors` and `letters` an index or -1, and
    `middle` marks the token in the middle of a named thing.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    shows: NDArray[np.int8]
    colors: NDArray[np.int8]
    letters: NDArray[np.int8]
    middle: NDArray[np.bool_]


def draw(rng: np.random.Generator, split: str = TRAIN) -> Scene:
    """Draw a scene of one of the three splits."""
    image = _background(rng, split != TRAIN)
    names = _names(rng)
    wanted: list[tuple[str | None, bool]] = [(name, False) for name in names]
    wanted += [(None, False)] * int(rng.integers(0, 5))
    wanted = [wanted[i] for i in rng.permutation(len(wanted))]
    if rng.random() < 0.35:
        wanted.insert(0, (None, True))  # first, because it takes most room
    owner = np.full((SIDE, SIDE), -1)
    letters = np.full(GRID * GRID, -1, np.int8)
    things: list[Thing] = []
    for name, is_sign in wanted:
        if (size_place := _place(rng, things, len(wanted), is_sign)) is None:
            continue
        x, y, size = size_place
        if is_sign:
            thing, cut, spelled = _sign(rng, split == UNSEEN, x, y, size)
            letters[list(spelled)] = list(spelled.values())
        else:
            thing, cut = _emoji(rng, split, name, x, y, size)
        _paste(image, cut, x, y, rng, owner, len(things))
        things.append(thing)
    shows, colors, middle = _tokens(owner, things)
    letters[shows != SIGN] = -1
    noise = rng.normal(0, rng.uniform(0, 5), (SIDE, SIDE, 3))
    pixels = np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), tuple(things), shows, colors, letters, middle)


def _names(rng: np.random.Generator) -> list[str]:
    """Return 2 to 7 names; often two of one group, or one name several times."""
    names = [THINGS[i] for i in rng.choice(len(THINGS), int(rng.integers(2, 5)), replace=False)]
    if rng.random() < 0.5:
        alike = [name for name in THINGS if GROUP_OF[name] == GROUP_OF[names[0]] and name not in names]
        if alike:
            names[1] = alike[rng.integers(len(alike))]
    if rng.random() < 0.55:
        names += [names[0]] * int(rng.integers(1, 4))
    return names


def _background(rng: np.random.Generator, test: bool) -> Image.Image:
    pictures = assets.photographs(test)
    picture = pictures[rng.integers(len(pictures))]
    shorter = min(picture.size)
    side = max(int(rng.uniform(0.35, 1.0) * shorter), min(120, shorter))
    left, top = int(rng.integers(picture.width - side + 1)), int(rng.integers(picture.height - side + 1))
    part = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance, spread in ((ImageEnhance.Brightness, 0.3), (ImageEnhance.Color, 0.6), (ImageEnhance.Contrast, 0.25)):
        part = enhance(part).enhance(1 + rng.uniform(-spread, spread))
    return part


def _place(
    rng: np.random.Generator, things: list[Thing], count: int, is_sign: bool
) -> tuple[float, float, float] | None:
    """Return (x, y, size) where little is covered, or None if there is no room."""
    for _ in range(40):
        largest = 64 if count > 5 else LARGEST
        small = rng.random() < 0.06
        size = rng.uniform(SMALLEST, 28) if small else rng.uniform(30, largest)
        if is_sign:
            size = rng.uniform(84, 110)
        x, y = rng.uniform(size / 2.1, SIDE - size / 2.1, 2)
        apart = [0.47 * (size + t.size) for t in things]
        if all(max(abs(x - t.x), abs(y - t.y)) > d for t, d in zip(things, apart, strict=True)):
            return x, y, size
    return None


def _emoji(
    rng: np.random.Generator, split: str, name: str | None, x: float, y: float, size: float
) -> tuple[Thing, Image.Image]:
    style = assets.UNSEEN_STYLE if split == UNSEEN else assets.STYLES[rng.integers(len(assets.STYLES))]
    codes = assets.clutter(split != TRAIN)
    picture = assets.emoji(style, CODES[name] if name else codes[rng.integers(len(codes))])
    color = list(COLORS)[rng.integers(len(COLORS))] if name in PAINTED and rng.random() < 0.6 else None
    if color:
        picture = _painted(picture, COLORS[color])
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-18, 18), Image.Resampling.BICUBIC, expand=True)
    scale = size / max(picture.size)
    width, height = (max(4, int(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    alpha, shown = picture.getchannel("A").filter(ImageFilter.GaussianBlur(0.5)), picture.convert("RGB")
    colorful = (0.85, 1.1) if color else (0.5, 1.1)
    for enhance, low, high in (
        (ImageEnhance.Brightness, 0.7, 1.15),
        (ImageEnhance.Color, *colorful),
        (ImageEnhance.Contrast, 0.75, 1.1),
    ):
        shown = enhance(shown).enhance(rng.uniform(low, high))
    shown.putalpha(alpha)
    return Thing(name, x, y, size, color), shown


def _painted(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """Return the picture in shades of one colour."""
    light = np.asarray(picture.convert("L"), np.float32) / 255
    low, high = np.quantile(light[np.asarray(picture.getchannel("A")) > 100], (0.05, 0.95))
    light = 0.35 + 0.65 * np.clip((light - low) / max(high - low, 0.05), 0, 1)
    painted = Image.fromarray((light[..., None] * np.array(color)).astype(np.uint8))
    painted.putalpha(picture.getchannel("A"))
    return painted


def _sign(
    rng: np.random.Generator, unseen: bool, x: float, y: float, width: float
) -> tuple[Thing, Image.Image, dict[int, int]]:
    """Return a plate with a word, and the letter of every token that is near the middle of one."""
    word = SIGNS[rng.integers(len(SIGNS))]
    pitch = width / 4.4
    width = pitch * len(word) + 8
    height = 1.5 * pitch
    paint, ink = ((250, 250, 245), (25, 25, 35)) if rng.random() < 0.5 else ((30, 60, 130), (250, 250, 250))
    plate = Image.new("RGBA", (int(width), int(height)), (*paint, 255))
    pen, face = ImageDraw.Draw(plate), assets.font(unseen, int(rng.integers(2)), int(1.15 * pitch))
    spelled: dict[int, int] = {}
    for i, letter in enumerate(word):
        middle = 4 + (i + 0.5) * pitch
        pen.text((middle, height / 2), letter, font=face, fill=(*ink, 255), anchor="mm")
        column, row = int((x - width / 2 + middle) // PATCH), int(y // PATCH)
        if 0 <= column < GRID:
            spelled[row * GRID + column] = LETTERS.index(letter)
    return Thing(None, x, y, width, None, word), plate, spelled


def _paste(
    image: Image.Image, cut: Image.Image, x: float, y: float, rng: np.random.Generator, owner: NDArray, index: int
) -> None:
    """Draw `cut` around (x, y), often with a soft shadow, and note whose pixels these are."""
    left, top = int(x - cut.width / 2), int(y - cut.height / 2)
    if rng.random() < 0.6:
        shadow = Image.new("RGBA", cut.size, (0, 0, 0, 0))
        shadow.putalpha(cut.getchannel("A").point(lambda value: int(value * 0.35)).filter(ImageFilter.GaussianBlur(3)))
        image.paste(shadow, (left + 3, top + 4), shadow)
    image.paste(cut, (left, top), cut)
    solid = np.asarray(cut.getchannel("A")) > 100
    y0, x0, y1, x1 = max(0, top), max(0, left), min(SIDE, top + cut.height), min(SIDE, left + cut.width)
    owner[y0:y1, x0:x1][solid[y0 - top : y1 - top, x0 - left : x1 - left]] = index


def _tokens(owner: NDArray, things: list[Thing]) -> tuple[NDArray, NDArray, NDArray]:
    """Return what each token shows, its colour, and whether it is the middle of a named thing."""
    cells = owner.reshape(GRID, PATCH, GRID, PATCH).transpose(0, 2, 1, 3).reshape(GRID * GRID, -1)
    shows, colors = np.full(GRID * GRID, BACKGROUND, np.int8), np.full(GRID * GRID, -1, np.int8)
    middle = np.zeros(GRID * GRID, bool)
    for index, thing in enumerate(things):
        covered = (cells == index).mean(1) > COVERED
        at = min(GRID - 1, int(thing.y // PATCH)) * GRID + min(GRID - 1, int(thing.x // PATCH))
        if thing.name is not None:
            covered[at] = True
            middle[at] = True
        shows[covered] = SIGN if thing.sign else CLUTTER if thing.name is None else THINGS.index(thing.name)
        if thing.color:
            colors[covered] = list(COLORS).index(thing.color)
    return shows, colors, middle

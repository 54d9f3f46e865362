"""Scenes of the pocket suite: images drawn from a seed, with questions and labelled boxes.

The `marks` of a scene are boxes with words for their content. They are the dense training targets of the vision tower:
for each 28-pixel token, the words that lie there. Neither the language model nor an evaluation sees them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from harness.pocket.words import CHARACTERS, COLORS, KEYS, OPTIONS, SHAPES

TOKEN = 28  # pixels of a merged visual token: 14-px patches, merged 2 x 2
# Pixels by which a centre may deviate from the middle of a token, so that it never lies between two tokens.
STRAY_THING, STRAY_CHARACTER = 8, 4
SIDES = (224, 252, 280, 308, 336, 392, 448)


@dataclass(frozen=True)
class Mark:
    """Words for a box (x0, y0, x1, y1) at frame step `t`; `centre` words label only the token at its centre."""

    box: tuple[float, float, float, float]
    words: tuple[str, ...]
    centre: tuple[str, ...] = ()
    t: int = 0


@dataclass(frozen=True)
class Question:
    """A question with its short answer and, where it asks for a place, the box of the thing in pixels."""

    task: str
    text: str
    answer: str
    box: tuple[float, float, float, float] | None = None


@dataclass
class Scene:
    """One image, or the frames of a video, with marks and questions."""

    frames: list[Image.Image]
    marks: list[Mark] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


Rng = np.random.Generator


def pick(rng: Rng, items: tuple | list, n: int | None = None) -> list:
    """Draw n different items, or all of them, in random order."""
    idx = rng.permutation(len(items))[: len(items) if n is None else n]
    return [items[i] for i in idx]


def one(rng: Rng, items: Sequence[Any]) -> Any:
    """Draw an item."""
    return items[int(rng.integers(len(items)))]


def middle(rng: Rng, cell: int, stray: float) -> float:
    """Draw a coordinate near the middle of a token row or column."""
    return TOKEN * (cell + 0.5) + float(rng.uniform(-stray, stray))


def background(rng: Rng, width: int, height: int) -> Image.Image:
    """Return a picture of one light tone."""
    tone = rng.integers(225, 256, 3)
    return Image.new("RGB", (width, height), tuple(int(c) for c in tone))


def _shade(rng: Rng, color: str) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(c + rng.integers(-14, 15), 0, 255)) for c in COLORS[color])
    return r, g, b


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load Pillow's built-in scalable font, so that images do not depend on installed fonts."""
    return ImageFont.load_default(size)


# ---------------------------------------------------------------------------------------------------------- shapes


def _polygon(points: list[tuple[float, float]]) -> Callable:
    def draw(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple) -> None:
        d.polygon([(x + r * px, y + r * py) for px, py in points], fill=fill)

    return draw


def _circle(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple) -> None:
    d.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _ring(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: tuple) -> None:
    d.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, int(r * 0.36)))


_STAR = [(r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5)) for i, r in enumerate([1.0, 0.42] * 5)]
_CROSS = [(-1, -0.32), (-0.32, -0.32), (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32)]
_CROSS += [(-px, -py) for px, py in _CROSS]
_DRAW: dict[str, Callable] = {
    "circle": _circle,
    "ring": _ring,
    "rectangle": _polygon([(-0.95, -0.75), (0.95, -0.75), (0.95, 0.75), (-0.95, 0.75)]),
    "triangle": _polygon([(0, -1), (0.95, 0.8), (-0.95, 0.8)]),
    "diamond": _polygon([(0, -1), (0.75, 0), (0, 1), (-0.75, 0)]),
    "star": _polygon(_STAR),
    "cross": _polygon(_CROSS),
    "arrow": _polygon([(1, 0), (0.1, -0.85), (0.1, -0.3), (-1, -0.3), (-1, 0.3), (0.1, 0.3), (0.1, 0.85)]),
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape at (x, y) with radius r."""

    color: str
    shape: str
    x: float
    y: float
    r: float

    @property
    def name(self) -> str:
        """The name used in questions."""
        return f"{self.color} {self.shape}"

    def draw(self, image: Image.Image, rng: Rng) -> None:
        """Draw the thing, anti-aliased by drawing at twice the size."""
        r = int(self.r) + 2
        patch = Image.new("L", (4 * r, 4 * r), 0)
        _DRAW[self.shape](ImageDraw.Draw(patch), 2 * r, 2 * r, 2 * self.r, 255)
        mask = patch.reduce(2)
        image.paste(_shade(rng, self.color), (round(self.x) - r, round(self.y) - r), mask)

    def mark(self, t: int = 0) -> Mark:
        """Return the labelled box of the thing."""
        r = self.r * 0.9
        box = (self.x - r, self.y - r, self.x + r, self.y + r)
        return Mark(box, (self.color, self.shape), ("object",), t)


def place(
    rng: Rng, width: int, height: int, kinds: list[tuple[str, str]], low: int = 18, high: int = 36
) -> list[Thing]:
    """Place non-overlapping things of the given (color, shape) kinds; skip kinds that no longer fit."""
    things: list[Thing] = []
    for color, shape in kinds:
        for _ in range(40):
            r = float(rng.uniform(low, high))
            x, y = (middle(rng, int(rng.integers(side // TOKEN)), STRAY_THING) for side in (width, height))
            inside = r + 2 <= x <= width - r - 2 and r + 2 <= y <= height - r - 2
            if inside and all(math.hypot(x - o.x, y - o.y) > r + o.r + 8 for o in things):
                things.append(Thing(color, shape, x, y, r))
                break
    return things


def _canvas(rng: Rng) -> tuple[int, int]:
    """Draw width and height; small images, which are fast, are more frequent than 256 tokens."""
    width, height = rng.choice(SIDES, size=2, p=(0.24, 0.2, 0.18, 0.14, 0.12, 0.07, 0.05))
    return int(width), int(height)


def _things_scene(rng: Rng, kinds: list[tuple[str, str]], **radii: int) -> tuple[Scene, list[Thing]]:
    width, height = _canvas(rng)
    image = background(rng, width, height)
    things = place(rng, width, height, kinds, **radii)
    for thing in things:
        thing.draw(image, rng)
    return Scene([image], [t.mark() for t in things]), things


# ----------------------------------------------------------------------------------------------------- scene kinds


def objects(rng: Rng) -> Scene:
    """Draw three to seven different things, with existence and attribute questions."""
    kinds = [(c, s) for c in COLORS for s in SHAPES]
    scene, things = _things_scene(rng, pick(rng, kinds, int(rng.integers(3, 8))))
    scene.questions = [q for _ in range(3) for q in existence_questions(rng, things) + attribute_questions(rng, things)]
    return scene


def existence_questions(rng: Rng, things: list[Thing]) -> list[Question]:
    """Return a yes and a no question; half of the no questions combine a colour and a shape that both occur."""
    present = {(t.color, t.shape) for t in things}
    colors, shapes = {t.color for t in things}, {t.shape for t in things}
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
    hard = [(c, s) for c, s in absent if c in colors and s in shapes]
    no = one(rng, hard) if hard and rng.random() < 0.5 else one(rng, absent)
    yes = one(rng, sorted(present))
    return [
        Question("existence", f"Is there a {c} {s} in the image?", answer)
        for (c, s), answer in ((yes, "yes"), (no, "no"))
    ]


def _choice(rng: Rng, task: str, question: str, answer: str, others: list[str]) -> Question:
    options = pick(rng, [answer, *others[: len(OPTIONS) - 1]])
    lines = "".join(f"\n{letter}. {option}" for letter, option in zip(OPTIONS, options, strict=False))
    text = f"Answer with the option letter. {question}{lines}"
    return Question(task, text, OPTIONS[options.index(answer)])


def attribute_questions(rng: Rng, things: list[Thing]) -> list[Question]:
    """Ask for the colour of a unique shape and the shape of a unique colour, as text and multiple choice."""
    questions = []
    for ask, other, vocabulary in (("color", "shape", tuple(COLORS)), ("shape", "color", SHAPES)):
        values = [getattr(t, other) for t in things]
        unique = [t for t in things if values.count(getattr(t, other)) == 1]
        if not unique:
            continue
        thing = one(rng, unique)
        answer = getattr(thing, ask)
        seen = [v for v in dict.fromkeys(getattr(t, ask) for t in pick(rng, things)) if v != answer]
        rest = pick(rng, [v for v in vocabulary if v != answer and v not in seen])
        text = f"What color is the {thing.shape}?" if ask == "color" else f"What shape is {thing.color}?"
        questions.append(Question("attribute_text", text, answer))
        questions.append(_choice(rng, "attributes", text, answer, seen[:2] + rest))
    return questions


def counting(rng: Rng) -> Scene:
    """Draw one to five things of one shape or colour among others; the count is uniform."""
    by_shape = rng.random() < 0.5
    n, others = int(rng.integers(1, 6)), int(rng.integers(0, 4))
    target_color, target_shape = one(rng, tuple(COLORS)), one(rng, SHAPES)
    kinds = []
    for i in range(n + others):
        free_color = one(rng, [c for c in COLORS if i < n or c != target_color])
        free_shape = one(rng, [s for s in SHAPES if i < n or s != target_shape])
        if i < n:
            kinds.append((free_color, target_shape) if by_shape else (target_color, free_shape))
        else:
            kinds.append((free_color, free_shape))
    scene, things = _things_scene(rng, kinds, low=18, high=30)
    real = sum((t.shape == target_shape) if by_shape else (t.color == target_color) for t in things)
    noun = f"{target_shape}s" if target_shape != "cross" else "crosses"
    asked = f"How many {noun} are there?" if by_shape else f"How many {target_color} objects are there?"
    scene.questions = [Question("counting", asked, str(real))]
    scene.questions += existence_questions(rng, things)
    return scene


def _string(rng: Rng, low: int, high: int, alphabet: str = CHARACTERS) -> str:
    return "".join(one(rng, alphabet) for _ in range(int(rng.integers(low, high + 1))))


def _write(
    image: Image.Image,
    rng: Rng,
    string: str,
    column: int,
    row: int,
    fill: tuple,
    words: tuple[str, ...],
    size: int = 28,
) -> list[Mark]:
    """Write a string from a token column on, one character per column, and return a mark for each character."""
    draw = ImageDraw.Draw(image)
    x, y = middle(rng, column, STRAY_CHARACTER), middle(rng, row, STRAY_CHARACTER)
    marks = []
    for i, character in enumerate(string):
        cx = x + TOKEN * i
        draw.text((cx, y), character, font=font(size), fill=fill, anchor="mm")
        box = (cx - 1, y - 1, cx + 1, y + 1)
        marks.append(Mark(box, (), (character, f"<pos{i + 1}>", *words)))
    return marks


def text(rng: Rng) -> Scene:
    """Draw one to four strings in different colours; questions ask for the string of a colour."""
    width, height = _canvas(rng)
    image = background(rng, width, height)
    scene = Scene([image])
    colors = pick(rng, tuple(COLORS), int(rng.integers(1, 5)))
    shift = int(rng.integers(2))
    rows = [2 * row + shift for row in pick(rng, list(range(height // (2 * TOKEN))), len(colors))]
    for color, row in zip(colors, sorted(rows), strict=True):
        string = _string(rng, 2, 4)
        column = int(rng.integers(width // TOKEN - len(string) + 1))
        scene.marks += _write(
            image, rng, string, column, row, _shade(rng, color), (color, "text"), int(rng.integers(25, 32))
        )
        scene.questions.append(Question("text", f"What is written in {color}?", string))
    return scene


def document(rng: Rng) -> Scene:
    """Draw a form: each row has a key on the left and its value on the right."""
    n = int(rng.integers(3, 7))
    width, height = int(one(rng, (280, 308, 336))), int(one(rng, (252, 280, 308, 336)))
    image = Image.new("RGB", (width, height), (250, 250, int(rng.integers(238, 251))))
    draw = ImageDraw.Draw(image)
    scene = Scene([image])
    left, column = float(rng.uniform(6, 16)), int(rng.integers(5, width // TOKEN - 3))
    rows = sorted(pick(rng, list(range(height // TOKEN)), n))
    for row, key in zip(rows, pick(rng, KEYS, n), strict=True):
        y = middle(rng, row, STRAY_CHARACTER)
        ink = (20, 20, int(rng.integers(20, 90)))
        draw.text((left, y), key, font=font(22), fill=ink, anchor="lm")
        scene.marks.append(Mark((left, y - 10, left + draw.textlength(key, font(22)), y + 10), (key,)))
        value = _string(rng, 2, 4, "0123456789")
        scene.marks += _write(image, rng, value, column, row, ink, (key,))
        if rng.random() < 0.5:
            below = TOKEN * (row + 1)
            draw.line((6, below, width - 6, below), fill=(190, 190, 190))
        scene.questions.append(Question("documents", f"What is the value of {key}?", value))
    return scene


def chart(rng: Rng) -> Scene:
    """Draw a bar chart of a random table of numbers with up to two or up to three digits."""
    n = int(rng.integers(3, 6))
    values = rng.permutation(np.arange(4, 100) if rng.random() < 0.7 else np.arange(20, 1000))[:n]
    return bars(rng, [int(v) for v in values], pick(rng, tuple(COLORS), n))


def bars(rng: Rng, values: list[int], colors: list[str]) -> Scene:
    """Draw a vertical or horizontal bar chart of whole numbers below 1,000, with the value at each bar."""
    digits, n = max(len(str(v)) for v in values), len(values)
    lying = digits > 2 or rng.random() < 0.5
    if lying:
        width, height = int(one(rng, (280, 308, 336))), max(224, 2 * TOKEN * n)
    else:
        width, height = max(224, 3 * TOKEN * n), int(one(rng, (224, 252, 280)))
    image = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    scene = Scene([image])
    top, half = max(values), 18
    shift = int(rng.integers(height // TOKEN - 2 * n + 1)) if lying else 0
    for i, (value, color) in enumerate(zip(values, colors, strict=True)):
        if lying:
            row = 2 * i + shift
            length = 14 + (width - 22 - TOKEN * (digits + 1)) * value / top
            box = (8.0, TOKEN * row + 14.0 - half, 8 + length, TOKEN * row + 14.0 + half)
            column = math.ceil((8 + length + 6) / TOKEN)
        else:
            column = 3 * i
            length = 14 + (height - 22 - 2 * TOKEN) * value / top
            centre = TOKEN * (column + 1)
            box = (centre - half, height - 8 - length, centre + half, height - 8.0)
            row = int((height - 8 - length - 4) // TOKEN) - 1
        draw.rectangle(box, fill=_shade(rng, color))
        rank = ("highest",) if value == top else ("lowest",) if value == min(values) else ()
        scene.marks.append(Mark(box, (color, "bar", *rank)))
        scene.marks += _write(image, rng, str(value), column, row, (30, 30, 30), (color, *rank))
        scene.questions.append(Question("charts", f"What is the value of the {color} bar?", str(value)))
    draw.line((7, 8, 7, height - 8) if lying else (8, height - 7, width - 8, height - 7), fill=(60, 60, 60), width=2)
    if values.count(top) == 1:
        scene.questions.append(Question("charts", "Which color is the highest bar?", colors[values.index(top)]))
    if values.count(min(values)) == 1:
        scene.questions.append(Question("charts", "Which color is the lowest bar?", colors[values.index(min(values))]))
    return scene


def video(rng: Rng) -> Scene:
    """Draw a video of two or three things that appear one after the other, with two frames a step."""
    steps, side = int(rng.integers(2, 5)), 224
    kinds = list(zip(pick(rng, tuple(COLORS), 3), pick(rng, SHAPES, 3), strict=True))[: 2 if steps == 2 else 3]
    things = place(rng, side, side, kinds)
    starts = sorted(pick(rng, list(range(steps)), len(things)))
    backdrop = background(rng, side, side)
    scene = Scene([])
    stays = rng.random() < 0.5
    for t in range(steps):
        frame = backdrop.copy()
        for thing, start in zip(things, starts, strict=False):
            if start == t or (stays and start < t):
                thing.draw(frame, rng)
                scene.marks.append(thing.mark(t))
        scene.frames += [frame, frame]
    a, b = sorted(pick(rng, list(range(len(things))), 2)) if len(things) > 1 else (0, 0)
    if a != b:
        scene.questions = order_questions(things[a], things[b])
        x, y, answer = (things[a], things[b], "yes") if rng.random() < 0.5 else (things[b], things[a], "no")
        scene.questions.append(Question("video_order", f"Is the {x.name} before the {y.name}?", answer))
        scene.questions.append(Question("video_first", "What appears first?", things[0].name))
    return scene


def order_questions(early: Thing, late: Thing) -> list[Question]:
    """Ask about the order of two things with the options in both orders, as Vinoground does."""
    head = "Answer with the option letter. Which is it?"
    first, second = f"the {early.name} appears first", f"the {late.name} appears first"
    return [
        Question("video", f"{head}\nA. {first}\nB. {second}", "A"),
        Question("video", f"{head}\nA. {second}\nB. {first}", "B"),
    ]


KINDS: dict[str, Callable[[Rng], Scene]] = {
    "objects": objects,
    "counting": counting,
    "text": text,
    "document": document,
    "chart": chart,
    "video": video,
}


def dense_targets(scene: Scene, words: dict[str, int]) -> np.ndarray:
    """Return 0/1 targets [N, len(words)]: a token has the words of the marks that cover or centre on it."""
    width, height = scene.frames[0].size
    steps, rows, columns = max(1, len(scene.frames) // 2), height // TOKEN, width // TOKEN
    target = np.zeros((steps, rows, columns, len(words)), dtype=np.float32)
    for mark in scene.marks:
        x0, y0, x1, y1 = mark.box
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        r = min(max(int(cy // TOKEN), 0), rows - 1)
        c = min(max(int(cx // TOKEN), 0), columns - 1)
        for word in mark.centre + mark.words:
            target[mark.t, r, c, words[word]] = 1
        if not mark.words:
            continue
        edge = np.arange(max(rows, columns)) * TOKEN
        over_y = np.clip(np.minimum(y1, edge[:rows] + TOKEN) - np.maximum(y0, edge[:rows]), 0, None)
        over_x = np.clip(np.minimum(x1, edge[:columns] + TOKEN) - np.maximum(x0, edge[:columns]), 0, None)
        share = over_y[:, None] * over_x[None] / min(TOKEN * TOKEN, (x1 - x0) * (y1 - y0) + 1e-6)
        for word in mark.words:
            target[mark.t, :, :, words[word]][share >= 0.4] = 1
    return target.reshape(steps * rows * columns, len(words))

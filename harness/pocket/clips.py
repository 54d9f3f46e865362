"""Scenes of the suites `clips` and `places`: videos in which little changes, and pictures that ask where.

A clip has 8 to 16 frames, two for each temporal step. Its scenery is black, gray and brown and stays; what happens is
coloured and lasts one step, so that every question needs the few tokens that differ from those before.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from harness.pocket.scenes import (
    TOKEN,
    Question,
    Rng,
    Scene,
    Thing,
    background,
    one,
    order_questions,
    pick,
    place,
)
from harness.pocket.words import COLORS, SHAPES

SIDE = 140  # pixels of a clip: 5 x 5 tokens a step
PLACES_SIDE = 224  # pixels of a picture with places: 8 x 8 tokens, each a cell
SCENERY = ("black", "gray", "brown")
LIVELY = tuple(color for color in COLORS if color not in SCENERY)
COLUMNS = "abcdefgh"
LOW, HIGH = 17, 21  # radii in a clip


def _layout(rng: Rng, kinds: list[tuple[str, str]]) -> list[Thing]:
    """Place a thing of each kind where it overlaps no other, drawing again until all fit."""
    while True:
        things = place(rng, SIDE, SIDE, kinds, LOW, HIGH)
        if len(things) == len(kinds):
            return things


def _kinds(rng: Rng, happening: int, scenery: int) -> list[tuple[str, str]]:
    """Draw colours and shapes for what happens and then for the scenery; no two have the same shape."""
    colors = pick(rng, LIVELY, happening) + [one(rng, SCENERY) for _ in range(scenery)]
    return list(zip(colors, pick(rng, SHAPES), strict=False))


def _film(rng: Rng, steps: int, scenery: list[Thing], events: list[tuple[int, Thing]]) -> Scene:
    """Draw the scenery in every step and over it the things of each event (step, thing); two frames a step."""
    still = background(rng, SIDE, SIDE)
    for thing in scenery:
        thing.draw(still, rng)
    scene = Scene([])
    for t in range(steps):
        frame = still.copy()
        happening = [thing for step, thing in events if step == t]
        for thing in happening:
            thing.draw(frame, rng)
        covered = {(thing.x, thing.y) for thing in happening}
        scene.marks += [thing.mark(t) for thing in scenery if (thing.x, thing.y) not in covered]
        scene.marks += [thing.mark(t) for thing in happening]
        scene.frames += [frame, frame]
    return scene


def _steps(rng: Rng) -> int:
    return int(rng.integers(4, 9))


def order(rng: Rng) -> Scene:
    """Let three things appear one after the other, each for a step."""
    steps = _steps(rng)
    layout = _layout(rng, _kinds(rng, 3, 2))
    things, scenery = layout[:3], layout[3:]
    scene = _film(rng, steps, scenery, list(zip(sorted(pick(rng, list(range(steps)), 3)), things, strict=True)))
    a, b = sorted(pick(rng, [0, 1, 2], 2))
    scene.questions = [Question("order", q.text, q.answer) for q in order_questions(things[a], things[b])]
    rest = []
    for word in ("before", "after"):
        for x, y in ((a, b), (b, a)):
            answer = "yes" if (x < y) == (word == "before") else "no"
            rest.append(Question("around", f"Is the {things[x].name} {word} the {things[y].name}?", answer))
    for word, thing in (("first", things[0]), ("last", things[2])):
        rest.append(Question("ends", f"What color appears {word}?", thing.color))
        rest.append(Question("ends", f"What shape appears {word}?", thing.shape))
    scene.questions += pick(rng, rest)
    return scene


def times(rng: Rng) -> Scene:
    """Let two things appear one to four times each, never in two steps that follow each other."""
    steps = 8
    layout = _layout(rng, _kinds(rng, 2, 2))
    things, scenery = layout[:2], layout[2:]
    events, counts = [], []
    for thing in things:
        n = int(rng.integers(1, 5))
        apart = sorted(pick(rng, list(range(steps - n + 1)), n))
        events += [(step + i, thing) for i, step in enumerate(apart)]
        counts.append(n)
    scene = _film(rng, steps, scenery, events)
    asked = zip(things, counts, strict=True)
    scene.questions = [Question("times", f"How many times does the {t.name} appear?", str(n)) for t, n in asked]
    return scene


def turns(rng: Rng) -> Scene:
    """Let two of three things of the scenery turn coloured, each for a step."""
    steps = _steps(rng)
    scenery = _layout(rng, _kinds(rng, 0, 3))
    changing = zip(pick(rng, list(range(steps)), 2), scenery, pick(rng, LIVELY, 2), strict=False)
    events = [(step, Thing(color, was.shape, was.x, was.y, was.r)) for step, was, color in changing]
    scene = _film(rng, steps, scenery, events)
    for _, thing in events:
        scene.questions.append(Question("turns", f"What color does the {thing.shape} turn?", thing.color))
        scene.questions.append(Question("turns", f"What shape turns {thing.color}?", thing.shape))
    return scene


def cell(thing: Thing) -> str:
    """Return the name of the token at the centre of a thing: its column as a letter, its row as a number from 1."""
    return f"{COLUMNS[int(thing.x // TOKEN)]}{int(thing.y // TOKEN) + 1}"


def places(rng: Rng) -> Scene:
    """Draw three to five things of different colours and shapes; ask for the cell of each."""
    image: Image.Image = background(rng, PLACES_SIDE, PLACES_SIDE)
    kinds = list(zip(pick(rng, tuple(COLORS)), pick(rng, SHAPES), strict=True))[: int(rng.integers(3, 6))]
    things = place(rng, PLACES_SIDE, PLACES_SIDE, kinds, 18, 28)
    for thing in things:
        thing.draw(image, rng)
    scene = Scene([image], [thing.mark() for thing in things])
    for thing in things:
        box = (thing.x - thing.r, thing.y - thing.r, thing.x + thing.r, thing.y + thing.r)
        scene.questions.append(Question("places", f"Which cell is the {thing.name} in?", cell(thing), box))
    return scene


KINDS: dict[str, Callable[[Rng], Scene]] = {"order": order, "times": times, "turns": turns, "places": places}
SHARES = {"order": 4, "times": 3, "turns": 2, "places": 4}  # in training

"""Ask about a scene; every answer is one word, and no question has two right answers."""

from __future__ import annotations

from collections import Counter

import numpy as np

from harness.pocket.photo.scenes import SIDE, Scene, Thing
from harness.pocket.photo.words import CORNERS, GROUP_OF, NUMBERS, SIDES, THINGS
from harness.pocket.scenes import Question

MARGIN = 14  # pixels from the middle lines of the picture: nearer than that, a thing is in no corner
NARROW, WIDE = 0.8, 1.3  # a thing beside another is off the line by at most NARROW of its distance; at WIDE, by far


def ask(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return all questions about a scene, two for every one about what is there."""
    seen = [thing for thing in scene.things if thing.name is not None]
    count = Counter(str(thing.name) for thing in seen)
    single = [thing for thing in seen if count[str(thing.name)] == 1]
    asked = [*_existence(list(count), rng)]
    asked += [
        Question("counting", f"How many times does the {name} appear?", NUMBERS[times - 1])
        for name, times in count.items()
        if times <= len(NUMBERS)
    ]
    asked += [Question("where", f"Where is the {t.name}?", _corner(t)) for t in single if _is_clear(t)]
    for corner in CORNERS:
        inside = [thing for thing in seen if _corner(thing) == corner]
        if len({thing.name for thing in inside}) == 1 and all(map(_is_clear, inside)):
            asked.append(Question("what", f"What is at the {corner}?", str(inside[0].name)))
    asked += [q for thing in single for q in _beside(thing, seen)]
    asked += [Question("color", f"What color is the {t.name}?", t.color) for t in single if t.color]
    signs = [thing.sign for thing in scene.things if thing.sign]
    asked += [Question("reading", "What does the sign say?", word.lower()) for word in signs]
    return asked


def _existence(present: list[str], rng: np.random.Generator) -> list[Question]:
    """Ask for up to three that are there and as many that are not, first those of the same groups."""
    absent = [name for name in THINGS if name not in present]
    groups = {GROUP_OF[name] for name in present}
    alike = [name for name in absent if GROUP_OF[name] in groups]
    number = min(3, len(present))
    wrong = list(dict.fromkeys([*rng.permutation(alike)[:2], *rng.permutation(absent)]))[:number]
    right = rng.choice(present, number, replace=False)
    return [
        Question("existence", f"Is there any {name}?", answer)
        for names, answer in ((right, "yes"), (wrong, "no"))
        for name in names
    ]


def _corner(thing: Thing) -> str:
    return CORNERS[2 * (thing.y > SIDE / 2) + (thing.x > SIDE / 2)]


def _is_clear(thing: Thing) -> bool:
    return min(abs(thing.x - SIDE / 2), abs(thing.y - SIDE / 2)) > MARGIN


def _beside(thing: Thing, seen: list[Thing]) -> list[Question]:
    """Ask what is on each side of a thing where exactly one other is there and none nearly."""
    asked = []
    for side, (right, down) in SIDES.items():
        there, nearly = [], 0
        for other in seen:
            across, along = other.x - thing.x, other.y - thing.y
            along, across = (across * right + along * down), abs(across * down) + abs(along * right)
            if other is thing or along < 4:
                continue
            if along > 12 and across < NARROW * along:
                there.append(other)
            elif across < WIDE * along:
                nearly += 1
        if len(there) == 1 and not nearly and there[0].name != thing.name:
            of = "of " if side in ("left", "right") else ""
            asked.append(Question("beside", f"What is {side} {of}the {thing.name}?", str(there[0].name)))
    return asked

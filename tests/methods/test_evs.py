"""EVS against its description, token by token, and the hand example of the specification."""

import math

import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import sample

from methods.base import Tokens
from methods.evs import EVS
from methods.samples import make_tokens

GRIDS = [
    [(4, 2, 3)],
    [(2, 1, 7)],
    [(3, 2, 2), (2, 3, 1)],
    [(1, 2, 3), (3, 2, 2)],
    [(1, 2, 2), (1, 1, 3)],
    [(4, 1, 2), (1, 3, 3), (2, 1, 1)],
]


def cosine(a, b):
    lengths = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return round(sum(v * w for v, w in zip(a, b, strict=True)) / lengths, 11) if lengths else 0.0


def largest(x, k):
    """Return the k of the tokens x [T][P][D] that change most, the first of equal ones."""
    change = {}
    for t in range(len(x)):
        for p in range(len(x[0])):
            change[t * len(x[0]) + p] = 255 if t == 0 else 1 - cosine(x[t][p], x[t - 1][p])
    return sorted(sorted(change, key=lambda i: (-change[i], i))[:k])


def by_description(tokens, counts):
    kept, start = [], 0
    for (t, h, w), count in zip(tokens.grids, counts, strict=True):
        x = tokens.features[start : start + t * h * w].double().view(t, h * w, -1).tolist()
        part = largest(x, count) if count >= h * w else [int((i + 0.5) * h * w / count) for i in range(count)]
        kept += [start + i for i in part]
        start += t * h * w
    return kept


def shares(grids, k, whole):
    """Divide k in proportion to all tokens; with `whole`, no clip gets fewer than its first frame."""
    sizes, frames = [t * h * w for t, h, w in grids], [h * w for _, h, w in grids]
    fixed = {}
    while True:
        free = [i for i in range(len(sizes)) if i not in fixed]
        rest, total = k - sum(fixed.values()), sum(sizes[i] for i in free)
        part = {i: rest * sizes[i] // total for i in free} if free else {}
        for i in sorted(free, key=lambda i: (-(rest * sizes[i] % total), i))[: rest - sum(part.values())]:
            part[i] += 1
        while rest >= len(free) and 0 in part.values():
            part[max(part, key=lambda i: (part[i], -i))] -= 1
            part[next(i for i in free if not part[i])] += 1
        short = {i: frames[i] for i in free if whole and part[i] < frames[i]}
        if not short:
            return [(fixed | part)[i] for i in range(len(sizes))]
        fixed |= short


@randomized(
    200, grids=GRIDS, d=range(1, 8), share=SHARE, seed=SEEDS, kind=["normal", "duplicates", "zero_rows", "integers"]
)
def test_keeps_what_the_description_says(grids, d, share, seed, kind):
    n = sum(t * h * w for t, h, w in grids)
    tokens, k = sample(n, d, seed, kind, grids), max(1, int(share * n))
    counts = shares(grids, k, whole=k >= sum(h * w for _, h, w in grids))
    assert EVS().select(tokens, k).kept.tolist() == by_description(tokens, counts)
    counts = [max(h * w, t * h * w * k // n) for t, h, w in grids]
    assert EVS(fit="official").select(tokens, k).kept.tolist() == by_description(tokens, counts)


def test_hand_example():
    """e = 255 255 | .1 .4 | .4 .2; of three, 4 ties with 3 and loses."""
    turns = [[0, 0], [0.1, 0.4], [0.4, 0.2]]
    x, angles = [], [0.0, 0.0]
    for row in turns:
        angles = [angle + math.acos(1 - turn) for angle, turn in zip(angles, row, strict=True)]
        x += [[math.cos(angle), math.sin(angle)] for angle in angles]
    tokens = Tokens(torch.tensor(x, dtype=torch.float64), [(3, 1, 2)])
    assert EVS().select(tokens, 3).kept.tolist() == [0, 1, 3]
    assert EVS().select(tokens, 4).kept.tolist() == [0, 1, 3, 4]
    assert EVS().select(tokens, 5).kept.tolist() == [0, 1, 3, 4, 5]


def test_still_video_keeps_frame_0_and_a_cut_keeps_the_new_scene():
    scene, other = make_tokens(6, seed=1).features, make_tokens(6, seed=2).features
    still = Tokens(scene.repeat(4, 1), [(4, 2, 3)])
    assert EVS().select(still, 9).kept.tolist() == list(range(9))  # nothing changed: the lowest index
    scenes = Tokens(torch.cat([scene, scene, other, other]), [(4, 2, 3)])
    assert EVS().select(scenes, 12).kept.tolist() == [*range(6), *range(12, 18)]


@pytest.mark.parametrize("k", [97, 98])
def test_the_count_is_exact_where_the_release_loses_one(k):
    tokens = make_tokens(980, 2, grids=[(10, 7, 14)])  # q = 0.9: int(980 * (1 - 0.9)) is 97
    assert len(EVS().select(tokens, k).kept) == k
    assert len(EVS(fit="official").select(tokens, k).kept) == 98  # the first frame


def test_images_stay_whole_where_the_budget_allows_it():
    tokens = make_tokens(6 + 18, grids=[(1, 2, 3), (3, 2, 3)])
    assert EVS().select(tokens, 13).kept.tolist()[:12] == list(range(12))
    assert EVS().select(tokens, 12).kept.tolist() == list(range(12))
    image = make_tokens(6, grids=[(1, 2, 3)])
    assert EVS().select(image, 3).kept.tolist() == [1, 3, 5]
    assert EVS(fit="official").select(image, 3).kept.tolist() == list(range(6))

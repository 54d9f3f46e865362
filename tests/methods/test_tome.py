"""ToMe against a plain transcription of bipartite matching, repeated until K tokens are left."""

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import attended

from methods.base import Tokens
from methods.tome import ToMe


def cosine(a, b):
    length = np.sqrt((a**2).sum() * (b**2).sum())
    return round(float((a * b).sum() / length), 10) if length else 0.0


def groups_of(keys, k):
    """Return the groups of tokens that merge, as {token that gives the place: its members}."""
    keys = np.asarray(keys, dtype=np.float64)
    groups = {i: [i] for i in range(len(keys))}
    while len(groups) > k:
        places = sorted(groups)
        mean = {i: keys[groups[i]].mean(0) for i in places}
        pairs = []
        for a in places[0::2]:
            similar = [cosine(mean[a], mean[b]) for b in places[1::2]]
            pairs.append((max(similar), a, places[1::2][similar.index(max(similar))]))
        pairs.sort(key=lambda pair: -pair[0])
        for _, a, b in pairs[: min(len(groups) - k, len(groups) // 2)]:
            groups[b] += groups.pop(a)
    return groups


def merged(tokens, k):
    selection = ToMe().select(tokens, k)
    kept, owner = selection.kept.tolist(), selection.owner.tolist()
    return {place: [i for i, row in enumerate(owner) if row == at] for at, place in enumerate(kept)}


def ordered(groups):
    return {place: sorted(members) for place, members in sorted(groups.items())}


@randomized(
    80,
    n=range(2, 41),
    d=range(2, 13),
    share=SHARE,
    seed=SEEDS,
    kind=["normal", "positive", "duplicates", "equal", "zero_rows", "opposite", "huge"],
)
def test_same_groups_as_the_authors_matching(n, d, share, seed, kind):
    tokens, k = attended([(1, 1, n)], d, seed, kind), max(1, int(share * n))
    assert merged(tokens, k) == ordered(groups_of(tokens.vit_keys, k))


@pytest.mark.parametrize(
    ("k", "groups"),
    [
        (4, {1: [1], 2: [2], 3: [0, 3], 4: [4]}),  # r = 1
        (3, {1: [1], 3: [0, 2, 3], 4: [4]}),  # r = 2
        (2, {1: [1], 3: [0, 2, 3, 4]}),  # r = 2, then 1: what is left begins with 1, so 1 and 4 look for a partner
        (1, {3: [0, 1, 2, 3, 4]}),
    ],
)
def test_worked_example(k, groups):
    keys = torch.tensor([[1, 0], [0, 1], [0.8, 0.6], [1, 0.1], [0.6, 0.8]])
    assert merged(Tokens(torch.rand(5, 3), [(1, 1, 5)], vit_keys=keys), k) == groups


def test_a_merged_key_is_the_mean_of_all_its_members():
    """3 has members 0 and 3, then 6 (far off): of two rows, one pulls half; of three, a third."""
    keys = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0.1, 1], [0, 1, 0.1], [0.9, 0, 0.4]])
    for k in range(1, 7):
        assert merged(Tokens(torch.rand(7, 3), [(1, 1, 7)], vit_keys=keys), k) == ordered(groups_of(keys, k))


def test_images_and_time_steps_merge_on_their_own():
    tokens = attended([(1, 4, 4), (2, 2, 4)], 6, 4)
    expected, start = {}, 0
    for size, share in ((16, 5), (8, 2), (8, 2)):
        part = groups_of(tokens.vit_keys[start : start + size], share)
        expected |= {start + place: [start + i for i in members] for place, members in part.items()}
        start += size
    assert merged(tokens, 9) == ordered(expected)
    assert merged(tokens, 2) == ordered(groups_of(tokens.vit_keys, 2))  # fewer than units: all are one

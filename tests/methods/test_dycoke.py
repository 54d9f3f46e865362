"""DyCoke's first stage against a transcription of its two loops, frame by frame."""

import math

import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import sample

from methods.base import Tokens
from methods.dycoke import DyCoke, references
from methods.samples import make_tokens


def cosine(a, b):
    lengths = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return round(sum(v * w for v, w in zip(a, b, strict=True)) / lengths, 11) if lengths else 0.0


def least_similar(frame, reference, count):
    similar = [cosine(a, b) for a, b in zip(frame, reference, strict=True)]
    return sorted(sorted(range(len(frame)), key=lambda p: (similar[p], p))[:count])


def two_loops(x, count):
    """Return the kept places [T] of the tokens x [T][P][D]; the last of an odd number of frames is dropped."""
    kept = {}
    for i in range(0, len(x) - 1, 2):
        kept[i] = list(range(len(x[0])))
        kept[i + 1] = least_similar(x[i + 1], x[i], count)
    for i in range(0, len(x) - 4, 4):
        kept[i + 2] = least_similar(x[i + 2], x[i], count)
    return [kept.get(i, []) for i in range(len(x))]


def places(kept, t, p):
    return [[i - step * p for i in kept.tolist() if i // p == step] for step in range(t)]


@randomized(150, t=range(2, 14), p=range(1, 7), d=range(1, 6), seed=SEEDS, rate=[0.0, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_official_keeps_what_the_two_loops_keep(t, p, d, seed, rate):
    tokens = sample(t * p, d, seed, ("normal", "duplicates", "zero_rows", "integers")[seed % 4], [(t, 1, p)])
    expected = two_loops(tokens.features.double().view(t, p, d).tolist(), int((1 - rate) * p))
    kept = DyCoke(fit="official", rate=rate).select(tokens, max(1, t * p // 2)).kept
    assert places(kept, t, p) == expected


@randomized(150, t=range(1, 14), p=range(1, 7), d=range(1, 6), seed=SEEDS, share=SHARE)
def test_exactly_k_shared_evenly_by_compared_frames(t, p, d, seed, share):
    tokens = sample(t * p, d, seed, ("normal", "duplicates", "zero_rows", "integers")[seed % 4], [(t, 1, p)])
    x, k = tokens.features.double().view(t, p, d).tolist(), max(1, int(share * t * p))
    got = places(DyCoke().select(tokens, k).kept, t, p)
    compared = {i + 1: i for i in range(0, t - 1, 2)} | {i + 2: i for i in range(0, t - 4, 4)}
    whole, rest = [i for i in range(t) if i not in compared], k - (t - len(compared)) * p
    if rest >= 0:
        least, more = divmod(rest, max(1, len(compared)))
        for number, i in enumerate(sorted(compared)):
            assert got[i] == least_similar(x[i], x[compared[i]], least + (number < more))
        assert all(got[i] == list(range(p)) for i in whole)
    else:
        flat = [(i, place) for i in whole for place in range(p)]
        chosen = [flat[int((j + 0.5) * len(flat) / k)] for j in range(k)]
        assert got == [[place for i, place in chosen if i == step] for step in range(t)]


def test_counts_of_the_specification():
    """Of 32 frames 9 stay whole: 7 of the even ones are compared, but not the last of them."""
    compared = references(32)
    assert [i for i, other in enumerate(compared) if other is None] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    tokens = make_tokens(32 * 196, 2, grids=[(32, 14, 14)])
    assert [len(DyCoke(fit="official", rate=rate).select(tokens, 1).kept) for rate in (0.7, 0.9)] == [3098, 2201]
    assert len(DyCoke(fit="official", rate=1.0).select(tokens, 1).kept) == 9 * 196


def test_frames_that_stay_whole():
    assert references(1) == [None]
    assert references(3) == [None, 0, None]
    assert references(4) == [None, 0, None, 2]
    assert references(5) == [None, 0, 0, 2, None]
    assert references(8) == [None, 0, 0, 2, None, 4, None, 6]


def test_images_and_several_videos():
    tokens = make_tokens(6 + 8 + 8, grids=[(1, 2, 3), (2, 2, 2), (4, 1, 2)])
    assert DyCoke(fit="official", rate=1.0).select(tokens, 9).kept.tolist() == [*range(10), 14, 15, 18, 19]
    assert DyCoke().select(tokens, 14).kept.tolist() == [*range(10), 14, 15, 18, 19]  # all that is whole
    got = DyCoke().select(tokens, 16).kept
    assert set(range(10)) < set(got.tolist())
    assert torch.isin(torch.tensor([14, 15, 18, 19]), got).all()
    image = Tokens(torch.rand(6, 3), [(1, 2, 3)])
    assert DyCoke().select(image, 3).kept.tolist() == [1, 3, 5]
    assert DyCoke(fit="official").select(image, 3).kept.tolist() == list(range(6))


def test_a_rate_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"dycoke: rate must be in \[0, 1\], not 1.5"):
        DyCoke(rate=1.5)

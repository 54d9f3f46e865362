"""VidCom2 against a transcription of its formulas in numpy, token by token."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import sample

from methods.base import Tokens
from methods.samples import make_tokens
from methods.vidcom2 import VidCom2, uniqueness

GRIDS = [
    [(4, 2, 3)],
    [(6, 1, 5)],
    [(1, 3, 5)],
    [(2, 1, 1)],
    [(5, 1, 1)],
    [(3, 2, 2), (2, 3, 1)],
    [(1, 2, 3), (3, 2, 2)],
    [(1, 2, 2), (1, 1, 3)],
]


def exact(number):
    """Drop the last digits, in which equal numbers may differ."""
    return float(f"{number:.10e}")


def by_definition(x):
    """Return the weights of frames and the scores [T][P] of an array [T, P, D]."""
    t, p, d = x.shape
    flat = x.reshape(-1, d).astype(np.float64)
    variance = [exact(((column - column.mean()) ** 2).mean()) for column in flat.T]
    channels = sorted(range(d), key=lambda c: (variance[c], c))[: d // 2]
    y = np.array([row[channels] / max(math.sqrt((row[channels] ** 2).sum()), 1e-12) for row in flat])
    y = y.reshape(t, p, len(channels))

    def likeness(a, b):
        return sum(math.exp(-((a - b) ** 2).sum() / (2 * width)) for width in (0.125, 0.25, 0.5, 1, 2))

    video = [[likeness(y[i, j], y.reshape(t * p, len(channels)).mean(0)) for j in range(p)] for i in range(t)]
    frame = [[likeness(y[i, j], y[i].mean(0)) for j in range(p)] for i in range(t)]
    u = [exact(-np.mean(row)) for row in video]
    e = [math.exp((value - max(u)) / 0.01) for value in u]
    w = [value / sum(e) for value in e]
    scores = [[exact(video[i][j] + frame[i][j]) for j in range(p)] for i in range(t)]
    return [1 + value - sum(w) / t for value in w], scores


def lowest(scores, quotas):
    """Return the tokens of lowest score of each frame."""
    p, kept = len(scores[0]), []
    for i, (row, quota) in enumerate(zip(scores, quotas, strict=True)):
        kept += [i * p + j for j in sorted(range(p), key=lambda j: (row[j], j))[:quota]]
    return sorted(kept)


def official(x, share):
    """Return what the release keeps of one video."""
    weights, scores = by_definition(x)
    return lowest(scores, [max(1, round(round(min(1, share * weight) * x.shape[1], 9))) for weight in weights])


def filled(targets, k, p):
    """Round `targets` down, and give the rest to those with the largest remainder; none exceeds `p`."""
    targets = [Fraction(target) for target in targets]
    while any(target > p for target in targets):  # the surplus goes to the others in proportion
        room = [target for target in targets if target < p]
        surplus = sum(max(0, target - p) for target in targets)
        targets = [min(p, t if t >= p else t * (1 + surplus / sum(room))) for t in targets]
    quotas = [int(target) for target in targets]
    order = sorted(range(len(targets)), key=lambda i: (quotas[i] - targets[i], i))
    for i in order[: k - sum(quotas)]:
        quotas[i] += 1
    while k >= len(quotas) and 0 in quotas:
        quotas[quotas.index(max(quotas))] -= 1
        quotas[quotas.index(0)] += 1
    return quotas


@randomized(
    120, grids=GRIDS, d=range(1, 12), share=SHARE, seed=SEEDS, kind=["normal", "positive", "duplicates", "zero_rows"]
)
def test_official_keeps_what_the_release_keeps(grids, d, share, seed, kind):
    n = sum(t * h * w for t, h, w in grids)
    tokens, k = sample(n, d, seed, kind, grids), max(1, int(share * n))
    expected, start = [], 0
    for t, h, w in grids:
        x = tokens.features[start : start + t * h * w].reshape(t, h * w, d).numpy()
        expected += [start + i for i in (official(x, k / n) if t > 1 else range(h * w))]
        start += t * h * w
    assert VidCom2(fit="official").select(tokens, k).kept.tolist() == expected


@randomized(120, t=range(1, 7), p=range(1, 9), d=range(2, 9), share=SHARE, seed=SEEDS, drift=[0.0, 0.1, 3.0])
def test_exactly_k_by_largest_remainder(t, p, d, share, seed, drift):
    tokens, k = sample(t * p, d, seed, grids=[(t, 1, p)]), max(1, int(share * t * p))
    x = tokens.features.view(t, p, d)
    x[:-1] = x[-1] + drift * x[:-1]  # the last frame is the odd one, or all are nearly equal
    weights, scores = by_definition(x.numpy())
    quotas = filled([Fraction(k, t) * Fraction(exact(weight)) for weight in weights], k, p)
    kept = VidCom2().select(tokens, k).kept
    counts = torch.bincount(kept // p, minlength=t).tolist()
    assert sum(counts) == k
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(counts, quotas, strict=True))  # of remainders that tie
    assert kept.tolist() == lowest(scores, counts)


def test_quotas_of_the_specification():
    """u = -4.60, -4.61, -4.62 at a quarter of 196 tokens: 65 + 45 + 37 = 3 x 49."""
    e = [math.exp(-i) for i in range(3)]
    weights = [1 + value / sum(e) - 1 / 3 for value in e]
    assert [round(0.25 * weight, 3) for weight in weights] == [0.333, 0.228, 0.189]
    assert [round(0.25 * weight * 196) for weight in weights] == [65, 45, 37]
    assert filled([49 * weight for weight in weights], 147, 196) == [65, 45, 37]


def video(unlike, t=6, p=31, d=8):
    """Return a video of equal frames but for one, which is `unlike` the others."""
    still = torch.randn(p, d, generator=torch.Generator().manual_seed(1)).abs() + 1
    x = still.repeat(t, 1, 1)
    x[unlike] = -x[unlike]
    return Tokens(x.flatten(0, 1), [(t, 1, p)])


def counts(method, tokens, k):
    t, _, p = tokens.grids[0]
    return torch.bincount(method.select(tokens, k).kept // p, minlength=t).tolist()


def test_an_odd_frame_gets_up_to_twice_its_share_and_a_whole_one_hands_on_the_rest():
    tokens = video(unlike=2)
    assert counts(VidCom2(fit="official"), tokens, 31) == [4, 4, 9, 4, 4, 4]  # 31/6 (1 - 1/6) and (2 - 1/6)
    assert counts(VidCom2(), tokens, 31) == [5, 4, 10, 4, 4, 4]  # of 4.31 and 9.47
    # At 0.9 the surplus of the whole frame is lost in the release: 146 of 167.
    assert counts(VidCom2(fit="official"), tokens, 167) == [23, 23, 31, 23, 23, 23]
    assert sum(counts(VidCom2(fit="official"), tokens, 167)) == 146
    assert counts(VidCom2(), tokens, 167) == [28, 27, 31, 27, 27, 27]


def test_equal_frames_share_evenly_and_the_first_of_equal_tokens_stay():
    tokens = Tokens(torch.ones(12, 4), [(3, 2, 2)])
    assert VidCom2().select(tokens, 5).kept.tolist() == [0, 1, 4, 5, 8]
    assert VidCom2().select(tokens, 2).kept.tolist() == [0, 4]


def test_an_image_is_a_video_of_one_frame_and_whole_with_the_official_fit():
    tokens = make_tokens(15, grids=[(1, 3, 5)])
    weights, scores = by_definition(tokens.features.view(1, 15, -1).numpy())
    assert weights == [1]
    assert VidCom2().select(tokens, 4).kept.tolist() == lowest(scores, [4])
    assert VidCom2(fit="official").select(tokens, 4).kept.tolist() == list(range(15))


def test_weights_do_not_depend_on_the_last_bits():
    weight, score = uniqueness(torch.ones(3, 5, 7))
    assert weight == [1.0] * 3
    assert score.unique().numel() == 1


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="fit must be one of k, official"):
        VidCom2(fit="exactly")

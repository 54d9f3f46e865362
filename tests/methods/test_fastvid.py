"""FastVID against a transcription of its steps in numpy: segments, quotas, density peaks and merging."""

import math

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import sample

from methods.base import Tokens
from methods.fastvid import FastVID
from methods.samples import make_tokens

GRIDS = [
    [(12, 2, 3)],
    [(9, 1, 4)],
    [(3, 2, 4)],
    [(1, 3, 5)],
    [(2, 1, 1)],
    [(16, 1, 2)],
    [(4, 2, 2), (10, 3, 1)],
    [(1, 2, 3), (9, 2, 2)],
]


def exact(number):
    """Drop the last digits, in which equal numbers may differ."""
    return float(f"{number:.10e}")


def cosine(a, b):
    lengths = math.sqrt((a * a).sum() * (b * b).sum())
    return round(float((a * b).sum() / lengths), 11) if lengths else 0.0


def segments_of(x, c, tau):
    """Return [(first, last)]: cut at the c - 1 least similar places, and at all below tau."""
    g = x.mean(1)
    s = [cosine(g[i], g[i + 1]) for i in range(len(g) - 1)]
    places = set(sorted(range(len(s)), key=lambda i: (s[i], i))[: c - 1]) | {i for i, v in enumerate(s) if v < tau}
    firsts = [0, *(i + 1 for i in sorted(places))]
    return [(a, b - 1) for a, b in zip(firsts, [*firsts[1:], len(x)], strict=True)], s


def runs_of(s, first, last, ignore):
    """Return the last frame of each run of a segment."""
    return [t for t in range(first, last + 1) if t == last or s[t] < ignore]


def evenly(count, parts):
    return [count // parts + (i < count % parts) for i in range(parts)]


def official_quotas(frames, budget, p):
    """Return {frame: salient tokens} and {frame: targets}."""
    anchors, context = frames[::-1][::4], max(int(budget * 0.4), 1)
    targets = {f: min(part, max(1, p // 2)) for f, part in zip(anchors, evenly(context, len(anchors)), strict=True)}
    salient = evenly(budget - context, len(frames))
    return {f: min(part, p - targets.get(f, 0)) for f, part in zip(frames, salient, strict=True)}, targets


def exact_quotas(frames, budget, p):
    """The same with nothing lost: what exceeds a frame goes to the others, one token at a time."""
    anchors = frames[::-1][::4]
    context = min(max(int(budget * 0.4), 1), budget, len(anchors) * max(1, p // 2))

    def spread(count, most):
        parts = dict.fromkeys(most, 0)
        while count:
            free = [f for f in most if parts[f] < most[f]]
            least = min(parts[f] for f in free)
            parts[next(f for f in free if parts[f] == least)] += 1
            count -= 1
        return parts

    targets = spread(context, dict.fromkeys(anchors, max(1, p // 2)))
    return spread(budget - context, {f: p - targets.get(f, 0) for f in frames}), targets


def peaks(rows, count):
    """Return the `count` rows of largest density times distance."""
    n, d = rows.shape
    distance = [[math.sqrt(((rows[i] - rows[j]) ** 2).sum() / d) for j in range(n)] for i in range(n)]
    density = [math.exp(-exact(np.mean(sorted(v * v for v in distance[i])[:4]))) for i in range(n)]
    largest, peak = max(map(max, distance)), []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if (-density[j], j) < (-density[i], i)]
        peak.append(exact(density[i] * min(denser, default=largest)))
    return sorted(range(n), key=lambda i: (-peak[i], i))[:count]


def merged(x, a, first, last, salient, targets):
    """Return {token of the video: its new row} of a segment."""
    p = x.shape[1]
    best = {t: sorted(range(p), key=lambda i: (-a[t, i], i))[: salient.get(t, 0)] for t in range(first, last + 1)}
    pool = [(t, i) for t in range(first, last + 1) for i in range(p) if i not in best[t]]
    rows = {t * p + i: x[t, i] for t in best for i in best[t]}
    for t, count in targets.items():
        if count == 0:
            continue
        own = [i for i in range(p) if i not in best[t]]
        chosen = [own[i] for i in peaks(x[t, own], count)]
        joined = {i: [] for i in chosen}
        for s, j in pool:
            if not (s == t and j in joined):
                similar = [cosine(x[s, j], x[t, i]) for i in chosen]
                joined[chosen[similar.index(max(similar))]].append(x[s, j])
        for i in chosen:
            w = max(1 / (len(joined[i]) + 1), 0.6)
            rows[t * p + i] = w * x[t, i] + ((1 - w) * np.mean(joined[i], axis=0) if joined[i] else 0)
    return rows


def reference(tokens, k, fit, c=8):
    """Return {kept token: its row after merging}."""
    sizes = [t * h * w for t, h, w in tokens.grids]
    n, start, rows = sum(sizes), 0, {}
    for (t, h, w), share in zip(tokens.grids, remainders(k, sizes), strict=True):
        p, span = h * w, slice(start, start + t * h * w)
        x = tokens.features[span].double().view(t, p, -1).numpy()
        a = tokens.vit_attention["last"][span].view(t, p).numpy()
        found, s = segments_of(x, c, 0.84)
        budgets = remainders(share, [(last - first + 1) * p for first, last in found])
        for (first, last), budget in zip(found, budgets, strict=True):
            frames = runs_of(s, first, last, 0.95)
            if fit == "official":
                quotas = official_quotas(frames, (last - first + 1) * max(1, p * k // n), p)
            else:
                quotas = exact_quotas(frames if budget <= len(frames) * p else range(first, last + 1), budget, p)
            part = merged(x, a, first, last, *quotas)
            if fit == "official" and t == 1:
                part = dict(enumerate(x[0]))
            rows |= {start + i: row for i, row in part.items()}
        start = span.stop
    return dict(sorted(rows.items()))


def remainders(k, sizes):
    total = sum(sizes)
    parts = [k * size // total for size in sizes]
    for i in sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))[: k - sum(parts)]:
        parts[i] += 1
    while k >= len(sizes) and 0 in parts:
        parts[parts.index(max(parts))] -= 1
        parts[parts.index(0)] += 1
    return parts


def outcome(tokens, selection):
    rows = tokens.features[selection.kept].double()
    if selection.mix is not None:
        row, source, weight = selection.mix
        rows[row.unique()] = 0
        rows.index_add_(0, row, weight[:, None] * tokens.features[source].double())
    return dict(zip(selection.kept.tolist(), rows.numpy(), strict=True))


def moving(grids, d, seed, kind, change):
    """Return videos whose neighbouring frames are alike where `change` is small, with cuts to another scene."""
    tokens, start = sample(sum(t * h * w for t, h, w in grids), d, seed, kind, grids), 0
    for t, h, w in grids:
        x = tokens.features[start : start + t * h * w].view(t, h * w, d)
        for i in range(1, t):
            if (i + seed) % 5:  # else a new scene
                x[i] = x[i - 1] + change * x[i]
        start += t * h * w
    return tokens


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(
    120,
    grids=GRIDS,
    d=range(2, 8),
    share=SHARE,
    seed=SEEDS,
    kind=["normal", "positive", "duplicates", "zero_rows", "dark"],
    change=[0.0, 0.1, 0.3, 1.0],
    c=[1, 3, 8],
)
def test_keeps_and_merges_as_the_authors_do(fit, grids, d, share, seed, kind, change, c):
    tokens = moving(grids, d, seed, kind, change)
    n = len(tokens.features)
    k = min(n - 1, max(1, int(share * n)))
    got = outcome(tokens, FastVID(fit=fit, segments=c).select(tokens, k))
    expected = reference(tokens, k, fit, c)
    assert list(got) == list(expected)
    assert all(np.allclose(got[i], expected[i], atol=1e-9) for i in got)


def segmented(*lengths, p=196):
    """Return a video of different scenes of so many frames, in which frames of a scene are no run."""
    base, x = torch.eye(len(lengths) + sum(lengths)), []
    for number, length in enumerate(lengths):
        x += [3.5 * base[number] + base[len(lengths) + len(x) + i] for i in range(length)]  # cosine 0.92
    noise = 0.01 * torch.randn(len(x), p, len(base), generator=torch.Generator().manual_seed(0))
    tokens = torch.stack(x)[:, None] + noise
    attention = torch.rand(len(x) * p, generator=torch.Generator().manual_seed(1))
    return Tokens(tokens.flatten(0, 1), [(len(x), 1, p)], vit_attention={"last": attention})


def test_quotas_within_segments():
    """Of 19 tokens a frame: 7, 15 and 45 targets, of which each 4th frame, counted from the end, has its part."""
    method, tokens = FastVID(segments=3, fit="official"), segmented(1, 2, 6)
    selection = method.select(tokens, 19 * 9)
    counts = torch.bincount(selection.kept // 196, minlength=9).tolist()
    assert counts == [19, 12, 26, 12, 12 + 22, 12, 11, 11, 11 + 23]
    assert sum(counts) == 9 * 19
    targets = torch.bincount(selection.kept[selection.mix.row.unique()] // 196, minlength=9).tolist()
    assert targets == [7, 0, 15, 0, 22, 0, 0, 0, 23]
    assert torch.equal(FastVID(segments=3).select(tokens, 19 * 9).kept, selection.kept)


def test_a_still_video_keeps_the_last_frame_of_each_run():
    x = make_tokens(6, 4, seed=1).features
    tokens = Tokens(x.repeat(8, 1), [(8, 2, 3)], vit_attention={"last": torch.rand(48)})
    method = FastVID(segments=1)
    assert (method.select(tokens, 6).kept // 6).unique().tolist() == [7]
    assert len(method.select(tokens, 7).kept) == 7  # more than one frame holds: no frame is left out
    lossy = FastVID(segments=1, fit="official")
    assert len(lossy.select(tokens, 24).kept) == 6  # 24 asked for, one frame holds 6


def test_the_official_fit_loses_targets_that_exceed_half_of_a_frame():
    """One of 4 frames has the targets, 38 of 96 tokens, and holds 25 of them; the other 58 are salient."""
    counts = torch.bincount(FastVID(segments=1, fit="official").select(segmented(4, p=50), 98).kept // 50)
    assert counts.tolist() == [15, 15, 14, 14 + 25]
    assert FastVID(segments=1).select(segmented(4, p=50), 98).kept.shape == (98,)


def test_every_row_is_a_mean():
    tokens = make_tokens(72, grids=[(12, 2, 3)])
    selection = FastVID().select(tokens, 20)
    total = torch.zeros(20, dtype=torch.float64).index_add_(0, selection.mix.row, selection.mix.weight)
    assert total[selection.mix.row.unique()].tolist() == pytest.approx([1] * len(selection.mix.row.unique()))


@pytest.mark.parametrize("params", [{"segments": 0}, {"context": 1.5}, {"stride": 0}, {"beta": -0.1}])
def test_parameters_out_of_range_are_refused(params):
    with pytest.raises(ValueError, match=f"fastvid: {next(iter(params))} must be"):
        FastVID(**params)

"""Plain float64 programs for methods that merge over time, and videos in which some places stay still."""

from dataclasses import replace

import numpy as np
import torch

from methods.samples import make_tokens
from methods.tokens import num_tokens

VIDEOS = [
    [(5, 2, 3)],
    [(8, 1, 4)],
    [(9, 2, 2)],
    [(3, 4, 5)],
    [(1, 3, 6)],
    [(2, 1, 1)],
    [(4, 2, 2), (1, 2, 3), (3, 1, 5)],
    [(1, 2, 2), (1, 1, 3)],
]
KINDS = ["still", "scenes", "moving", "random"]


def exact(number):
    """Drop the last digits, in which equal numbers may differ."""
    return float(f"{number:.11e}")


def cosine(a, b):
    length = np.sqrt((a * a).sum() * (b * b).sum())
    return round(float((a * b).sum() / length), 12) if length else 0.0


def video(grids, seed, kind="scenes", d=5):
    """Return a sample with all signals at the input, of videos whose places are still, or change with the scene."""
    g, parts = torch.Generator().manual_seed(seed), []
    for t, h, w in grids:
        scene = torch.randint(0, 2 if kind == "scenes" else 1, (t,), generator=g).cumsum(0)
        base = torch.randn(t + 1, h * w, d, generator=g)[scene]
        noise = torch.rand(1 if kind == "still" else t, h * w, 1, generator=g) < {"moving": 0.7}.get(kind, 0.3)
        x = base + torch.randn(base.shape, generator=g) * torch.where(noise, 1.0, 0.1)
        parts.append((torch.randn(base.shape, generator=g) if kind == "random" else x).flatten(0, 1))
    n = num_tokens(grids)
    attention = {role: torch.rand(n, generator=g) for role in ("last", "middle", "after")}
    tokens = make_tokens(n, d, seed, grids=grids)
    return replace(tokens, features=torch.cat(parts), vit_attention=attention, at_input=True)


def clips_of(grids):
    """Yield the first token, T and P of each video."""
    start = 0
    for t, h, w in grids:
        yield start, t, h * w
        start += t * h * w


def shared(k, sizes):
    """Divide `k` in proportion to `sizes` by largest remainder; at least one each where `k` allows."""
    exactly = [k * size / sum(sizes) for size in sizes]
    parts = [int(share + 1e-9) for share in exactly]
    for i in sorted(range(len(sizes)), key=lambda i: (-round(exactly[i] - parts[i], 9), i))[: k - sum(parts)]:
        parts[i] += 1
    if k >= sum(size > 0 for size in sizes):
        for poor in [i for i, size in enumerate(sizes) if size and not parts[i]]:
            parts[parts.index(max(parts))] -= 1
            parts[poor] += 1
    return parts


def density_peaks(x, c, k):
    """Return centres and clusters of the rows of an array [n, d], point by point."""
    n, d = x.shape
    distance = [[np.sqrt(((x[i] - x[j]) ** 2).sum()) / np.sqrt(d) for j in range(n)] for i in range(n)]
    density = [np.exp(-exact(np.mean(sorted(distance[i][j] ** 2 for j in range(n))[:k]))) for i in range(n)]
    largest = max(map(max, distance))
    peak = []
    for i in range(n):
        denser = [j for j in range(n) if (-density[j], j) < (-density[i], i)]
        peak.append(exact(density[i] * min((distance[i][j] for j in denser), default=largest)))
    centres = sorted(range(n), key=lambda i: (-peak[i], i))[:c]
    nearest = [min(range(c), key=lambda r: (distance[i][centres[r]], r)) for i in range(n)]
    return centres, [centres.index(i) if i in centres else nearest[i] for i in range(n)]


def clusters(x, c, k):
    """Return {centre: the other members of its cluster} of the rows of an array [n, d]; alone where `c` is n."""
    if c >= len(x):
        return {i: [] for i in range(len(x))}
    centres, cluster = density_peaks(x, c, k)
    return {centre: [i for i in range(len(x)) if cluster[i] == r and i != centre] for r, centre in enumerate(centres)}


def merged_rows(tokens, selection):
    """Return {token: its row} of what is kept, as the harness merges it."""
    x = tokens.features.double()
    rows = x[selection.kept]
    if selection.mix is not None:
        for row in selection.mix.row.unique().tolist():
            parts = selection.mix.row == row
            rows[row] = (x[selection.mix.source[parts]] * selection.mix.weight[parts].double()[:, None]).sum(0)
    return dict(zip(selection.kept.tolist(), rows.numpy(), strict=True))


def assert_same_rows(got, expected):
    assert sorted(got) == sorted(expected)
    for token in got:
        np.testing.assert_allclose(got[token], expected[token], rtol=1e-9, atol=1e-9)

"""Every path of a kernel picks what its plain loop picks, in the same order, whatever ties."""

import logging

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import KINDS, sample

from methods.kernels.dpp import greedy_map
from methods.kernels.maxmin import maxmin
from methods.kernels.mmr import mmr
from methods.kernels.paths import using
from methods.kernels.rows import Rows
from methods.numerics import min_max

MORE = (*KINDS, "positive", "equal", "near", "mean")


def tokens_of(n, d, seed, kind):
    if kind not in MORE[len(KINDS) :]:
        return sample(n, d, seed, kind)
    tokens = sample(n, d, seed)
    x = tokens.features
    if kind == "positive":
        x.abs_()
    elif kind == "equal":
        x.copy_(x[:1].expand_as(x).clone())
    elif kind == "near":  # nearer than float32 products can tell
        x.copy_(x[:1] + 1e-6 * x)
    else:
        x += 3
    return tokens


def both(kernel):
    """What the kernel gives by the plain loop and by the CPU's own path, None where this one hands over."""
    with using("plain"):
        plain = kernel()
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    log = logging.getLogger("methods.kernels.paths")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with using("cpu"):
            fast = kernel()
    finally:
        log.removeHandler(handler)
    assert torch.equal(plain, fast)
    return None if seen else fast


CASES = {
    "n": st.integers(2, 150),
    "d": st.integers(1, 40),
    "share": st.floats(0, 1, exclude_max=True),
    "seed": st.integers(0, 9999),
    "kind": st.sampled_from(MORE),
}


@settings(deadline=None, max_examples=80)
@given(**CASES, lam=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_mmr_picks_what_the_plain_loop_picks(n, d, share, seed, kind, lam):
    tokens = tokens_of(n, d, seed, kind)
    importance = min_max(tokens.importance, 1e-6)
    both(lambda: mmr(Rows(tokens.features, 0.0, 1e-8), importance, max(1, int(share * n)), lam))


@settings(deadline=None, max_examples=80)
@given(**CASES, count=st.integers(0, 3))
def test_maxmin_picks_what_the_plain_loop_picks(n, d, share, seed, kind, count):
    tokens, k = tokens_of(n, d, seed, kind), max(1, int(share * n))
    first = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count] if 0 < count <= k else None
    both(lambda: maxmin(Rows(tokens.features), k, first))


@settings(deadline=None, max_examples=80)
@given(**CASES, levels=st.booleans())
def test_greedy_map_picks_what_the_plain_loop_picks(n, d, share, seed, kind, levels):
    tokens = tokens_of(n, d, seed, kind)
    quality = tokens.importance.round() if levels else tokens.importance
    both(lambda: greedy_map(Rows(tokens.features), (quality / 2).double().exp(), max(1, int(share * n))))

"""The naive hybrid against a transcription in exact arithmetic."""

from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal

import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import KINDS, is_farthest, sample, worked_example

from methods.fps import FPS
from methods.greedy import Greedy
from methods.hybrid import Hybrid


def is_hybrid(order, tokens, lam, mapping):
    k = len(order)
    n, lam = len(tokens.features), Decimal(str(lam))
    ranked = sorted(range(n), key=lambda i: (-tokens.importance[i].item(), i))
    if mapping == "quota":
        sure = int((lam * k).quantize(Decimal(1), ROUND_HALF_EVEN))
        return is_farthest(order, tokens.features, ranked[:sure])
    if mapping == "pool_linear":
        size = n - int((lam * (n - k)).quantize(Decimal(1), ROUND_HALF_UP))
    else:
        size = n if lam == 0 else min(n, int((k / lam).quantize(Decimal(1), ROUND_HALF_EVEN)))
    pool = sorted(ranked[:size])
    return is_farthest([pool.index(i) for i in order], tokens.features[pool])


@randomized(
    80,
    n=range(2, 19),
    d=range(1, 7),
    share=SHARE,
    seed=SEEDS,
    kind=KINDS,
    lam=[0, 0.1, 0.15, 0.25, 0.3, 0.5, 0.7, 0.75, 0.9, 1],
    mapping=["pool_linear", "pool_inverse", "quota"],
)
def test_same_order_as_in_exact_arithmetic(n, d, share, seed, kind, lam, mapping):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    assert is_hybrid(Hybrid(lam=lam, mapping=mapping).select(tokens, k).order.tolist(), tokens, lam, mapping)


@pytest.mark.parametrize(
    ("lam", "order"),
    [(0, [6, 3, 0, 4]), (0.25, [6, 3, 0, 7]), (0.5, [3, 6, 0, 7]), (0.75, [6, 3, 0, 7]), (1, [6, 3, 0, 1])],
)
def test_worked_example(lam, order):
    assert Hybrid(lam=lam).select(worked_example(), 4).order.tolist() == order


@pytest.mark.parametrize("mapping", ["pool_linear", "pool_inverse", "quota"])
@pytest.mark.parametrize("grids", [[(1, 12, 10)], [(1, 4, 5), (1, 10, 10)], [(6, 4, 5)]])
def test_ends_are_diversity_and_importance(mapping, grids):
    tokens = sample(120, 16, 4, grids=grids)
    for k in (1, 30, 119):
        assert torch.equal(Hybrid(lam=0, mapping=mapping).select(tokens, k).order, FPS().select(tokens, k).order)
        assert torch.equal(Hybrid(lam=1, mapping=mapping).select(tokens, k).kept, Greedy().select(tokens, k).kept)


def test_halves_of_the_pool_are_rounded_up_as_decimals():
    sizes = {lam: Hybrid(lam=lam).pool_size(20, 10) for lam in (0.05, 0.15, 0.25, 0.35, 0.45, 0.55)}
    assert sizes == {0.05: 19, 0.15: 18, 0.25: 17, 0.35: 16, 0.45: 15, 0.55: 14}

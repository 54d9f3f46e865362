"""IDPruner against a plain float64 transcription of Algorithm 1 of arXiv 2602.13315, and by its properties."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from probes import Largest
from properties import SEEDS, SHARE, randomized
from reference_selection import is_greedy, sample, worked_example

import methods
from methods.base import Tokens
from methods.kernels import cosine
from methods.kernels.cosine import STEP, CosineRows
from methods.scores import min_max, soft_top_k, top


def is_algorithm_1(order, features, logits, lam, parallel_k=1, epsilon=1e-6):
    """Whether `order` is greedy MMR by the whole N x N similarity in float64, as the paper writes it."""
    x = np.asarray(features, dtype=np.float64)
    w = np.asarray(logits, dtype=np.float64)
    imp = (w - w.min()) / (w.max() - w.min() + epsilon)
    x = x / (np.sqrt((x**2).sum(1)) + 1e-8)[:, None]
    s = np.array([[(a * b).sum() for b in x] for a in x])  # equal rows give equal entries, as a matrix product may not

    def scores(picked):
        seen = picked[: len(picked) // parallel_k * parallel_k]  # at the beginning of the round
        if not seen:
            return imp
        return lam * imp - (1 - lam) * s[seen].max(0)

    return is_greedy(order, [tuple(row) for row in x.tolist()], scores)


@randomized(
    150,
    n=range(2, 41),
    d=range(1, 25),
    share=SHARE,
    lam=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0],
    parallel_k=[1, 1, 2, 3, 7, 64],
    seed=SEEDS,
    kind=["normal", "duplicates", "zero_rows", "opposite", "positive", "constant", "outlier", "outlier_equal"],
)
def test_same_order_as_the_papers_algorithm(n, d, share, lam, parallel_k, seed, kind):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    got = methods.load("idpruner", lam=lam, parallel_k=parallel_k).select(tokens, k).order.tolist()
    assert len(got) == k
    assert is_algorithm_1(got, tokens.features, tokens.importance, lam, parallel_k)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.7])
def test_same_order_at_the_size_of_an_image(lam):
    tokens = sample(256, 64, 7)
    got = methods.load("idpruner", lam=lam).select(tokens, 64).order.tolist()
    assert is_algorithm_1(got, tokens.features, tokens.importance, lam)


@pytest.mark.parametrize(
    ("lam", "order"), [(0, [0, 4, 6, 3]), (0.1, [0, 5, 3, 6]), (0.5, [0, 3, 6, 1]), (0.9, [0, 1, 3, 6])]
)
def test_worked_example(lam, order):
    assert methods.load("idpruner", lam=lam).select(worked_example(), 4).order.tolist() == order


def test_defaults_are_the_papers():
    assert dataclasses.asdict(methods.load("idpruner")) == {
        "lam": 0.5,
        "parallel_k": 1,
        "importance": "raw",
        "soft_topk_ratio": 0.2,
        "epsilon": 1e-6,
    }


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_first_pick_is_the_most_important_whatever_lam(lam):
    tokens = sample(50, 8, 1)
    assert methods.load("idpruner", lam=lam).select(tokens, 1).kept.item() == tokens.importance.argmax()


@randomized(30, n=range(2, 61), seed=range(1000), share=SHARE)
def test_lam_1_is_top_k_of_importance(n, seed, share):
    tokens, k = sample(n, 5, seed, "levels"), max(1, int(share * n))
    expected = methods.load("visionselector").select(tokens, k).order
    assert torch.equal(methods.load("idpruner", lam=1.0).select(tokens, k).order, expected)


def test_lam_1_with_an_outlier_still_ranks_the_rest():
    tokens = dataclasses.replace(sample(3, 4, 0), importance=torch.tensor([1e30, 0.0, 1e-3]))
    assert methods.load("idpruner", lam=1.0).select(tokens, 2).order.tolist() == [0, 2]


@pytest.mark.parametrize("lam", [0.1, 0.5, 0.9])
def test_an_outlier_does_not_make_the_importance_of_equal_rows_tie(lam):
    tokens = Tokens(torch.ones(3, 4), [(1, 1, 3)], importance=torch.tensor([1e13, 0.0, 5.0]))
    assert methods.load("idpruner", lam=lam).select(tokens, 2).order.tolist() == [0, 2]


def test_copies_of_a_pick_come_last():
    tokens = sample(12, 16, 3, "positive")
    doubled = Tokens(tokens.features.repeat(2, 1), [(2, 1, 12)], importance=torch.zeros(24))
    assert sorted(methods.load("idpruner").select(doubled, 12).kept % 12) == list(range(12))


@pytest.mark.parametrize("parallel_k", [1, 3])
@pytest.mark.parametrize("copies", [4, 36, 129])
def test_equal_rows_tie_exactly(copies, parallel_k):
    """A matrix-vector product may add up its last rows in another order, and equal rows then differ by rounding."""
    method = methods.load("idpruner", lam=0.3, parallel_k=parallel_k)
    for seed in range(20):
        first, others = torch.randn(2, 33, generator=torch.Generator().manual_seed(seed))
        rows = torch.cat([first[None], others.repeat(copies, 1)])
        importance = torch.zeros(copies + 1).index_fill_(0, torch.tensor([0]), 1.0)
        tokens = Tokens(rows, [(1, 1, copies + 1)], importance=importance)
        assert method.select(tokens, 4).order.tolist() == [0, 1, 2, 3]


def test_many_tokens_never_form_the_similarity_of_all_pairs(monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", 499)
    tokens = sample(500, 4, 0)
    with Largest() as seen:
        methods.load("idpruner").select(tokens, 50)
    assert seen.numel <= 500 * 4


def released_loop(features, logits, k, lam, parallel_k):
    """The rounds of the released code, the first one included, in float64."""
    x = features.double()
    x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
    similarity, imp, picked = x @ x.T, min_max(logits, 1e-6), []
    nearest = torch.full((len(x),), -2.0, dtype=torch.float64)
    while len(picked) < k:
        score = lam * imp - (1 - lam) * nearest if picked else imp.clone()
        score[picked] = -torch.inf
        latest = score.topk(min(parallel_k, k - len(picked))).indices
        picked += latest.tolist()
        nearest = torch.maximum(nearest, similarity[:, latest].max(dim=1).values)
    return picked


@pytest.mark.parametrize("name", ["idpruner", "qmmr"])
@pytest.mark.parametrize(("k", "parallel_k"), [(50, 1), (50, 7), (50, 10), (50, 64), (3, 5), (99, 4)])
def test_every_round_of_the_released_code_takes_parallel_k(name, k, parallel_k):
    tokens = sample(100, 6, 4, "positive")
    params = {"share": 0.0} if name == "qmmr" else {}
    order = methods.load(name, parallel_k=parallel_k, **params).select(tokens, k).order.tolist()
    assert order == released_loop(tokens.features, tokens.importance, k, 0.5, parallel_k)
    assert order[:parallel_k] == tokens.importance.argsort(descending=True)[: min(parallel_k, k)].tolist()


def test_soft_topk_importance_changes_the_trade_off_only():
    tokens = sample(50, 6, 9)
    raw, soft = (methods.load("idpruner", importance=kind, lam=0.5) for kind in ("raw", "soft_topk"))
    assert raw.select(tokens, 25).order.tolist() != soft.select(tokens, 25).order.tolist()
    weights = soft_top_k(tokens.importance, 10.0)
    assert is_algorithm_1(soft.select(tokens, 25).order.tolist(), tokens.features, weights, 0.5)


@randomized(60, n=range(1, 301), ratio=st.floats(0.01, 0.99), scale=[0.0, 0.1, 5.0], seed=range(100))
def test_soft_top_k_sums_to_k_and_keeps_the_order(n, ratio, scale, seed):
    logits = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale - 3
    p = soft_top_k(logits, ratio * n)
    assert p.sum().item() == pytest.approx(ratio * n, rel=1e-3)
    assert (p[logits.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("n", [5, 33, 34, 67])
def test_soft_top_k_of_equal_logits_is_equal(n):
    """A sigmoid may round its last elements otherwise than the rest, which would decide ties."""
    for i in range(50):
        assert soft_top_k(torch.full((n,), i / 7 - 3), n * (i + 1) / 52).unique().numel() == 1


def test_soft_top_k_stays_finite_where_logits_are_huge():
    largest = torch.finfo(torch.float32).max
    for logits in ([largest, -largest, 0.0], [largest] * 3, [-largest] * 3):
        p = soft_top_k(torch.tensor(logits), 1.0)
        assert ((p >= 0) & (p <= 1)).all()
        assert 0.9 <= p.sum() <= 1.6  # as near to 1 as the spacing of such numbers allows


def test_min_max_of_the_widest_span_is_finite():
    largest = torch.finfo(torch.float32).max
    assert min_max(torch.tensor([-largest, 0.0, largest]), 1e-6).tolist() == [0.0, 0.5, 1.0]
    assert min_max(torch.full((3,), 7.0), 1e-6).tolist() == [0.0, 0.0, 0.0]


def test_soft_top_k_ties_as_float32_does():
    """1 + exp(-x) moves in steps of 2^-23 near 1: logits some 16 above the threshold tie before the weight is 1."""
    for seed in range(60):
        logits = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 40
        low, high = -logits.max() - 10, -logits.min() + 10
        for _ in range(64):
            middle = (low + high) / 2
            low, high = (low, middle) if torch.sigmoid(logits + middle).sum() > 4.0 else (middle, high)
        published = torch.sigmoid(logits + (low + high) / 2)
        assert top(soft_top_k(logits, 4.0), 40).tolist() == top(published, 40).tolist()


def test_a_constant_is_added_to_the_length_of_rows():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e38, -3e38], [1e-45, 0.0]])
    norms = CosineRows(x, floor=0.0, plus=1e-8).unit.norm(dim=1) * STEP**0.5
    assert norms[:3].tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert 0 <= norms[3] < 1e-30

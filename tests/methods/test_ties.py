"""What exact arithmetic finds equal is equal for the shared kernels: rounding errors do not decide between tokens."""

import pytest
import torch

from methods.holov import quotas, spread
from methods.kernels import cosine
from methods.kernels.attention import attention_row, attention_rows
from methods.kernels.cosine import Cosine, directions, nearest_row, snap


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("copies", [4, 36, 129])
def test_equal_rows_have_equal_cosines(copies, table):
    for seed in range(20):
        first, others = torch.randn(2, 33, generator=torch.Generator().manual_seed(seed))
        cosine = Cosine(directions(torch.cat([first[None], others.repeat(copies, 1)])), table)
        for picks in ([0], [1], [0, 1, copies]):
            assert all(row[1:].unique().numel() == 1 for row in cosine(torch.tensor(picks)))


def test_cosine_of_zero_huge_and_tiny_rows():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e38, -3e38], [-3.0, -4.0], [3e-30, 4e-30]])
    assert Cosine(directions(rows))(torch.tensor([0, 1])).tolist() == [
        [1, 0, pytest.approx(-(0.02**0.5)), -1, 0],
        [0] * 5,
    ]


@pytest.mark.parametrize("tile", [1, 2**24])
def test_the_first_of_equally_similar_rows_is_nearest(monkeypatch, tile):
    monkeypatch.setattr(cosine, "TILE", tile)
    for seed in range(20):
        x = torch.randn(6, 33, generator=torch.Generator().manual_seed(seed))
        others = torch.cat([0 * x[:1], x[1:3], 2 * x[1:4], x[1:3]])
        rows = torch.cat([x[1:4], 1e-30 * x[3:4], 1e30 * x[2:3], 0 * x[:1]])
        assert nearest_row(rows, others).tolist() == [1, 2, 5, 5, 2, 0]
        similar = torch.cosine_similarity(x[:, None].double(), others[None].double(), dim=-1)
        assert nearest_row(x, others).tolist() == similar.round(decimals=10).argmax(dim=1).tolist()


@pytest.mark.parametrize("s", [5, 36, 131])
def test_equal_keys_receive_equal_attention(s):
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        q, first, others = (torch.randn(6, 1, 33, generator=g) for _ in range(3))
        k = torch.cat([first, others.expand(-1, s, -1)], dim=1)[:2]
        received = attention_row(q[:, 0], k)
        assert received.sum() == pytest.approx(1)
        assert received[1:].unique().numel() == 1
        rows = attention_rows(q.expand(-1, 2, -1), k, torch.tensor([s, s // 2]))
        torch.testing.assert_close(rows[:, 0].mean(dim=0), received, rtol=1e-12, atol=0)
        assert rows[:, 1].sum(dim=1).tolist() == pytest.approx([1] * 6)
        assert all(head[1 : s // 2 + 1].unique().numel() == 1 and not head[s // 2 + 1 :].any() for head in rows[:, 1])


def test_snap_keeps_order_scale_and_sign_and_drops_last_bits():
    x = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp2().sort().values
    for scale in (1.0, 1e-300, 1e300):
        rounded = snap(x * scale)
        assert (rounded.diff() >= 0).all()
        assert ((rounded / (x * scale) - 1).abs() < 2**-40).all()
        assert torch.equal(snap(-x * scale), -rounded)
        assert torch.equal(snap(rounded), rounded)
    near = torch.tensor([1 - 2**-53, 1.0, 1 + 2**-52], dtype=torch.float64)
    assert snap(near).tolist() == [1, 1, 1]
    assert snap(torch.zeros(2, dtype=torch.float64)).tolist() == [0, 0]


def test_snap_makes_a_tie_of_what_was_added_up_in_another_order():
    x = torch.randn(257, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums = torch.stack([x[:, torch.randperm(33)].abs().sum(dim=1) for _ in range(9)])
    assert sums.diff(dim=0).abs().max() > 0
    assert snap(sums).diff(dim=0).abs().max() == 0


@pytest.mark.parametrize("bands", [3, 7, 11])
def test_equal_bands_share_alike_whatever_the_last_bits_of_their_attention(bands):
    size = torch.tensor([4] * bands)[:, None]
    for seed in range(5):
        bits = torch.randint(-2, 3, (bands, 1), generator=torch.Generator().manual_seed(seed)).double()
        for k in range(1, 4 * bands):
            quota = quotas(0.1 * (1 + bits * 2.0**-52), size, k, 1.0).flatten().tolist()
            assert quota == [k // bands + (i < k % bands) for i in range(bands)]


def test_bands_of_nothing_share_by_size():
    size = torch.tensor([3, 3, 2, 2, 2])[:, None]
    for tau in (1.0, 2.0):
        assert quotas(torch.zeros(5, 1, dtype=torch.float64), size, 4, tau).flatten().tolist() == [2, 2, 0, 0, 0]


def test_equal_rows_have_equal_spread():
    unit = directions(torch.randn(1, 33, generator=torch.Generator().manual_seed(0)).expand(37, -1))
    v = snap(spread(unit, torch.arange(37)[None], torch.ones(1, 37, dtype=torch.bool)))
    assert v.unique().numel() == 1
    assert v[0, 0] == pytest.approx(1 / 36)  # all cosines are 1, but that of a token with itself counts as 0

"""The streamed attention score against the dense one, for every definition and tile, and how much memory it takes."""

from dataclasses import replace

import pytest
import torch
from probes import Largest

from harness.models.attention import attention_received
from methods.base import OFFICIAL, PAPER, AttentionSpec
from methods.kernels.attention import TILE, received_by_keys

SCALE = 0.3


def random_qk(heads=3, rows=37, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, heads, rows, dim, generator=generator, dtype=torch.float64)


def dense(q, k):
    return (SCALE * q @ k.mT).softmax(-1).mean(0).sum(0)


@pytest.mark.parametrize("tile", [1, 29, 37, 38, 111, 200, 4 * 37 * 3, 2**24])
def test_every_tile_gives_the_dense_score(tile):
    q, k = random_qk()
    torch.testing.assert_close(received_by_keys(q, k, SCALE, tile), dense(q, k), atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (50, 1), (7, 13)])
def test_other_numbers_of_queries_than_keys(queries, keys):
    q, k = random_qk(rows=50)
    q, k = q[:, :queries], k[:, :keys]
    torch.testing.assert_close(received_by_keys(q, k, SCALE, 64), dense(q, k), atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    q, k = random_qk().to(dtype)
    scores = received_by_keys(q, k, SCALE)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), dense(q.double(), k.double()), atol=1e-5, rtol=1e-5)


def test_large_logits_do_not_overflow():
    q, k = 300 * random_qk().float()
    scores = received_by_keys(q, k, SCALE)
    torch.testing.assert_close(scores.double(), dense(q.double(), k.double()), atol=1e-2, rtol=1e-2)
    assert scores.sum() == pytest.approx(37)


@pytest.mark.parametrize(("rows", "bound"), [(200, 1024), (600, 1024), (2000, 2000 * 4)])
def test_nothing_is_larger_than_a_tile_or_what_came_in(rows, bound, monkeypatch):
    q, k = random_qk(heads=2, rows=rows, dim=2)
    with Largest() as seen:
        received_by_keys(q, k, SCALE, 1024)
    assert seen.numel <= max(bound, q.numel())
    assert seen.numel < 2 * rows**2


class TestDefinitions:
    """The first row is CLS where there is one."""

    def test_official_with_cls(self):
        q, k = random_qk()
        expected = (SCALE * q[:, :1] @ k.mT).softmax(-1).mean(0)[0, 1:]
        torch.testing.assert_close(attention_received(q, k, SCALE, OFFICIAL, True), expected)

    def test_paper_with_cls_leaves_its_key_out_of_the_softmax(self):
        q, k = random_qk()
        expected = (SCALE * q[:, :1] @ k[:, 1:].mT).softmax(-1).mean(0)[0]
        scores = attention_received(q, k, SCALE, PAPER, True)
        torch.testing.assert_close(scores, expected)
        assert scores.sum() == pytest.approx(1)
        assert not torch.allclose(attention_received(q, k, SCALE, OFFICIAL, True), scores)

    def test_all_queries_with_cls(self):
        q, k = random_qk()
        torch.testing.assert_close(attention_received(q, k, SCALE, AttentionSpec(queries="all"), True), dense(q, k)[1:])

    @pytest.mark.parametrize("has_cls", [True, False])
    def test_paper_rounds_the_mean_query_too(self, has_cls):
        q, k = random_qk().bfloat16()
        spec = replace(PAPER, mean_query_from=37)
        query, keys = (q[:, :1], k[:, 1:]) if has_cls else (q.mean(1, keepdim=True), k)
        expected = (query @ keys.mT / (1 / SCALE)).softmax(-1).mean(0)[0]
        assert torch.equal(attention_received(q, k, SCALE, spec, has_cls), expected)
        wide = attention_received(q.float(), k.float(), SCALE, spec, has_cls)
        assert not torch.equal(wide, expected.float())
        torch.testing.assert_close(wide, expected.float(), atol=0.01, rtol=0.05)

    @pytest.mark.parametrize("wanted", [OFFICIAL, PAPER, AttentionSpec(queries="all")])
    def test_without_cls_all_queries_are_summed(self, wanted):
        q, k = random_qk()
        torch.testing.assert_close(attention_received(q, k, SCALE, wanted, False), dense(q, k))

    def test_paper_takes_the_mean_query_from_6144_patches_on(self):
        for rows, shortcut in ((6143, False), (6144, True)):
            q, k = random_qk(heads=1, rows=rows, dim=2).float()
            mean = (SCALE * q.mean(1, keepdim=True) @ k.mT).softmax(-1).mean(0)[0]
            scores = attention_received(q, k, SCALE, PAPER, False)
            assert torch.allclose(scores, mean, rtol=1e-4) == shortcut
            assert scores.sum() == pytest.approx(1 if shortcut else rows, rel=1e-4)
            assert attention_received(q, k, SCALE, OFFICIAL, False).sum() == pytest.approx(rows, rel=1e-4)

    def test_the_bound_of_a_tile_is_what_the_module_says(self):
        assert TILE == 2**24

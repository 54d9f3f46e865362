"""SparseVLM against plain transcriptions of its definition, and its counts against the authors' tables."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from kernels.test_density_peaks import by_definition
from layer_samples import best, layer_tokens
from properties import SEEDS, SHARE, randomized
from test_schedules import tokens_per_layer

from methods.base import Cut
from methods.samples import survivors
from methods.sparsevlm import SparseVLM

GRIDS = ([(1, 6, 7)], [(1, 4, 5), (1, 3, 6)], [(3, 2, 3)], [(1, 8, 9)])
ROWS = {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}  # of v1.5, with merged ones
PLUS = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}
HONEST = {"v1.5": (206.5, 145.4, 114.1, 82.3), "plus": (206.8, 144.1, 113.9, 81.8)}


def sample(grids, seed, heads=(4, 2), kind="normal", scale=1.0, text=9, d=8):
    """Return a sample with rotary positions and the embeddings of the text behind the picture."""
    tokens = layer_tokens(grids, seed, text=text, heads=heads[0], kv=heads[1], d=d, kind=kind, scale=scale)
    state = tokens.llm
    length, behind = len(state.hidden), len(state.hidden) - 1 - int(state.visual_idx[-1])
    words = torch.randn(behind, tokens.features.shape[1], generator=torch.Generator().manual_seed(seed + 1))
    ones = torch.tensor(np.array([rotated(i, d) for i in range(length)]))
    return dataclasses.replace(tokens, llm=dataclasses.replace(state, rotated_ones=ones), text_after=words)


def rotated(position, d):
    angles = [position / 10_000 ** (f / (d // 2)) for f in range(d // 2)]
    return [np.cos(a) - np.sin(a) for a in angles] + [np.cos(a) + np.sin(a) for a in angles]


def raters_of(features, words):
    """Return indices among the words."""
    v, q = features.double().numpy(), words.double().numpy()
    total = np.zeros(len(q))
    for row in v:
        logits = np.array([row @ word for word in q])
        weights = np.exp(logits - logits.max())
        total += weights / weights.sum() / len(v)
    return [j for j in range(len(q)) if total[j] > 1 / len(q) + 1e-12] or [len(q) - 1]


def attention_to(state, row):
    """Return the attention [H, S] of one row to the rows up to it."""
    q, k = state.q[:, row].double().numpy(), state.k.double().numpy()
    result = np.zeros((len(q), k.shape[1]))
    for head, query in enumerate(q):
        logits = k[head * len(k) // len(q)][: row + 1] @ query / np.sqrt(len(query))
        weights = np.exp(logits - logits.max())
        result[head, : row + 1] = weights / weights.sum()
    return result


def scores_of(tokens, raters, plus=False):
    """Return the score of each visual token, and the raters' attention [R, N]."""
    state, visual = tokens.llm, tokens.llm.visual_idx.tolist()
    length, d = state.q.shape[1:]
    maps = []
    for rater in raters:
        row = length - len(tokens.text_after) + rater
        rates = attention_to(state, row)[:, visual]
        if plus:
            angles = np.array([1 / 10_000 ** (f / (d // 2)) for f in range(d // 2)])
            alone = np.array([2 / np.sqrt(d) * np.cos((row - i) * angles).sum() for i in visual])
            rates = rates / np.maximum(alone, 0.01 * np.sqrt(d))
        maps.append(rates)
    maps = np.array(maps)  # [R, H, N]
    heads = range(maps.shape[1])
    if plus:
        heads = best(maps.sum(axis=(0, 2)), -(-14 * len(heads) // 32))
    return maps[:, list(heads)].mean(axis=(0, 1)), maps.mean(axis=1)


def recycled(tokens, scores, kept):
    """Return the tokens that stay, and the weights {(centre, member): weight} of merged ones."""
    n = len(scores)
    chosen = best(scores, kept)
    rest = [i for i in best(scores, n) if i not in chosen][: int(0.3 * (n - kept)) + 1]
    c = int(len(rest) / 10) + 1
    hidden = tokens.llm.hidden[tokens.llm.visual_idx].double().numpy()
    centres, cluster = by_definition(hidden[rest], c, c)
    weights = {
        (rest[centres[number]], token): 1 / (cluster.count(number) + 1e-6)
        for token, number in zip(rest, cluster, strict=True)
    }
    return sorted(chosen + [rest[i] for i in centres]), weights


def weights_of(selection):
    row, source, weight = (part.tolist() for part in selection.mix)
    return {(selection.kept[r].item(), s): w for r, s, w in zip(row, source, weight, strict=True)}


@randomized(
    40,
    grids=GRIDS,
    share=SHARE,
    heads=[(4, 4), (6, 1)],
    text=[3, 9, 20],
    kind=["normal", "duplicates", "zero"],
    seed=SEEDS,
)
def test_three_cuts_are_those_of_the_definition(grids, share, heads, text, kind, seed):
    tokens = sample(grids, seed, heads, kind, text=text)
    raters = raters_of(tokens.features, tokens.text_after)
    for _ in range(3):
        n = len(tokens.features)
        kept = max(1, int(share * (n - 1)))
        scores, _ = scores_of(tokens, raters)
        expected, weights = recycled(tokens, scores, kept)
        if len(expected) == n:
            break
        selection = SparseVLM().select(tokens, len(expected))
        if len(recycled(tokens, scores, kept + 1)[0]) == len(expected):
            break  # one more token and one cluster less are as many, and are taken
        assert selection.kept.tolist() == expected
        assert weights_of(selection) == pytest.approx(weights)
        tokens = survivors(tokens, selection)


@randomized(40, grids=GRIDS, share=SHARE, heads=[(4, 4), (6, 1), (32, 8)], seed=SEEDS)
def test_plus_corrects_attention_and_merges_nothing(grids, share, heads, seed):
    tokens = sample(grids, seed, heads)
    raters = raters_of(tokens.features, tokens.text_after)
    k = max(1, int(share * len(tokens.features)))
    selection = SparseVLM(variant="plus").select(tokens, k)
    assert selection.kept.tolist() == sorted(best(scores_of(tokens, raters, plus=True)[0], k))
    assert selection.mix is None
    # At a later cut rows are at the positions that they had: the picture's end comes no nearer to the text.
    later, gone = survivors(tokens, selection), len(tokens.features) - k
    assert torch.equal(later.llm.rotated_ones[-1], tokens.llm.rotated_ones[-1])
    assert len(later.llm.rotated_ones) == len(tokens.llm.rotated_ones) - gone


@randomized(30, grids=GRIDS, scale=[0.3, 0.8, 3.0, 13.5], bias=[0.0, 6.0], text=[4, 12], seed=SEEDS)
def test_the_rule_of_the_first_release_keeps_as_many_as_the_rank(grids, scale, bias, text, seed):
    tokens = sample(grids, seed, text=text)
    n = len(tokens.features)
    scores, block = scores_of(tokens, raters_of(tokens.features, tokens.text_after))
    rank = int(np.linalg.matrix_rank(block.astype(np.float32)))
    kept = max(1, min(int(rank * scale + bias), n - 1))
    selection = SparseVLM(count="rank", scale=scale, bias=bias).select(tokens, 1)
    assert selection.kept.tolist() == (recycled(tokens, scores, kept)[0] if rank < n else list(range(n)))


def test_raters_move_with_the_text_and_are_chosen_once():
    tokens = sample([(1, 6, 7)], 3)
    first = SparseVLM().select(tokens, 20)
    later = survivors(tokens, first)
    other = dataclasses.replace(later, features=torch.randn_like(later.features), text_after=later.text_after.flip(0))
    assert first.memory.tolist() == [len(tokens.text_after) - j for j in raters_of(tokens.features, tokens.text_after)]
    assert SparseVLM().select(other, 8).kept.tolist() == SparseVLM().select(later, 8).kept.tolist()


@pytest.mark.parametrize("words", [0, 1, 5])
def test_where_no_word_stands_out_the_last_row_rates(words):
    tokens = sample([(1, 6, 7)], 3)
    flat = dataclasses.replace(tokens, text_after=torch.ones(words, tokens.features.shape[1]))
    assert SparseVLM().select(flat, 20).memory.tolist() == [1]


@pytest.mark.parametrize("nominal", ROWS)
def test_counts_of_the_tables(nominal):
    cuts = SparseVLM(budget_at="official").cuts(576, nominal, 32)
    assert cuts == tuple(Cut(layer, k) for layer, k in zip((2, 6, 15), ROWS[nominal], strict=True))
    plus = SparseVLM(variant="plus", budget_at="official").cuts(576, nominal, 32)
    assert plus == tuple(Cut(layer, k) for layer, k in zip((2, 6, 15), PLUS[nominal], strict=True))
    place = list(ROWS).index(nominal)
    for variant, schedule in (("v1.5", cuts), ("plus", plus)):
        assert float(tokens_per_layer(576, schedule, 32)) == pytest.approx(HONEST[variant][place], abs=0.06)
    # As the releases count: the cut layers as if already pruned.
    early = [Cut(cut.layer - 1, cut.k) for cut in cuts]
    assert float(tokens_per_layer(576, early, 32)) == pytest.approx(nominal, abs=1)


def test_merged_tokens_of_the_worked_example():
    tokens = sample([(1, 24, 24)], 0, text=20)
    for k, kept, merged, clusters in ((82, 66, 154, 16), (32, 30, 16, 2), (18, 17, 5, 1)):
        selection = SparseVLM().select(tokens, k)
        assert (len(selection.mix.source), len(selection.mix.row.unique())) == (merged, clusters)
        assert len(selection.kept) - clusters == kept
        tokens = survivors(tokens, selection)


def test_other_budgets_are_solved_in_the_way_of_the_releases():
    cuts = SparseVLM(budget_at="official").cuts(576, 100, 32)
    mean = tokens_per_layer(576, [Cut(cut.layer - 1, cut.k) for cut in cuts], 32)
    assert 99 < mean <= 100
    assert SparseVLM(budget_at="official").cuts(2880, 320, 32)[0] == Cut(2, 407)  # five times 66, and 77 clusters


def test_where_it_cuts():
    assert [cut.layer for cut in SparseVLM().cuts(576, 192, 28)] == [2, 5, 13]
    assert [cut.layer for cut in SparseVLM(count="rank").cuts(576, 192, 32)] == [2, 6, 15, 19]
    assert [cut.layer for cut in SparseVLM(count="rank").cuts(576, 192, 4)] == [0, 1, 2]
    assert SparseVLM(count="rank").cuts(3, 2, 32) == (Cut(15, 2), Cut(19, 1))
    assert (SparseVLM().reads, SparseVLM().hidden_state) == ("this", "output")
    assert not SparseVLM(count="rank").exact_k


def test_a_table_is_scaled_to_the_mean():
    for k in (64, 100, 192):
        for variant in ("v1.5", "plus"):
            assert k - 1 < tokens_per_layer(576, SparseVLM(variant=variant).cuts(576, k, 32), 32) <= Fraction(k)


def test_plus_says_what_it_misses():
    tokens = layer_tokens([(1, 3, 3)])
    tokens = dataclasses.replace(tokens, text_after=torch.randn(4, 6))
    with pytest.raises(ValueError, match="needs the rotary positions"):
        SparseVLM(variant="plus").select(tokens, 4)

"""VLM-Pruner against a plain transcription, for what is kept and for what becomes of the others."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from layer_samples import best, layer_tokens
from properties import SEEDS, SHARE, randomized

from harness.pruning.gather import mixed
from methods import vlmpruner
from methods.base import Mix
from methods.kernels.cosine import Cosine
from methods.vlmpruner import VLMPruner

GRIDS = ([(1, 6, 7)], [(1, 4, 5), (1, 3, 6)], [(3, 3, 5)], [(2, 3, 4), (1, 1, 1), (1, 4, 5)])


def places_of(grids):
    """Return (image or step, row, column, diagonal) of each token."""
    steps = [(h, w) for t, h, w in grids for _ in range(t)]
    return [(s, i // w, i % w, math.hypot(h, w)) for s, (h, w) in enumerate(steps) for i in range(h * w)]


def compared(states, channels=256):
    """Return the rows of the channels of largest variance."""
    columns = list(zip(*states, strict=True))
    variances = [sum((x - sum(c) / len(c)) ** 2 for x in c) / len(c) for c in columns]
    return [[row[i] for i in best(variances, channels)] for row in states]


def original(keys, states, grids, k, pivots=4, theta=0.8, batch=16, to_k=True):
    """Return the kept tokens in the order picked, and the similarity [N][N]."""
    n, places = len(states), places_of(grids)
    rows = np.array(compared(states))
    rows /= np.maximum(np.sqrt((rows * rows).sum(axis=1, keepdims=True)), 1e-8)
    c = [[round(float(value), 12) for value in (rows * row).sum(axis=1)] for row in rows]
    kept = best([sum(map(abs, key)) for key in keys], 1)
    while len(kept) < min(pivots, k):
        away = [min(math.dist(keys[i], keys[j]) for j in kept) for i in range(n)]
        kept += best([-1 if i in kept else away[i] for i in range(n)], 1)

    def b(i):
        apart = [
            math.hypot(places[i][1] - y, places[i][2] - x) / diagonal if places[i][0] == step else 1.0
            for step, y, x, diagonal in (places[j] for j in kept)
        ]
        return max(c[i][j] for j in kept) * (1 + 0.5 * min(apart))

    for number in range(99):
        if len(kept) == k:
            break
        left = sorted((i for i in range(n) if i not in kept), key=lambda i: (b(i), i))
        before = len(kept)
        for start in range(0, len(left), batch):
            values = {i: b(i) for i in left[start : start + batch]}
            low = [i for i in values if values[i] < theta + number / 10]
            if len(kept) + len(low) > k:
                kept += sorted(values, key=lambda i: (values[i], i))[: k - len(kept)]
                break
            kept += low
            if start == 0 and not low:
                break
        if len(kept) == before and not to_k:
            break
    return kept, c


def recovered(states, kept, c):
    """Return the rows of `states` that stay, ascending, with what they recover."""
    kept, rows = sorted(kept), []
    nearest = [kept[best([c[i][j] for j in kept], 1)[0]] for i in range(len(states))]
    for s in kept:
        weights = {i: max(c[i][s], 0.0) for i in range(len(states)) if i not in kept and nearest[i] == s}
        total = sum(weights.values())
        row = np.asarray(states[s], dtype=np.float64)
        if total > 0:
            parts = sum(weight * np.asarray(states[i], dtype=np.float64) for i, weight in weights.items())
            row = 0.3 * row + 0.7 * parts / max(total, 1e-8)
        rows.append(row)
    return np.array(rows)


def inputs_of(tokens):
    visual = tokens.llm.visual_idx
    keys = tokens.llm.k[:, visual].double().transpose(0, 1).flatten(1)
    return keys.tolist(), tokens.llm.hidden[visual].double().tolist()


CASES = {
    "grids": GRIDS,
    "kind": ["normal", "duplicates", "zero"],
    "seed": SEEDS,
    "theta": [0.3, 0.8],
    "batch": [1, 4, 16],
}


@randomized(60, share=SHARE, width=[3, 6], fit=["k", "official"], **CASES)
def test_same_tokens_and_rows_as_the_authors_algorithm(grids, kind, seed, theta, batch, share, width, fit):
    tokens = layer_tokens(grids, seed, width=width, kind=kind)
    k = max(1, int(share * len(tokens.features)))
    keys, states = inputs_of(tokens)
    order, c = original(keys, states, grids, k, theta=theta, batch=batch, to_k=fit == "k")
    selection = VLMPruner(theta=theta, batch=batch, fit=fit).select(tokens, k)
    assert selection.order.tolist() == order
    assert len(order) == k or fit == "official"
    rows = mixed(torch.tensor(states), selection.kept, selection.mix)
    np.testing.assert_allclose(rows.numpy(), recovered(states, order, c), atol=1e-5)


def test_the_released_settings_on_one_picture_of_llava():
    tokens = layer_tokens([(1, 24, 24)], 3, width=12)
    keys, states = inputs_of(tokens)
    assert VLMPruner().select(tokens, 64).order.tolist() == original(keys, states, [(1, 24, 24)], 64)[0]


def test_only_the_channels_of_largest_variance_are_compared():
    tokens = layer_tokens([(1, 5, 5)], 4, width=300)
    hidden = tokens.llm.hidden * torch.linspace(0.5, 2, 300)[torch.randperm(300)]
    tokens = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=hidden))
    keys, states = inputs_of(tokens)
    order = VLMPruner().select(tokens, 12).order.tolist()
    assert order == original(keys, states, [(1, 5, 5)], 12)[0]
    silenced = hidden.clone()
    silenced[:, best(hidden[tokens.llm.visual_idx].double().var(dim=0).tolist(), 300)[256:]] = 0
    silenced = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=silenced))
    assert VLMPruner().select(silenced, 12).order.tolist() == order


def test_a_token_is_refused_while_it_buffers_and_taken_in_the_next_pass():
    """A cosine of 0.7 at 12 cells counts as 0.7 (1 + 6 / 33.94) = 0.824."""
    alike = np.ones((576, 576))
    alike[0, 12] = 0.7
    kept = vlmpruner._Kept(lambda tokens: alike[tokens], vlmpruner._distance([(1, 24, 24)]), np.array([0]))
    assert kept.buffered(np.array([12])).item() == pytest.approx(0.824, abs=5e-4)
    VLMPruner()._pass(kept, 0.8, 9)
    assert kept.order.tolist() == [0]
    VLMPruner()._pass(kept, 0.9, 9)
    assert kept.order.tolist() == [0, 12]


def test_a_kept_token_recovers_the_weighted_mean_of_those_that_join_it():
    unit = torch.tensor([[1.0, 0.0], [0.9, 0.19**0.5], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    mix = vlmpruner._recover(Cosine(unit), torch.tensor([0]), 4)
    values = torch.tensor([[1.0], [3.0], [6.0], [100.0]])  # the last is unlike it, and joins nothing
    assert mixed(values, torch.tensor([0]), mix).item() == pytest.approx(3.24)


def test_a_row_that_nothing_joins_stays_bit_for_bit():
    unit = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    mix = vlmpruner._recover(Cosine(unit), torch.tensor([0, 1]), 3)
    rows = torch.tensor([[0.1, 1 / 3], [1.0, 2.0], [3.0, 4.0]])
    assert isinstance(mix, Mix)
    assert torch.equal(mixed(rows, torch.tensor([0, 1]), mix)[0], rows[0])


def test_equal_states_end_with_the_pivots_unless_k_is_asked_for():
    tokens = layer_tokens([(1, 5, 5)])
    equal = dataclasses.replace(tokens.llm, hidden=tokens.llm.hidden[:1].expand(len(tokens.llm.hidden), -1) * 1.0)
    tokens = dataclasses.replace(tokens, llm=equal)
    official, ours = (VLMPruner(fit=fit).select(tokens, 11) for fit in ("official", "k"))
    assert len(official.kept) == 4
    assert len(ours.kept) == 11
    assert ours.order[:4].tolist() == official.order.tolist()


def test_images_are_one_diagonal_apart():
    distance = vlmpruner._distance([(1, 3, 4), (1, 2, 2)])
    first = distance(np.array([0]))[0]
    assert first[:12].tolist() == [math.hypot(i // 4, i % 4) / 5 for i in range(12)]
    assert first[12:].tolist() == [1] * 4


@pytest.mark.parametrize("params", [{"pivots": 0}, {"theta": 0.0}, {"batch": 0}])
def test_bad_parameters_are_refused(params):
    with pytest.raises(ValueError, match=f"vlmpruner: {next(iter(params))} must be"):
        VLMPruner(**params)


def test_where_it_cuts_and_what_it_reads():
    assert (VLMPruner().stage, VLMPruner().hidden_state) == ("layer:1", "output")
    assert VLMPruner().attention_maps is False
    assert not VLMPruner(fit="official").exact_k

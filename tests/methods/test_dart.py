"""DART against plain transcriptions of the ports of the original and of the comparison."""

import dataclasses
import math

import pytest
import torch
from hypothesis import strategies as st
from layer_samples import best, cosine_of, layer_tokens
from properties import SHARE, randomized

from methods.dart import DART

GRIDS = ([(1, 6, 7)], [(1, 4, 5), (1, 3, 6)], [(3, 3, 5)], [(2, 3, 4), (1, 1, 1), (1, 4, 5)])


def norms_of(state):
    return [sum(abs(x) for x in state.k[:, i].double().flatten().tolist()) for i in range(state.k.shape[1])]


def original(state, t, extra=0):
    """Visual positions kept with `t` tokens for each pivot, then `extra` pivots asked for one more."""
    norms, visual = norms_of(state), state.visual_idx.tolist()
    text = [i for i in range(len(norms)) if i > visual[-1]]
    image_pivots = [visual[i] for i in best([norms[i] for i in visual], 4)]
    text_pivots = [text[i] for i in best([norms[i] for i in text], 4)]
    pivots = list(set(image_pivots + text_pivots))
    valid = set(visual) - set(image_pivots)
    kept = list(image_pivots)
    for p, count in [(p, t) for p in pivots] + [(p, 1) for p in pivots[:extra]]:
        left = sorted(valid)
        far = best([-cosine_of(state.hidden[p], state.hidden[i]) for i in left], count)
        kept += [left[i] for i in far]
        valid -= {left[i] for i in far}
    return kept, len(pivots)


def comparison(state, k):
    norms, visual = norms_of(state), state.visual_idx.tolist()
    text = [i for i in range(len(norms)) if i not in visual]
    image_pivots = [visual[i] for i in best([norms[i] for i in visual], min(4, k))]
    pivots = image_pivots + [text[i] for i in best([norms[i] for i in text], 4)]
    kept = list(image_pivots)
    quota = math.ceil((k - len(image_pivots)) / len(pivots))
    for p in pivots:
        left = [i for i in visual if i not in kept]
        far = best([-cosine_of(state.hidden[p], state.hidden[i]) for i in left], min(quota, k - len(kept)))
        kept += [left[i] for i in far]
    return kept


def positions(method, tokens, k):
    return tokens.llm.visual_idx[method.select(tokens, k).order].tolist()


CASES = {
    "grids": st.sampled_from(GRIDS),
    "kind": st.sampled_from(["normal", "duplicates", "zero"]),
    "text": st.sampled_from([0, 4, 9, 30]),
    "seed": st.integers(0, 9999),
}


@randomized(25, t=range(5), **CASES)
def test_official_is_the_original_where_its_count_is_k(grids, kind, text, seed, t):
    tokens = layer_tokens(grids, seed, text=text, kind=kind)
    kept, pivots = original(tokens.llm, t)
    assert len(kept) == 4 + pivots * t
    assert positions(DART(), tokens, len(kept)) == kept


@randomized(25, share=st.floats(0.1, 1, exclude_max=True), **CASES)
def test_official_elsewhere_keeps_more_in_a_second_round(grids, kind, text, seed, share):
    tokens = layer_tokens(grids, seed, text=text, kind=kind)
    k = max(4, int(share * len(tokens.features)))
    pivots = original(tokens.llm, 0)[1]
    t, extra = divmod(k - 4, pivots)
    got = positions(DART(), tokens, k)
    assert got == original(tokens.llm, t, extra)[0]
    assert set(original(tokens.llm, t)[0]) <= set(got)


@randomized(25, share=SHARE, **CASES)
def test_paper_is_the_comparison(grids, kind, text, seed, share):
    tokens = layer_tokens(grids, seed, text=text, kind=kind)
    k = max(1, int(share * len(tokens.features)))
    assert positions(DART(variant="paper"), tokens, k) == comparison(tokens.llm, k)


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_budget_of_pivots_keeps_the_largest_keys(variant, k):
    tokens = layer_tokens([(1, 5, 5)])
    norms = norms_of(tokens.llm)
    largest = best([norms[i] for i in tokens.llm.visual_idx.tolist()], k)
    assert DART(variant=variant).select(tokens, k).order.tolist() == largest


def test_pivots_in_text_before_the_image_are_the_comparisons_only():
    tokens = layer_tokens([(1, 6, 6)], seed=4)
    k = tokens.llm.k.clone()
    k[:, 0] = 100  # a sink at the start, as real models have it
    sink = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, k=k))
    assert torch.equal(DART().select(sink, 20).order, DART().select(tokens, 20).order)
    assert DART(variant="paper")._pivots(sink.llm, 20)[1][4] == 0
    assert 0 not in DART()._pivots(sink.llm, 20)[1]


def test_scale_of_rows_does_not_matter_but_that_of_keys_does():
    tokens = layer_tokens([(1, 6, 6)], seed=4)
    factors = 2.0 ** torch.randint(-5, 6, (len(tokens.llm.hidden), 1), generator=torch.Generator().manual_seed(0))
    scaled = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=tokens.llm.hidden * factors))
    keys = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, k=tokens.llm.k * factors))
    for variant in ("official", "paper"):
        method = DART(variant=variant)
        assert torch.equal(method.select(scaled, 20).order, method.select(tokens, 20).order)
        assert not torch.equal(method.select(keys, 20).order, method.select(tokens, 20).order)


def test_equal_rows_go_in_order():
    tokens = layer_tokens([(1, 16, 17)], seed=1, width=33, d=33)
    state = tokens.llm
    equal = dataclasses.replace(state, k=torch.ones_like(state.k) / 3, hidden=state.hidden[:1].expand(281, -1) * 1.0)
    for variant in ("official", "paper"):
        order = DART(variant=variant).select(dataclasses.replace(tokens, llm=equal), 100).order
        assert order.tolist() == list(range(100))


def test_pivots_are_parameters():
    tokens = layer_tokens([(1, 6, 6)])
    method = DART(image_pivots=2, text_pivots=0)
    image, pivots = method._pivots(tokens.llm, 20)
    assert sorted(tokens.llm.visual_idx[image].tolist()) == sorted(pivots)
    assert len(method.select(tokens, 20).kept) == 20


def test_where_it_cuts_and_what_it_reads():
    assert (DART().stage, DART().hidden_state) == ("layer:1", "normed_output")
    assert (DART(variant="paper").stage, DART(variant="paper").hidden_state) == ("layer:0", "normed_input")
    assert DART(layer=7).stage == "layer:7"
    assert DART().attention_maps is False

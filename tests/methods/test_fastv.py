"""FastV against its definition in plain float64, and where it says that it reads and cuts."""

import dataclasses

import pytest
import torch
from layer_samples import attention_of, best, layer_tokens
from properties import SEEDS, SHARE, randomized

from methods.base import LayerState
from methods.fastv import FastV
from methods.kernels.attention import last_text

GRIDS = ([(1, 4, 5)], [(1, 3, 3), (1, 2, 4)], [(3, 2, 3)], [(2, 3, 2), (1, 1, 1), (1, 2, 5)])


def official(state, k):
    scores = attention_of(state.q[:, -1], state.k)
    return best([scores[i] for i in state.visual_idx.tolist()], k)


def comparison(state, k):
    visual = state.visual_idx.tolist()
    last = max(i for i in range(state.q.shape[1]) if i not in visual)
    return best(attention_of(state.q[:, last], state.k[:, visual]), k)


@randomized(
    60,
    grids=GRIDS,
    share=SHARE,
    heads=[(4, 4), (4, 2), (6, 1)],
    scale=[0.1, 1.0, 30.0],
    kind=["normal", "duplicates", "zero"],
    seed=SEEDS,
)
def test_same_order_as_the_definition(grids, share, heads, scale, kind, seed):
    tokens = layer_tokens(grids, seed, heads=heads[0], kv=heads[1], kind=kind, scale=scale)
    k = max(1, int(share * len(tokens.features)))
    assert FastV().select(tokens, k).order.tolist() == official(tokens.llm, k)
    assert FastV(variant="paper").select(tokens, k).order.tolist() == comparison(tokens.llm, k)


def test_the_variants_differ():
    tokens = layer_tokens([(1, 8, 8)], text=40, scale=3.0)
    assert FastV().select(tokens, 16).order.tolist() != FastV(variant="paper").select(tokens, 16).order.tolist()


def test_text_behind_the_query_of_the_paper_variant_does_not_count():
    tokens = layer_tokens([(1, 4, 5)])
    state = tokens.llm
    chosen = FastV(variant="paper").select(tokens, 5).order
    text = torch.ones(state.k.shape[1], dtype=torch.bool).index_fill_(0, state.visual_idx, False)
    changed = dataclasses.replace(state, k=state.k + 5 * text[None, :, None])
    assert torch.equal(FastV(variant="paper").select(dataclasses.replace(tokens, llm=changed), 5).order, chosen)


def test_equal_keys_go_in_order():
    tokens = layer_tokens([(1, 30, 31)], seed=1, d=33)
    equal = dataclasses.replace(tokens.llm, k=tokens.llm.k[:, :1].expand(-1, tokens.llm.k.shape[1], -1).clone())
    for variant in ("official", "paper"):
        order = FastV(variant=variant).select(dataclasses.replace(tokens, llm=equal), 300).order
        assert order.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("sequence", "visual", "last"), [(5, [1, 2], 4), (5, [1, 2, 3, 4], 0), (5, [3, 4], 2), (3, [0, 1, 2], 2)]
)
def test_last_text(sequence, visual, last):
    assert last_text(sequence, torch.tensor(visual)).tolist() == [last]


def test_without_text_the_last_token_asks():
    state = layer_tokens([(1, 3, 3)]).llm
    only = LayerState(state.q[:, :9], state.k[:, :9], state.hidden[:9], torch.arange(9))
    tokens = dataclasses.replace(layer_tokens([(1, 3, 3)]), llm=only)
    assert FastV(variant="paper").select(tokens, 4).order.tolist() == best(attention_of(only.q[:, 8], only.k), 4)


def test_permuting_the_visual_tokens_permutes_the_picks():
    tokens = layer_tokens([(1, 5, 5)], seed=3)
    shuffle = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    k = tokens.llm.k.clone()
    k[:, tokens.llm.visual_idx] = k[:, tokens.llm.visual_idx[shuffle]]
    shuffled = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, k=k))
    for variant in ("official", "paper"):
        method = FastV(variant=variant)
        assert torch.equal(shuffle[method.select(shuffled, 9).order], method.select(tokens, 9).order)


@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_huge_logits_give_the_attention_to_one_token_and_the_rest_in_order(scale):
    tokens = layer_tokens([(1, 4, 4)], heads=1, kv=1, d=1)
    k = torch.zeros_like(tokens.llm.k)
    k[0, tokens.llm.visual_idx[7]] = scale
    state = dataclasses.replace(tokens.llm, q=torch.full_like(tokens.llm.q, scale), k=k)
    assert FastV().select(dataclasses.replace(tokens, llm=state), 3).order.tolist() == [7, 0, 1]


def test_where_it_cuts():
    assert FastV().stage == "layer:1"
    assert FastV(variant="paper").stage == "layer:0"
    assert FastV(variant="paper", layer=5).stage == FastV(layer=5).stage == "layer:5"
    assert FastV().hidden_state == "unused"
    assert FastV.stage.fget(FastV) == "layer:1"  # as a list of classes reads it

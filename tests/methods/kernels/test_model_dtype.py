"""variant=paper in half precision against the comparison's operations, in its order and in the dtype of the model."""

import dataclasses
import math

import pytest
import torch
from layer_samples import layer_tokens
from reference_selection import sample
from torch.nn.functional import normalize

import methods
from methods.kernels import cosine, model_dtype

HALF = [torch.bfloat16, torch.float16]


def first_largest(scores, count):
    """Return the places of the largest scores, equal ones in their order."""
    values = scores.tolist()
    return sorted(range(len(values)), key=lambda i: -values[i])[:count]


def divprune(tokens, k):
    unit = normalize(tokens.features, p=2, dim=1)
    distance = 1.0 - torch.mm(unit, unit.t())
    distance.fill_diagonal_(torch.inf)
    picked = first_largest(distance.min(dim=1).values, 1)
    nearest = distance[:, picked[0]]
    while len(picked) < k:
        scores = nearest.clone()
        scores[picked] = -1.0
        picked += first_largest(scores, 1)
        nearest = torch.minimum(nearest, distance[:, picked[-1]])
    return picked


def scope(tokens, k, alpha=1.0, additive=False):
    x = tokens.features[None]
    unit = x / x.norm(dim=-1, keepdim=True)
    similarity = torch.bmm(unit, unit.transpose(1, 2))
    weight = tokens.vit_attention["last"].to(x.dtype) ** alpha
    covered, picked = torch.zeros(1, len(weight), dtype=x.dtype), []
    while len(picked) < k:
        gains = torch.maximum(torch.zeros(1, dtype=x.dtype), similarity - covered.unsqueeze(2)).sum(dim=1)[0]
        gains = gains + weight if additive else gains * weight
        gains[picked] = -torch.inf
        picked += first_largest(gains, 1)
        covered = torch.maximum(covered, similarity[:, picked[-1]])
    return picked


def dart(tokens, k):
    state = tokens.llm
    keys = state.k.permute(1, 0, 2).reshape(state.k.shape[1], -1)
    visual = state.visual_idx.tolist()
    text = [i for i in range(len(keys)) if i not in visual]
    image = first_largest(torch.norm(keys[visual], p=1, dim=-1), min(4, k))
    pivots = [visual[i] for i in image] + [text[i] for i in first_largest(torch.norm(keys[text], p=1, dim=-1), 4)]
    unit, kept = normalize(state.hidden[visual], p=2, dim=1), list(image)
    share = math.ceil((k - len(kept)) / len(pivots))
    for pivot in pivots:
        similarity = torch.mm(normalize(state.hidden[pivot][None], p=2, dim=1), unit.t())[0]
        similarity[kept] = torch.inf
        kept += first_largest(-similarity, min(share, k - len(kept)))
    return kept


def fastv(tokens, k):
    state = tokens.llm
    visual = state.visual_idx.tolist()
    last = max(i for i in range(state.q.shape[1]) if i not in visual)
    keys = state.k[:, visual].repeat_interleave(len(state.q) // len(state.k), dim=0)
    logits = torch.einsum("hid,hjd->hij", state.q[:, last : last + 1], keys) / math.sqrt(keys.shape[-1])
    return first_largest(torch.softmax(logits, dim=-1).mean(dim=0)[0], k)


def of_features(seed, dtype, kind="positive", n=200):
    tokens = sample(n, 48, seed, kind)
    return dataclasses.replace(tokens, features=tokens.features.to(dtype))


def of_layer(seed, dtype):
    tokens = layer_tokens([(1, 12, 15)], seed, heads=4, kv=2, d=16, width=48)
    state = {name: getattr(tokens.llm, name).to(dtype) for name in ("q", "k")}
    state["hidden"] = (tokens.llm.hidden + 1).to(dtype)
    return dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, **state))


REFERENCES = {"divprune": (divprune, of_features), "scope": (scope, of_features)}
REFERENCES |= {"dart": (dart, of_layer), "fastv": (fastv, of_layer)}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_same_order_as_the_comparisons_operations(name, dtype):
    reference, tokens_of = REFERENCES[name]
    method, others = methods.load(name, variant="paper"), 0
    for seed in range(6):
        tokens = tokens_of(seed, dtype)
        for k in (1, 3, 50):
            assert method.select(tokens, k).order.tolist() == reference(tokens, k)
        wide = method.select(tokens_of(seed, torch.float32), 50).order.tolist()
        others += method.select(tokens, 50).order.tolist() != wide
    assert others  # else this dtype would not matter


@pytest.mark.parametrize("params", [{"alpha": 0.5}, {"alpha": 2.0}, {"combined": "add"}], ids=str)
def test_parameters_of_scope(params):
    tokens = of_features(1, torch.bfloat16)
    order = methods.load("scope", variant="paper", **params).select(tokens, 40).order.tolist()
    assert order == scope(tokens, 40, params.get("alpha", 1.0), "combined" in params)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_authors_variant_reads_a_float32_copy(name):
    method, tokens_of = methods.load(name), REFERENCES[name][1]
    half = tokens_of(2, torch.bfloat16)
    if half.llm is not None and name in ("dart", "fastv"):
        copies = {part: getattr(half.llm, part).float() for part in ("q", "k", "hidden")}
        copy = dataclasses.replace(half, llm=dataclasses.replace(half.llm, **copies))
    else:
        copy = dataclasses.replace(half, features=half.features.float())
    assert torch.equal(method.select(half, 30).kept, method.select(copy, 30).kept)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["zero_rows", "equal", "opposite", "duplicates"])
@pytest.mark.parametrize("name", ["divprune", "scope"])
def test_zero_and_equal_rows_give_k_tokens(name, kind, dtype):
    """The comparison divides zero rows by zero in SCOPE; here they cover nothing."""
    tokens = of_features(3, dtype, kind, n=60)
    for k in (1, 20, 59):
        assert len(methods.load(name, variant="paper").select(tokens, k).kept) == k


@pytest.mark.parametrize("name", ["divprune", "scope"])
def test_many_tokens_never_form_all_pairs(name, monkeypatch):
    tokens = of_features(4, torch.bfloat16)
    expected = REFERENCES[name][0](tokens, 40)
    monkeypatch.setattr(cosine, "TABLE", 100)
    monkeypatch.setattr(cosine, "TILE_32", 70 * 200)
    assert methods.load(name, variant="paper").select(tokens, 40).order.tolist() == expected


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("queries", [1, 90])
def test_attention_is_rounded_after_each_operation(dtype, queries):
    g = torch.Generator().manual_seed(0)
    q, k = (3 * torch.randn(2, 4, 90, 80, generator=g)).to(dtype)
    q = q[:, :queries]
    maps = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(80), dim=-1)
    expected = maps.mean(dim=0).sum(dim=0)
    assert torch.equal(model_dtype.received_by_keys(q, k, 80**-0.5), expected)
    tiled = model_dtype.received_by_keys(q, k, 80**-0.5, tile=4 * 90 * 7)
    torch.testing.assert_close(tiled, expected, atol=0, rtol=torch.finfo(dtype).eps)

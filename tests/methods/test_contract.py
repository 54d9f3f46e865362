"""What every registered method owes: exactly K distinct ascending indices on finite input, and an error on other."""

import dataclasses

import pytest
import torch
from hypothesis import strategies as st
from properties import SHARE, randomized
from reference_selection import sample, shuffled

import methods
from harness import list as listing
from methods.base import LayerState, Method, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.samples import FEATURES, SCORES, make_tokens
from methods.testing import CHECKS, advice, exactly_k_of_any_finite_input, the_first_of_equals_goes_first

ALL = methods.names()
PRUNING = [name for name in ALL if name not in ("none", "resize")]  # which choose nothing

LOOK_AT_PLACES = {"random", "uniform", "avg_pool", "hiprune", "holov", "tome", "visionzip", "vispruner", "vlmpruner"}
LOOK_AT_PLACES |= {"prumerge_plus", "evs", "dycoke"}


def choices(name):
    """The defaults, and each other word or truth value that a parameter may have."""
    method = listing.describe(name)
    truths = {key: [True, False] for key, value in method["params"].items() if isinstance(value, bool)}
    options = (method["options"] | truths).items()
    return [{}] + [{key: value} for key, values in options for value in values if value != method["params"][key]]


CHOICES = {name: choices(name) for name in PRUNING}
VARIANTS = [
    pytest.param(name, params, id="-".join([name, *params.values()]))
    for name in PRUNING
    for params in CHOICES[name]
    if params.keys() <= {"variant"}
]


def assert_contract(selection, n, k):
    kept = selection.kept.tolist()
    assert selection.kept.dtype == torch.int64
    assert len(kept) == k
    assert kept == sorted(set(kept))
    assert not kept or (kept[0] >= 0 and kept[-1] < n)
    if selection.order is not None:
        assert sorted(selection.order.tolist()) == kept
    if selection.owner is not None:
        assert selection.owner.shape == (n,)


@st.composite
def grids_of(draw):
    return draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3))


@pytest.mark.parametrize("name", PRUNING)
@randomized(
    60,
    grids=grids_of(),
    d=range(1, 10),
    share=st.floats(0, 1),
    seed=range(1000),
    features=FEATURES,
    scores=SCORES,
    data=st.data(),
)
def test_exactly_k_on_any_finite_input(name, grids, d, share, seed, features, scores, data):
    n = sum(t * h * w for t, h, w in grids)
    k = max(1, round(share * n))
    tokens = make_tokens(n, d, seed, features, scores, grids=grids)
    params = data.draw(st.sampled_from(CHOICES[name]))
    method = methods.load(name, **params)
    first = method.select(tokens, k)
    assert_contract(first, n, k if method.exact_k else max(1, len(first.kept)))
    assert torch.equal(first.kept, methods.load(name, **params).select(tokens, k).kept)  # deterministic


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [0, 1, 6])
def test_a_budget_of_n_or_more_is_the_identity(name, n):
    bare = Tokens(torch.randn(n, 4), [(1, 1, n)])  # not even the signals are needed
    for k in (n, n + 1, 10 * n + 7):
        assert methods.load(name).select(bare, k).kept.tolist() == list(range(n))


def test_samples_are_made_one_at_a_time_for_what_takes_one_at_a_time():
    events = []

    class Alone(Method):
        def _select(self, tokens, k, generator):
            events.append(f"chose from {len(tokens.features)}")
            return Selection(torch.arange(k))

    def samples():
        for n in (6, 9):
            events.append(f"made {n}")
            yield make_tokens(n)

    assert [len(one.kept) for one in Alone().select_batch(samples(), [2, 3])] == [2, 3]
    assert events == ["made 6", "chose from 6", "made 9", "chose from 9"]


def test_none_refuses_a_smaller_budget():
    with pytest.raises(ValueError, match="keeps all 6 tokens, not 3"):
        methods.load("none").select(make_tokens(6), 3)


def test_autocast_around_the_model_does_not_reach_the_method():
    class Probe(Method):
        def _select(self, tokens, k, generator):
            assert (tokens.features @ tokens.features.T).dtype == torch.float32
            assert not torch.is_grad_enabled()
            return Selection(torch.arange(k))

    with torch.autocast("cpu", torch.bfloat16):
        Probe().select(make_tokens(6), 3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["features", "importance", "vit_keys", "vit_features", "text"])
def test_what_is_not_finite_is_refused(name, bad, field):
    tokens = make_tokens(9)
    broken = getattr(tokens, field).clone()
    broken.view(-1)[1] = bad
    with pytest.raises(ValueError, match=f"{name}: {field} has 1 of"):
        methods.load(name).select(dataclasses.replace(tokens, **{field: broken}), 4)


@pytest.mark.parametrize("name", ALL)
def test_a_layer_or_role_that_is_not_finite_is_refused(name):
    tokens = make_tokens(9)
    tokens.vit_attention["middle"][3] = torch.nan
    with pytest.raises(ValueError, match=r"vit_attention\[middle\]"):
        methods.load(name).select(tokens, 4)
    tokens = make_tokens(9)
    tokens.llm.k[0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"llm\.k"):
        methods.load(name).select(tokens, 4)


@pytest.mark.parametrize("name", PRUNING)
def test_a_missing_signal_is_named(name):
    tokens = make_tokens(6, grids=[(1, 2, 3)])
    method = methods.load(name)
    for signal in sorted(method.needs):
        with pytest.raises(ValueError, match=f"{name} needs the signal '{signal.value}'"):
            method.select(dataclasses.replace(tokens, **{signal.value: None}), 3)


@pytest.mark.parametrize(("name", "params"), VARIANTS)
@pytest.mark.parametrize(
    "check", [c for c in CHECKS if c is not exactly_k_of_any_finite_input], ids=lambda c: c.__name__
)
def test_what_authors_of_other_methods_can_check(name, params, check):
    check(methods.load(name, **params))


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_no_method_of_ours_waits_for_the_device_at_each_pick(name, params):
    assert advice(methods.load(name, **params)) == []


@pytest.mark.parametrize("name", sorted({*PRUNING} - LOOK_AT_PLACES))
def test_of_equal_tokens_the_first_goes_first(name):
    the_first_of_equals_goes_first(methods.load(name))


@pytest.mark.parametrize("k", [0, -1, 2.5, None, "3"])
def test_a_strange_k_is_refused(k):
    with pytest.raises(ValueError, match="k must be"):
        methods.load("uniform").select(make_tokens(6), k)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grids": [(1, 2, 2)]}, "cover 4 tokens, but there are 6"),
        ({"grids": [(2, 3)]}, "grids"),
        ({"features": torch.rand(6)}, r"\[N, D\]"),
        ({"features": torch.ones(6, 2, dtype=torch.int64)}, "floating point"),
        ({"features": torch.full((6, 2), 1e300, dtype=torch.float64)}, "beyond float32"),
        ({"importance": torch.rand(5)}, "each of 6 tokens"),
        ({"importance": torch.rand(6, 1)}, "importance must be"),
        (
            {"llm": LayerState(torch.rand(1, 4, 2), torch.rand(1, 4, 2), torch.rand(4, 2), torch.arange(3))},
            "visual_idx",
        ),
    ],
)
def test_tokens_that_do_not_fit_together_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        methods.load("uniform").select(dataclasses.replace(make_tokens(6), **change), 3)


@pytest.mark.parametrize("name", ALL)
def test_the_identity_takes_what_the_plain_model_takes(name):
    overflown = Tokens(
        torch.tensor([[1.0, torch.inf], [torch.nan, 2.0]]), [(1, 1, 2)], importance=torch.full((2,), torch.nan)
    )
    assert methods.load(name).select(overflown, 2).kept.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (torch.tensor([0, 1, 2]), "must return a Selection, not a Tensor"),
        (None, "must return a Selection, not a NoneType"),
        (Selection([0, 1, 2]), "kept must be 3 int64 indices, not a list"),
        (Selection(torch.tensor([0, 1, 2]), order=(0, 1, 2)), "order must be 3 int64 indices, not a tuple"),
        (Selection(torch.tensor([0, 1, 2]), owner=[0] * 6), "owner must be 6 int64 indices, not a list"),
        (Selection(torch.tensor([0, 1])), "must be 3 int64 indices"),
        (Selection(torch.tensor([0, 1, 2], dtype=torch.int32)), "int32"),
        (Selection(torch.tensor([0, 2, 2])), "only 2 distinct"),
        (Selection(torch.tensor([2, 1, 0])), "not ascending"),
        (Selection(torch.tensor([0, 1, 6])), r"outside 0\.\.5"),
        (Selection(torch.tensor([-1, 0, 1])), r"outside 0\.\.5"),
        (Selection(torch.tensor([0, 1, 2]), order=torch.tensor([0, 1, 3])), "order and kept"),
        (Selection(torch.tensor([0, 1, 2]), owner=torch.tensor([0, 1, 2, 3, 0, 0])), r"owner holds .* outside 0\.\.2"),
        (Selection(torch.tensor([0, 1, 2]), owner=torch.tensor([0, 1, 2])), "owner must be 6"),
    ],
)
def test_a_method_that_breaks_the_contract_is_caught(returned, says):
    class Broken(Method):
        def _select(self, tokens, k, generator):
            return returned

    with pytest.raises(ValueError, match=f"broken broke its contract: .*{says}"):
        Broken().select(make_tokens(6), 3)


@pytest.mark.parametrize("scores", ["normal", "equal", "few_levels", "huge"])
# Not hybrid: among equal rows of its pool the lower index wins, whatever the importance.
@pytest.mark.parametrize("name", [n for n in PRUNING if Signal.IMPORTANCE in methods.get(n).needs and n != "hybrid"])
def test_ties_go_to_the_lowest_index(name, scores):
    tokens = make_tokens(200, 33, features="equal", scores=scores)
    method = methods.load(name)
    expected = sorted(range(200), key=lambda i: (-tokens.importance[i].item(), i))[:50]
    assert method.select(tokens, 50).order.tolist() == expected
    one_level = dataclasses.replace(tokens, importance=torch.zeros(200))
    assert method.select(one_level, 50).order.tolist() == list(range(50))


@pytest.mark.parametrize("name", ["divprune", "fps", "idpruner", "dpp", "scope"])
def test_permuting_tokens_permutes_the_picks_of_greedy_loops(name):
    tokens = sample(60, 32, 5)
    tokens = dataclasses.replace(tokens, vit_attention={"last": tokens.importance.sigmoid()})
    (other, origin), method = shuffled(tokens), methods.load(name)
    assert torch.equal(origin[method.select(other, 20).order], method.select(tokens, 20).order)


@pytest.mark.parametrize("kind", ["normal", "duplicates", "opposite"])
@pytest.mark.parametrize("length", ["unequal", "huge"])
@pytest.mark.parametrize("name", ["divprune", "fps", "idpruner", "hybrid", "dpp", "cdpruner", "scope"])
def test_length_of_rows_and_scale_of_scores_do_not_matter_to_greedy_loops(name, length, kind):
    tokens = sample(60, 32, 6, kind)
    tokens = dataclasses.replace(tokens, vit_attention={"last": tokens.importance.sigmoid()})
    factors = 2.0 ** (torch.arange(60)[:, None] % 24 - 9)  # exact, so that copies stay parallel
    if length == "huge":
        factors = 3e38 / tokens.features.abs().max()
        assert torch.linalg.vector_norm(tokens.features * factors, dim=1).isinf().any()  # the norm overflows
    scaled = dataclasses.replace(
        tokens,
        features=tokens.features * factors,
        importance=tokens.importance * 2.0**9 + 64,
        vit_attention={"last": tokens.vit_attention["last"] * 2.0**20},
        text=tokens.text * 64,
    )
    method = methods.load(name)
    assert torch.equal(method.select(scaled, 20).order, method.select(tokens, 20).order)


def test_random_follows_its_generator_and_nothing_else():
    tokens, method = make_tokens(100), methods.load("random")
    torch.manual_seed(1)
    draws = [method.select(tokens, 10, torch.Generator().manual_seed(seed)).kept.tolist() for seed in (1, 1, 2)]
    torch.manual_seed(2)
    assert draws[0] == draws[1] == method.select(tokens, 10, torch.Generator().manual_seed(1)).kept.tolist()
    assert draws[0] != draws[2]
    shared = torch.Generator().manual_seed(1)
    assert method.select(tokens, 10, shared).kept.tolist() != method.select(tokens, 10, shared).kept.tolist()


def test_random_is_uniform():
    tokens, method, generator = make_tokens(10), methods.load("random"), torch.Generator().manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[method.select(tokens, 3, generator).kept] += 1
    assert (counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5


def test_visionselector_ranks_logits():
    tokens = dataclasses.replace(make_tokens(6), importance=torch.tensor([0.1, 3.0, -1.0, 3.0, 2.0, 0.0]))
    assert methods.load("visionselector").select(tokens, 3).order.tolist() == [1, 3, 4]


def test_visionselector_as_in_the_paper_ties_where_weights_saturate():
    logits = torch.tensor([-40.0, 50.0, 60.0, 0.0, -40.0, -41.0, -42.0, -43.0, -44.0, -45.0])
    tokens = dataclasses.replace(make_tokens(10), importance=logits)
    assert methods.load("visionselector").select(tokens, 1).kept.tolist() == [2]
    assert methods.load("visionselector", variant="paper").select(tokens, 1).kept.tolist() == [1]


@randomized(60, grids=grids_of(), share=SHARE)
def test_uniform_gives_every_step_its_share(grids, share):
    n = sum(t * h * w for t, h, w in grids)
    k = max(1, int(share * n))
    kept = methods.load("uniform").select(make_tokens(n, grids=grids), k).kept.tolist()
    sizes = [h * w for t, h, w in grids for _ in range(t)]
    quotas, start = largest_remainder(k, sizes), 0
    for size, quota in zip(sizes, quotas, strict=True):
        inside = sum(start <= i < start + size for i in kept)
        assert inside == quota if k >= len(sizes) else inside <= 1
        start += size


def test_uniform_covers_both_directions_where_flat_repeats_columns():
    tokens = make_tokens(576, grids=[(1, 24, 24)])
    grid = methods.load("uniform").select(tokens, 144).kept
    flat = methods.load("uniform", layout="flat").select(tokens, 144).kept
    assert (len((grid % 24).unique()), len((grid // 24).unique())) == (12, 12)
    assert len((flat % 24).unique()) == 6


def test_uniform_skips_time_steps_evenly():
    kept = methods.load("uniform").select(make_tokens(64, grids=[(16, 2, 2)]), 8).kept
    assert (kept // 4).diff().tolist() == [2] * 7


@randomized(60, h=range(1, 13), w=range(1, 13), share=SHARE)
def test_uniform_is_its_lattice_and_evenly_spread_rest(h, w, share):
    k = max(1, int(share * h * w))
    rows = min(max(round((k * h / w) ** 0.5), 1), h, k)
    columns = max(1, min(k // rows, w))
    taken = [int((r + 0.5) * h / rows) * w + int((c + 0.5) * w / columns) for r in range(rows) for c in range(columns)]
    rest, missing = [i for i in range(h * w) if i not in taken], k - rows * columns
    taken += [rest[int((i + 0.5) * len(rest) / missing)] for i in range(missing)]
    assert methods.load("uniform").select(make_tokens(h * w, grids=[(1, h, w)]), k).kept.tolist() == sorted(taken)

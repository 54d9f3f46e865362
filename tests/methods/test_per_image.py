"""variant=paper rounds K for each image by itself, as the comparison does; elsewhere it is rounded for all together."""

import pytest
from hypothesis import strategies as st
from per_image_references import hierarchy, prune, zip_unit
from properties import SEEDS, randomized
from reference_selection import attended

import methods
from methods.budget import Budget

THREE = ["vispruner", "hiprune", "visionzip"]
GRIDS = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=4)


def units(name, grids):
    """Return (tokens, width of a row) of each part that has a K of its own."""
    split = [(1, h, w) for t, h, w in grids for _ in range(t)] if name == "visionzip" else grids
    return [(t * h * w, w) for t, h, w in split]


def comparison(name, tokens, keep):
    """Return the tokens that stay of every part, and which of them each token is merged into."""
    kept, owner, start = [], [], 0
    middle, last = (tokens.vit_attention[role] for role in ("middle", "last"))
    for size, width in units(name, tokens.grids):
        part, k = slice(start, start + size), max(1, round(size * keep))
        if k >= size:
            rows, joins = list(range(size)), list(range(size))
        elif name == "vispruner":
            rows, joins = prune(tokens.features[part], last[part], k, "paper"), []
        elif name == "hiprune":
            rows, joins = hierarchy(middle[part], last[part], width, k, "paper"), []
        else:
            rows, joins = zip_unit(last[part], tokens.vit_keys[part], k)
        owner += [len(kept) + i for i in joins]
        kept += [start + i for i in rows]
        start += size
    return kept, owner


def check(name, grids, keep, seed):
    tokens, method = attended(grids, 5, seed), methods.load(name, variant="paper")
    kept, owner = comparison(name, tokens, keep)
    assert method.count_kept(Budget(keep=keep), grids) == len(kept)
    selection = method.select(tokens, len(kept))
    assert selection.kept.tolist() == kept
    if name == "visionzip" and len(kept) < len(tokens.features):
        assert selection.owner.tolist() == owner


@pytest.mark.parametrize("name", THREE)
@randomized(40, grids=GRIDS, keep=[0.5, 0.25, 0.125, 0.75], seed=SEEDS)
def test_every_part_keeps_what_the_comparison_keeps_of_it(name, grids, keep, seed):
    check(name, grids, keep, seed)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(("sizes", "keep"), [((10, 6, 1), 0.25), ((3, 9, 3), 0.5), ((3, 3, 5), 0.5)])
def test_shares_are_no_division_of_their_sum(name, sizes, keep):
    """A quarter of 10, 6 and 1 is 2, 2 and 1; 5 in proportion to them is 3, 1 and 1."""
    check(name, [(1, 1, size) for size in sizes], keep, 0)


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(("grids", "paper", "together"), [([(1, 2, 29)] * 2, 28, 29), ([(1, 3, 19)] * 3, 42, 43)])
def test_the_sum_differs_from_that_of_all_together(name, grids, paper, together):
    counts = [methods.load(name, variant=kind).count_kept(Budget(keep=0.25), grids) for kind in ("paper", "official")]
    assert counts == [paper, together]


@pytest.mark.parametrize("name", THREE)
def test_a_number_of_tokens_is_the_same_ratio_for_every_image(name):
    method = methods.load(name, variant="paper")
    assert method.count_kept(Budget(tokens=64), [(1, 24, 24)]) == 64
    assert method.count_kept(Budget(tokens=29), [(1, 2, 29)] * 2) == 28  # 14.5 of each
    assert method.count_kept(Budget(tokens=2), [(1, 4, 4)] * 3) == 3
    assert method.count_kept(Budget(tokens=9), []) == 0

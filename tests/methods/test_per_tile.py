"""Selection in each crop by itself: shares, what a method sees of a crop, and how the parts are put together."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import methods
from harness.models.mosaic import Packing, mosaic_of
from methods.base import Cut, LayerState, Method, Selection, Signal, Tokens
from methods.budget import Budget
from methods.per_tile import crops_of, select_batch, shares
from methods.selecting import SelectionError
from methods.tokens import Mix


def sample(image=(4, 16)):
    """Two tiles of 4 x 4 patches side by side, with lines of padding above and below, and the whole image."""
    packing = Packing(4, (1, 2), mosaic_of((1, 2), 4, image))
    row = packing.placeholders
    torch.manual_seed(0)
    n = len(row.crops)
    features = torch.randn(n, 6, dtype=torch.float64)
    return Tokens(features, list(row.grids), tiles=row.crops, vit_attention={"last": torch.rand(n).double()})


def per_tile(method, tokens, k):
    (selection,) = select_batch(method, [tokens], [k], [torch.Generator().manual_seed(0)])
    return selection


class TestBudget:
    def test_k_counts_the_crops(self):
        assert [Budget(per_tile=32).count(n, crops) for n, crops in ((2208, 5), (1152, 3), (100, 5), (0, 0))] == [
            160,
            96,
            100,
            0,
        ]
        assert Budget(per_tile=32).label == "32per_tile"
        with pytest.raises(ValueError, match="only where the number of crops is known"):
            Budget(per_tile=32).count(576)

    @pytest.mark.parametrize("settings", [{}, {"keep": 0.5, "per_tile": 2}, {"tokens": 4, "per_tile": 2}])
    def test_one_setting_alone(self, settings):
        with pytest.raises(ValueError, match="a budget is either keep=<share>, tokens=<number> or per_tile="):
            Budget(**settings)

    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
    def test_a_number_of_at_least_one(self, value):
        with pytest.raises(ValueError, match="per_tile must be an integer of at least 1"):
            Budget(per_tile=value)

    @pytest.mark.parametrize(
        ("k", "sizes", "expected"),
        [
            (15, [16, 8, 8], [5, 5, 5]),
            (30, [16, 8, 8], [14, 8, 8]),
            (20, [16, 4, 8], [9, 4, 7]),  # 2 that the second cannot take: 9 and 1 more are free
            (16, [2, 2, 12], [2, 2, 12]),
            (4, [5, 5, 5], [2, 1, 1]),
        ],
    )
    def test_shares(self, k, sizes, expected):
        assert shares(k, sizes) == expected
        assert sum(expected) == k


class TestCrops:
    def test_without_tiles_each_image_and_each_step_is_one(self):
        assert crops_of([(1, 1, 2), (3, 1, 1)], None).tolist() == [0, 0, 1, 2, 3]

    @pytest.mark.parametrize("name", sorted(set(methods.BUILT_IN) - {"none", "resize"}))
    def test_a_method_sees_a_crop_as_an_image_of_its_own(self, name):
        method, tokens = methods.load(name, **({"prior": "none"} if name == "d2pruner" else {})), everything(sample())
        chosen = per_tile(method, tokens, 15)
        generator = torch.Generator().manual_seed(0)
        for number, grid in enumerate([(1, 4, 4), (1, 2, 4), (1, 2, 4)]):
            index = (tokens.tiles == number).nonzero().squeeze(1)
            state = LayerState(tokens.llm.q, tokens.llm.k, tokens.llm.hidden, tokens.llm.visual_idx[index])
            rows = {key: getattr(tokens, key)[index] for key in ("features", "importance", "vit_keys", "vit_features")}
            attention = {role: scores[index] for role, scores in tokens.vit_attention.items()}
            texts = {"text": tokens.text, "text_after": tokens.text_after}
            alone = Tokens(grids=[grid], vit_attention=attention, llm=state, **texts, **rows)
            expected = method.select(alone, 5, generator)
            assert torch.equal(chosen.kept[torch.isin(chosen.kept, index)], index[expected.kept])
            if expected.owner is not None:
                assert torch.equal(chosen.kept[chosen.owner[index]], index[expected.kept[expected.owner]])

    def test_what_a_crop_lacks_goes_to_others(self):
        chosen = per_tile(methods.load("uniform"), sample(), 3 * 9)  # tiles 1 and 2 have 8 patches left
        assert torch.bincount(sample().tiles[chosen.kept]).tolist() == [11, 8, 8]

    def test_fewer_tokens_than_crops_are_refused(self):
        with pytest.raises(SelectionError, match="a cut to 2 tokens of 3 crops keeps none of some crop"):
            per_tile(methods.load("uniform"), sample(), 2)

    def test_crops_that_are_no_rectangle_are_refused(self):
        tokens = sample()
        tokens.tiles[16] = 2
        with pytest.raises(SelectionError, match="do not fill a rectangle"):
            per_tile(methods.load("uniform"), tokens, 15)

    def test_tiles_of_another_length_are_refused(self):
        tokens = sample()
        wrong = Tokens(tokens.features, tokens.grids, tiles=tokens.tiles[1:])
        with pytest.raises(SelectionError, match=r"tiles must be \[32\]"):
            methods.load("uniform").select(wrong, 4)


@dataclass(kw_only=True)
class Merging(Method):
    """Keep the last tokens; add half of the first one to the last row, or remember what was seen."""

    seen: list[Any] = field(default_factory=list)

    def schedule(self, n, k, layers):
        return [Cut(0, k + (n - k) // 2), Cut(1, k)]

    def _select(self, tokens, k, generator):
        self.seen.append((tokens.grids, tokens.cut, tokens.origin, tokens.memory))
        n = len(tokens.features)
        mix = Mix(torch.tensor([k - 1]), torch.tensor([0]), torch.tensor([0.5]))
        return Selection(torch.arange(n - k, n), mix=mix, memory=(tokens.cut, tokens.features[0]))


class TestLaterCuts:
    def test_merges_name_rows_of_the_whole_sample(self):
        tokens = sample()
        chosen = per_tile(Merging(), tokens, 15)
        last = [int((tokens.tiles == crop).nonzero().max()) for crop in range(3)]
        first = [int((tokens.tiles == crop).nonzero().min()) for crop in range(3)]
        assert chosen.kept[chosen.mix.row].tolist() == last
        assert chosen.mix.source.tolist() == first

    def test_each_crop_goes_on_where_its_own_last_cut_left_it(self):
        method, tokens = Merging(), sample()
        before = per_tile(method, tokens, 28)  # 12, 8 and 8: only crop 0 is cut
        left = Tokens(
            tokens.features[before.kept], tokens.grids, tokens.tiles, origin=before.kept, cut=1, memory=before.memory
        )
        after = per_tile(method, left, 15)
        assert torch.bincount(tokens.tiles[before.kept[after.kept]]).tolist() == [5, 5, 5]
        whole, *others = method.seen[1:]
        assert whole[:2] == ([(1, 4, 4)], 1)
        assert whole[2].tolist() == list(range(4, 16))
        assert torch.equal(whole[3][1], tokens.features[0])
        assert others == [([(1, 2, 4)], 0, None, None)] * 2


def everything(tokens: Tokens) -> Tokens:
    """Return the sample with every signal."""
    n, s = len(tokens.features), len(tokens.features) + 5
    llm = LayerState(torch.randn(2, s, 4), torch.randn(1, s, 4), torch.randn(s, 6), torch.arange(2, n + 2))
    rows = {name: torch.randn(n, 6).double() for name in (Signal.VIT_KEYS.value, Signal.VIT_FEATURES.value)}
    texts = {name: torch.randn(3, 6).double() for name in (Signal.TEXT.value, Signal.TEXT_AFTER.value)}
    attention = {role: torch.rand(n).double() for role in ("last", "middle", "after")}
    more = {"importance": torch.randn(n).double(), "vit_attention": attention, "llm": llm}
    return Tokens(tokens.features, tokens.grids, tokens.tiles, **rows, **texts, **more)

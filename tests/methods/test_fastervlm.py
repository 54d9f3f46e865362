"""FasterVLM is a sort of the attention, in each image or in all."""

import pytest
from properties import SEEDS, SHARE, randomized
from reference_selection import attended

from methods.fastervlm import FasterVLM


def best(scores, k):
    return sorted(range(len(scores)), key=lambda i: (-scores[i].item(), i))[:k]


@randomized(40, n=range(2, 60), share=SHARE, seed=SEEDS, kind=["normal", "levels", "constant", "dark"])
def test_same_order_as_a_sort(n, share, seed, kind):
    tokens, k = attended([(1, 1, n)], 3, seed, kind), max(1, int(share * n))
    assert FasterVLM().select(tokens, k).order.tolist() == best(tokens.vit_attention["last"], k)


@pytest.mark.parametrize(("tokens", "share"), [(144, 0.25), (58, 0.1)])
def test_the_budgets_of_the_paper(tokens, share):
    assert round(576 * share) == tokens
    sample = attended([(1, 24, 24)], 3, tokens)
    assert FasterVLM().select(sample, tokens).kept.tolist() == sorted(best(sample.vit_attention["last"], tokens))


def test_every_crop_has_its_share_unless_all_are_one_pool():
    tokens = attended([(1, 12, 12)] * 5, 3, 1)
    scores = tokens.vit_attention["last"]
    expected = [144 * crop + i for crop in range(5) for i in best(scores[144 * crop : 144 * (crop + 1)], 29)]
    assert FasterVLM().select(tokens, 145).order.tolist() == expected
    assert FasterVLM(scope="sample").select(tokens, 145).order.tolist() == best(scores, 145)

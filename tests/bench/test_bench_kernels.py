"""`python -m harness.bench kernels`: what it compares is the same choice, made twice."""

import pytest
import torch

from harness.bench import kernels, published, tokens
from harness.bench.kernel_cases import LOOPS, loop
from harness.core.errors import UserError
from harness.core.overrides import compose

CPU = (torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("kind", kernels.KINDS)
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_published_loops_choose_the_same_where_rounding_decides_nothing(name, kind):
    one = loop(name, kind, 60, 24, 15, 1, CPU)
    given = {"kernel": one.kernel(), "published": one.published()}
    assert one.shared(given) == (1.0 if one.picks else None)
    assert one.same(torch.as_tensor(given["published"]))
    wrong = given["kernel"].clone()
    wrong[3] += 1
    assert not one.same(wrong)


def test_a_published_loop_reads_each_pick_and_never_takes_one_twice():
    x = torch.ones(9, 4)  # all tokens are alike
    for picked in (published.mmr(x, torch.ones(9), 5, 0.5), published.maxmin(x, 5), published.divprune(x, 5)):
        assert sorted(set(picked)) == sorted(picked)
        assert all(type(pick) is int for pick in picked)


def test_tokens_of_an_image_are_like_their_neighbours():
    x = tokens.features("image", 30 * 40, 512, torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x)
    assert (unit[:-1] * unit[1:]).sum(1).mean() == pytest.approx(0.76, abs=0.04)
    assert (unit @ unit.T).mean() == pytest.approx(0.34, abs=0.06)


def test_a_kernel_is_named_where_it_can_be_chosen():
    assert tuple(LOOPS) == kernels.KERNELS
    assert tokens.KINDS == kernels.KINDS


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("kernels=[mmr,nms]", "kernels must be some of mmr, maxmin"),
        ("data=photo", "data must be some of image, noise, got photo"),
        ("sizes=1", "sizes must be a number of at least 2, got 1"),
        ("repeats=0", "repeats must be a number of at least 1, got 0"),
        ("keep=1.5", "keep must be a share between 0 and 1, got 1.5"),
        ("dtype=int8", "dtype must be one of float32"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(override, told):
    with pytest.raises(UserError, match=f"^{told}".replace("[", r"\[")):
        kernels.settings(compose("bench_kernels", [override]))

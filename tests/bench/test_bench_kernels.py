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
def test_public_implementations_choose_the_same_where_rounding_decides_nothing(name, kind):
    comparison = loop(name, kind, 60, 24, 15, 1, CPU)
    ours = comparison.kernel()
    for published_side in comparison.published.values():
        theirs = published_side()
        assert comparison.shared(ours, theirs) == (1.0 if comparison.picks else None)
        assert comparison.same(ours, theirs)
        wrong = torch.as_tensor(theirs).clone()
        wrong[:3] += 60
        assert not comparison.same(ours, wrong)


def test_an_old_name_stays_for_a_release():
    assert kernels.settings(compose("bench_kernels", ["kernels=[maxmin,mmr]"]))["kernels"] == ["divprune", "mmr"]


def test_a_public_implementation_never_takes_a_token_twice():
    x = torch.ones(9, 4)  # all tokens are equal
    for picked in (
        published.angelslim_mmr(x, torch.ones(9), 5, 0.5),
        published.angelslim_divprune(x, 5).tolist(),
        published.divprune(x, 5),
        published.angelslim_scope(x, torch.ones(9), 5).tolist(),
    ):
        assert len(set(picked)) == 5


def test_tokens_of_a_cluster_are_like_each_other_alone():
    x = tokens.features("clusters", 400, 512, torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(x)
    near = (unit @ unit.T) > 0.5
    assert (unit @ unit.T)[near].mean() == pytest.approx(0.92, abs=0.02)
    assert near.sum(1).float().mean() == pytest.approx(tokens.CLUSTER, abs=4)


def test_a_busy_process_runs_within_its_block_alone(monkeypatch):
    monkeypatch.setattr(kernels.time, "sleep", lambda seconds: None)
    started, popen = [], kernels.subprocess.Popen
    monkeypatch.setattr(kernels.subprocess, "Popen", lambda call: started.append(popen(call)) or started[-1])
    with kernels._busy_process(False):
        assert not started
    with kernels._busy_process(True):
        assert started[0].poll() is None
    assert started[0].poll() is not None


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
        ("kernels=[mmr,nms]", "kernels must be some of mmr, divprune"),
        ("data=photo", "data must be some of clusters, image, noise, got photo"),
        ("load=night", "load must be some of idle, busy, got night"),
        ("sizes=1", "sizes must be a number of at least 2, got 1"),
        ("repeats=0", "repeats must be a number of at least 1, got 0"),
        ("keep=1.5", "keep must be a share between 0 and 1, got 1.5"),
        ("dtype=int8", "dtype must be one of float32"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(override, told):
    with pytest.raises(UserError, match=f"^{told}".replace("[", r"\[")):
        kernels.settings(compose("bench_kernels", [override]))

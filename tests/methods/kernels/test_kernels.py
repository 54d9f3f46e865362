"""Every path of a kernel picks what its plain loop picks, in the same order, whatever ties."""

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KERNELS, KINDS, cases, tokens_of

from methods.kernels.dispatch import implementation, path, using
from methods.kernels.rows import Rows


@pytest.fixture
def handed_over(caplog):
    """What the CPU's own paths left to the plain loop."""
    caplog.set_level(logging.INFO, "methods.kernels.dispatch")
    return caplog  # whose list is another one in the test itself


def both(run):
    with using("plain"):
        expected = run()
    with using("cpu"):
        assert torch.equal(run(), expected)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 150),
    d=st.integers(1, 40),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9999),
    kind=st.sampled_from(KINDS),
)
def test_the_cpu_picks_what_the_plain_loop_picks(kernel, n, d, share, seed, kind):
    k = max(1, int(share * n))
    both(cases(tokens_of(n, d, seed, kind), k, seed)[kernel])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["normal", "positive", "duplicates", "mean", "zero_rows", "equal", "half"])
def test_the_cpu_needs_no_plain_loop_at_the_size_of_an_image(kernel, kind, handed_over):
    both(cases(tokens_of(500, 256, 3, kind), 125, 0)[kernel])
    assert not handed_over.records


def test_what_float32_cannot_tell_is_left_to_the_plain_loop(handed_over):
    both(cases(tokens_of(200, 64, 0, "near"), 100, 0)["maxmin"])
    assert "the plain loop decides" in handed_over.text


def test_a_row_that_float32_cannot_hold_is_left_to_the_plain_loop(handed_over):
    tokens = tokens_of(50, 8, 0, "normal")
    tokens.features[3] *= 1e30
    both(cases(tokens, 20, 0)["mmr"])
    assert "too short or too long" in handed_over.text


@pytest.mark.parametrize("d", [8, 300, 3000])
@pytest.mark.parametrize("outweighing", [1, 200, 40000])
@pytest.mark.parametrize("kind", ["normal", "positive", "mean", "half"])
def test_products_are_within_their_error(d, outweighing, kind):
    tokens = tokens_of(200, d, 1, kind)
    tokens.features[:, 3] *= outweighing  # of what is beside it, sums lose much, and all with the same sign
    rows = Rows(tokens.features)
    unit, single = rows.unit(), rows.features.float()
    off = (single @ single.T) * rows.factor * rows.factor[:, None] - unit @ unit.T
    assert off.abs().max() < rows.error / 2


@pytest.mark.parametrize(
    ("value", "triton", "expected"),
    [("0", True, "plain"), ("1", True, "gpu"), ("1", False, "needs triton"), ("yes", True, "must be 0 or 1, got yes")],
)
def test_triton_on_cuda_has_to_be_asked_for(value, triton, expected, monkeypatch):
    monkeypatch.setenv("HARNESS_TRITON", value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: triton or None)
    features = SimpleNamespace(device=torch.device("cuda"))
    if expected in ("plain", "gpu"):
        assert path(features) == expected
        assert implementation("cuda:0") == {"plain": "plain loops", "gpu": "triton"}[expected]
    else:
        with pytest.raises(ValueError, match=expected):
            path(features)
    assert implementation("cpu").startswith("plain loops; lazy search")  # whatever was asked for


def test_paths_are_chosen_by_device_and_size():
    assert path(torch.empty(2691, 3584)) == "cpu"
    assert path(torch.empty(64, 64)) == "plain"
    assert path(torch.empty(2691, 3584, device="meta")) == "plain"
    assert path(SimpleNamespace(device=torch.device("cuda"))) == "plain"
    with using("cpu"):
        assert path(torch.empty(64, 64)) == "cpu"

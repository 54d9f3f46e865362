"""DiffTopK's gradient is that of the implicit function which it is, and reaches the scorer through a frozen model."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit

from harness.train.soft_mask import diff_top_k

CASES = [(12, 1.0), (40, 8.0), (40, 39.0), (7, 3.5)]


def soft(logits, k):
    """Weights [N] that sum to k, in float64, by another way of finding the shift."""
    bounds = -logits.max() - 30, -logits.min() + 30
    return expit(logits + brentq(lambda t: expit(logits + t).sum() - k, *bounds, xtol=1e-13, rtol=1e-14))


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=n), rng.normal(size=n)


def found(logits, upstream, k):
    """What autograd makes of it."""
    leaf = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    weights = diff_top_k(leaf, k)
    (weights * torch.tensor(upstream, dtype=torch.float32)).sum().backward()
    return weights.detach().numpy(), leaf.grad.numpy()


@pytest.mark.parametrize(("n", "k"), CASES)
def test_weights_are_the_sigmoids_that_sum_to_k(n, k):
    logits, upstream = drawn(n)
    weights, _ = found(logits, upstream, k)
    np.testing.assert_allclose(weights, soft(logits, k), atol=1e-5)
    assert weights.sum() == pytest.approx(k, abs=1e-4)


@pytest.mark.parametrize(("n", "k"), CASES)
def test_gradient_equals_finite_differences(n, k):
    logits, upstream = drawn(n)
    _, gradient = found(logits, upstream, k)
    bumps = 1e-5 * np.eye(n)
    numeric = [(soft(logits + b, k) - soft(logits - b, k)) @ upstream / 2e-5 for b in bumps]
    np.testing.assert_allclose(gradient, numeric, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("n", "k"), CASES)
def test_gradient_equals_the_closed_form(n, k):
    """From sum_i sigmoid(s_i + t) = k: dt/ds_j = -v_j / sum v, so that J = diag(v) - v v' / sum v."""
    logits, upstream = drawn(n)
    _, gradient = found(logits, upstream, k)
    v = soft(logits, k) * (1 - soft(logits, k))
    jacobian = np.diag(v) - np.outer(v, v) / v.sum()
    np.testing.assert_allclose(gradient, jacobian @ upstream, atol=1e-5, rtol=1e-4)
    assert gradient.sum() == pytest.approx(0, abs=1e-5)  # a shift of all logits changes nothing


def test_saturated_weights_have_no_gradient_and_no_nan():
    _, gradient = found(np.array([200.0, 200.0, -200.0, -200.0]), np.ones(4), 2.0)
    np.testing.assert_array_equal(gradient, 0)

"""Weights in int8: what is stored, what comes back, and files that are not whole."""

import pytest
import torch

from harness.models.int8 import SCALE, dequantised, quantised


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sizes = torch.tensor([1e-3, 1.0, 100.0, 0.0])  # of the rows, which have scales of their own
    matrix = random(4, 50) * sizes[:, None]
    return {"fc.weight": matrix, "conv.weight": random(4, 3, 2, 2), "fc.bias": random(4), "positions": random(1, 5, 4)}


def test_every_row_is_as_exact_as_its_largest_value_allows(state):
    stored = quantised(state)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "fc.weight": torch.int8,
        "fc.weight.scale": torch.float32,
        "conv.weight": torch.int8,
        "conv.weight.scale": torch.float32,
        "fc.bias": torch.float32,
        "positions": torch.float16,
    }
    back = dequantised(stored)
    assert back.keys() == state.keys()
    assert {tensor.dtype for tensor in back.values()} == {torch.float32}
    for name in ("fc.weight", "conv.weight"):
        rows, error = state[name].flatten(1), (back[name] - state[name]).flatten(1)
        assert (error.abs().amax(1) <= rows.abs().amax(1) / 254 * (1 + 1e-5)).all()
        assert error.abs().max() > 0
    assert torch.equal(back["fc.weight"][3], torch.zeros(50))
    assert torch.equal(back["fc.bias"], state["fc.bias"])
    assert torch.equal(dequantised(quantised(back))["fc.weight"], back["fc.weight"])


def test_values_that_are_not_finite_are_not_stored(state):
    state["conv.weight"][1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^conv\.weight has values that are not finite$"):
        quantised(state)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.weight" + SCALE, None, r"fc\.weight is torch\.int8, and its scales are missing"),
        ("fc.weight", None, r"fc\.weight has scales and no values"),
        ("fc.weight", torch.zeros(4, 50), r"fc\.weight is torch\.float32, and its scales are there"),
        ("fc.weight" + SCALE, torch.ones(3), r"fc\.weight has 4 rows, its scales are \[3\] of torch\.float32"),
        ("fc.weight" + SCALE, torch.ones(4).half(), r"its scales are \[4\] of torch\.float16"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(state, name, value, message):
    stored = {key: tensor for key, tensor in quantised(state).items() if key != name}
    with pytest.raises(ValueError, match=message):
        dequantised(stored if value is None else stored | {name: value})

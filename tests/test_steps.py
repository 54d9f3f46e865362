"""Errors that wait for a GPU, and what a cache of unknown origin is asked."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from harness.models.steps import Doubts, differs


@dataclass
class Flag:
    """A bool that lies on a GPU, and counts how often the host waits for it."""

    value: bool
    waits: list[int]
    device = SimpleNamespace(type="cuda")

    def __or__(self, other):
        return Flag(self.value or other.value, self.waits)

    def __bool__(self):
        self.waits.append(1)
        return self.value


def test_on_a_gpu_nobody_waits_before_settling():
    doubts, waits = Doubts(), []
    for value in (False, True, False):
        doubts.add(Flag(value, waits), ValueError("order"))
        doubts.add(Flag(False, waits), ValueError("mask"))
    assert not waits
    with pytest.raises(ValueError, match="order"):
        doubts.settle()
    doubts.settle()  # once is enough
    assert len(waits) == 1


def test_on_a_cpu_it_is_raised_at_once():
    doubts = Doubts()
    doubts.add(torch.tensor(False), ValueError("order"))
    with pytest.raises(ValueError, match="order"):
        doubts.add(torch.tensor(True), ValueError("order"))


@pytest.mark.parametrize(
    ("came", "expected", "answer"),
    [
        ([[[1, 2]]], [[[1, 2]]], False),
        ([[[1, 2]]], [[[1, 3]]], True),
        ([[[1]], [[1]], [[1]]], [[[1]]], False),  # three coordinates of text
        ([[[1]], [[1]], [[2]]], [[[1]]], True),
        ([[[1], [1]]], [[[1]]], False),  # one row for a batch
        ([[[1]], [[1]], [[1]]], [[[1]], [[1]], [[1]], [[1]]], True),  # another number of coordinates
        ([[1]], [[[1]]], True),
    ],
)
def test_positions_are_compared_with_those_of_a_row_or_coordinate_that_stands_for_several(came, expected, answer):
    assert bool(differs(torch.tensor(came), torch.tensor(expected))) is answer

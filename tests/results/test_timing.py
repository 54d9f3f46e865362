"""Every second of a run belongs to one stage, the innermost."""

import pytest
import torch
from torch import nn

from harness.core.timing import Stages


@pytest.fixture
def stages():
    """Stages under a clock that goes one second further with every look at it."""
    ticks = iter(range(1000))
    return Stages(clock=lambda: next(ticks))


def spent(stages):
    return {stage: seconds for stage, seconds in stages.seconds.items() if seconds}


def test_a_moment_is_the_innermost_stages(stages):
    with stages("scoring"):
        with stages("data"), stages("llm"):
            pass
        with stages("llm"):
            pass
    with stages("load"):
        pass
    assert spent(stages) == {"scoring": 3, "data": 2, "llm": 2, "load": 1}


class Fails(nn.Linear):
    def forward(self, rows):
        raise ZeroDivisionError


@pytest.mark.parametrize("tower", [nn.Linear(2, 2), Fails(2, 2)], ids=["whole", "failed"])
def test_passes_through_a_module_are_a_stage_even_those_that_fail(stages, tower):
    with stages("llm"):
        with stages.watching("vision", tower):
            for _ in range(2):
                try:
                    tower(torch.zeros(1, 2))
                except ZeroDivisionError:
                    assert isinstance(tower, Fails)
        tower.forward = lambda rows: rows
        tower(torch.zeros(1, 2))
    assert spent(stages) == {"llm": 3, "vision": 2}
    assert (len(tower._forward_hooks), len(tower._forward_pre_hooks)) == (0, 0)

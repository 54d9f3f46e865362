"""Errors that wait for a GPU, and what a cache of unknown origin is asked."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from harness.models.calls import Arguments, CallSite, HookError
from harness.pruning.steps import DeferredErrors, positions_differ, require_history


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
    deferred, waits = DeferredErrors(), []
    for value in (False, True, False):
        deferred.add(Flag(value, waits), ValueError("order"))
        deferred.add(Flag(False, waits), ValueError("mask"))
    assert not waits
    with pytest.raises(ValueError, match="order"):
        deferred.settle()
    deferred.settle()  # once is enough
    assert len(waits) == 1


def test_on_a_cpu_it_is_raised_at_once():
    deferred = DeferredErrors()
    deferred.add(torch.tensor(False), ValueError("order"))
    with pytest.raises(ValueError, match="order"):
        deferred.add(torch.tensor(True), ValueError("order"))


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
    assert bool(positions_differ(torch.tensor(came), torch.tensor(expected))) is answer


class Decoder(nn.Module):
    """A module that takes what `require_history` looks at."""

    def forward(self, inputs_embeds, attention_mask=None, position_ids=None, past_key_values=None): ...


def history(held=None, mask=None, positions=None, seen=True):
    """Bring two tokens with a cache of `held` positions in its first and last layer and a mask over `mask` tokens."""
    cache = None if held is None else SimpleNamespace(get_seq_length=lambda layer: held[layer])
    site = CallSite(Decoder(), "decoder", Arguments.of("embeddings mask positions cache"))
    mask = torch.ones(mask) if isinstance(mask, tuple) else mask
    positions = None if positions is None else torch.tensor(positions)
    passed = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
    require_history(site.read((torch.zeros(1, 2, 4),), passed), seen, "Model", DeferredErrors())


@pytest.mark.parametrize(
    "came",
    [
        {},
        {"positions": [[0, 1]]},
        {"positions": [[[5, 6], [0, 1]]]},  # one of a batch begins: none has lost what precedes it
        {"positions": [[5, 6]], "seen": False},
        {"mask": (1, 2), "positions": [[5, 6]]},
        {"held": (3, 3), "mask": (1, 5)},
        {"held": (3, 3), "seen": False},
        {"held": (3, 3), "mask": (1, 1, 2, 5), "seen": False},
        {"held": (0, 0)},
    ],
)
def test_a_cache_that_no_block_filled_is_taken_where_nothing_can_be_lost(came):
    history(**came)


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ({"held": (3, 3), "mask": (1, 6)}, "2 tokens came with a key-value cache of 3 and a mask of 6"),
        ({"held": (3, 3), "mask": (1, 4)}, "2 tokens came with a key-value cache of 3 and a mask of 4"),
        ({"mask": (1, 5)}, "2 tokens came with a key-value cache of 0 and a mask of 5"),
        ({"held": (3, 3)}, "the key-value cache of 3 tokens was not filled inside a prune block"),
        ({"held": (3, 3), "mask": (1, 1, 2, 5)}, "the key-value cache of 3 tokens was not filled inside a prune block"),
        ({"positions": [[5, 6]]}, "2 tokens came without a key-value cache, and not at position 0"),
        ({"held": (5, 3), "mask": (1, 7)}, "the first and last layer hold 5 and 3 tokens"),
        ({"held": (5, 3), "seen": False}, "the first and last layer hold 5 and 3 tokens"),
    ],
)
def test_a_cache_that_may_lack_something_is_refused(came, message):
    with pytest.raises(HookError, match=message):
        history(**came)

"""Which conversations are learned in which step, and which are held out: by seed and number of the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.core.distributed import Processes
from harness.train.conversations import Example, Source


class Order:
    """Deals `source` out: `valid` of it is held out, the rest comes in turns, each in another order.

    Process i of n gets the places i, i + n, ... of what all of them together see.
    """

    def __init__(self, source: Source, valid: int, batch: int, seed: int, processes: Processes) -> None:
        self._source, self._batch, self._seed, self._processes = source, batch, seed, processes
        drawn = np.random.default_rng([seed, 0]).permutation(len(source))
        self._held_out, self._learned = drawn[:valid], drawn[valid:]
        self._turn = lru_cache(maxsize=1)(self._shuffled)

    def held_out(self) -> list[Example]:
        """This process's share of what is never learned: always the same answers."""
        return [self._draw(0, int(number)) for number in self._mine(self._held_out)]

    def step(self, number: int) -> list[Example]:
        """This process's share of a step; a conversation that comes again may come with another of its answers."""
        places = self._mine(np.arange(number * self._batch, (number + 1) * self._batch))
        turns = [divmod(int(place), len(self._learned)) for place in places]
        return [self._draw(1 + turn, int(self._turn(turn)[rest])) for turn, rest in turns]

    def _mine(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return places[self._processes.rank :: self._processes.count]

    def _shuffled(self, turn: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 1, turn]).permutation(self._learned)

    def _draw(self, turn: int, number: int) -> Example:
        return self._source.draw(number, np.random.default_rng([self._seed, 2, turn, number]))

"""Choose the conversations of each step and the held-out ones, from the seed and the number of the step alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from harness.core.distributed import Processes
from harness.train.conversations import Example, Source


class Sampler:
    """Hold out `valid` conversations of `source` and shuffle the rest in every epoch.

    Process i of n takes the positions i, i + n, ... of every step.
    """

    def __init__(self, source: Source, valid: int, batch: int, seed: int, processes: Processes) -> None:
        self._source, self._batch, self._seed, self._processes = source, batch, seed, processes
        shuffled = np.random.default_rng([seed, 0]).permutation(len(source))
        self._held_out, self._training = shuffled[:valid], shuffled[valid:]
        self._epoch = lru_cache(maxsize=1)(self._shuffled)

    def held_out(self) -> list[Example]:
        """Return this process's share of the held-out conversations, always with the same answers."""
        return [self._draw(0, int(number)) for number in self._mine(self._held_out)]

    def step(self, number: int) -> list[Example]:
        """Return this process's share of a step; a conversation may have another of its answers in each epoch."""
        positions = self._mine(np.arange(number * self._batch, (number + 1) * self._batch))
        epochs = [divmod(int(position), len(self._training)) for position in positions]
        return [self._draw(1 + epoch, int(self._epoch(epoch)[index])) for epoch, index in epochs]

    def _mine(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions[self._processes.rank :: self._processes.count]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, 1, epoch]).permutation(self._training)

    def _draw(self, epoch: int, number: int) -> Example:
        return self._source.draw(number, np.random.default_rng([self._seed, 2, epoch, number]))

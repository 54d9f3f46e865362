"""Pruning, the handle of a prune block, and Kept, its record of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from methods.budget import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from methods.base import Method, Selection, Tokens


@dataclass(frozen=True)
class Kept:
    """Record of the kept tokens of one sample."""

    n: int  # visual tokens before
    k: int  # visual tokens after
    kept: list[int]  # indices of the kept tokens among the n, ascending
    grids: list[tuple[int, int, int]]  # (t, h, w) in tokens of each image or video
    per_layer: float = 0.0  # visual tokens that a decoder layer sees, averaged over layers

    @property
    def compute(self) -> float:
        """`per_layer` as a share of n; for a cut inside the language model it is larger than k / n."""
        return self.per_layer / self.n if self.n else 1.0


class Pruning:
    """Handle of a `prune` block: it asks the method, records what was kept, and seeds random methods."""

    def __init__(
        self,
        method: Method,
        budget: Budget,
        scorer: Callable[[Tensor], Tensor] | None,
        seed: int,
        positions: str = "keep",
        newlines: str | None = None,
    ) -> None:
        import torch

        self.method = method
        self.budget = budget
        self.positions = positions
        self.newlines = newlines  # what becomes of newline rows; None in families without them
        self.records: list[Kept] = []  # one per sample of every prefill that has visual tokens, in batch order
        self.before_take: Callable[[], None] | None = None  # called by `take`: raises errors that were deferred
        self._selections: list[Selection] = []  # of the latest prefill
        self._importance: list[Tensor | None] = []  # [N] of each sample of the latest prefill, as the method saw it
        self._replayed: list[Selection] | None = None  # returned by `select` instead of asking the method
        self._scorer = scorer
        self._generator = torch.Generator()
        self._seeds: list[int] = []
        self.seed(seed)

    def take(self) -> list[Kept]:
        """Return the records since the last call and clear them; an error if decoding was wrong meanwhile."""
        self.settle()
        taken = list(self.records)
        self.records.clear()
        return taken

    def settle(self) -> None:
        """Raise the errors that were deferred to spare a GPU a synchronisation."""
        if self.before_take is not None:
            self.before_take()

    def seed(self, value: int | Sequence[int]) -> None:
        """Seed the random numbers: one seed for all samples from now on, or one for each of the next samples."""
        self._seeds = list(value) if isinstance(value, Sequence) else []
        if not isinstance(value, Sequence):
            self._generator.manual_seed(int(value))

    def select(self, samples: Iterable[Tokens], sizes: Sequence[int]) -> list[Selection]:
        """Choose among the visual tokens of each sample; importance is added here, and `sizes` holds N of each."""
        if self._replayed is not None:
            return self._replay(self._replayed, sizes)
        ks = [self.budget.count(n) for n in sizes]
        self._importance = []
        scored = (self._scored(tokens, k) for tokens, k in zip(samples, ks, strict=True))
        self._selections = self.method.select_batch(scored, ks, [self._next_generator() for _ in sizes])
        return self._selections

    @property
    def latest(self) -> list[tuple[Selection, Tensor | None]]:
        """Selection of each sample of the latest prefill, with the importance [N] that the method saw, if any."""
        return list(zip(self._selections, self._importance, strict=True))

    @property
    def replays(self) -> bool:
        """True within `replaying`."""
        return self._replayed is not None

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Discard the records of prefills within the block."""
        recorded = len(self.records)
        try:
            yield
        finally:
            del self.records[recorded:]

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Let prefills within the block keep the tokens of the latest one, without the method and without records."""
        self._replayed = self._selections
        try:
            with self.unrecorded():
                yield
        finally:
            self._replayed = None

    def _replay(self, selections: list[Selection], sizes: Sequence[int]) -> list[Selection]:
        ks = [self.budget.count(n) for n in sizes]
        kept = [len(selection.kept) for selection in selections]
        if kept != ks:
            raise RuntimeError(f"a prefill of {list(sizes)} visual tokens keeps {ks}, the one to repeat kept {kept}")
        return selections

    def _scored(self, tokens: Tokens, k: int) -> Tokens:
        import torch

        from methods.base import Signal

        if self._scorer is not None and k < len(tokens.features) and Signal.IMPORTANCE in self.method.needs:
            with torch.no_grad():
                tokens = replace(tokens, importance=self._scorer(tokens.features))
        self._importance.append(tokens.importance)
        return tokens

    def _next_generator(self) -> torch.Generator:
        """Return the random generator of the next sample."""
        if self._seeds:
            self._generator = type(self._generator)().manual_seed(self._seeds.pop(0))
        return self._generator

"""Pruning, the handle of a prune block, and Kept, its record of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from methods.budget import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from methods.base import Method, Selection, Tokens
    from methods.tokens import Grid

    Size = tuple[int, int]  # N and K
    Answer = tuple[list[Size], list[Selection]]  # of one cut


@dataclass(frozen=True)
class Stage:
    """What one cut of a schedule left."""

    layer: int  # decoder layer behind which the cut is, -1 for the input
    kept: list[int]  # indices of the tokens left among the n, ascending


@dataclass(frozen=True)
class Kept:
    """Record of the kept tokens of one sample."""

    n: int  # visual tokens before
    k: int  # visual tokens after the last cut
    kept: list[int]  # indices of the kept tokens among the n, ascending
    grids: list[tuple[int, int, int]]  # (t, h, w) in tokens of each image or video
    per_layer: float = 0.0  # visual tokens that a decoder layer sees, averaged over layers
    budget: int | None = None  # K, where it is not k: a mean over layers, or a method that keeps another number
    stages: list[Stage] = field(default_factory=list)  # of a schedule of several cuts, the last one too; else none
    # Newline rows before and after; None in families without any.
    newlines: tuple[int, int] | None = field(default=None, kw_only=True)
    # k of each crop; None in families that cut no tiles, unless the budget is per tile.
    per_tile: list[int] | None = field(default=None, kw_only=True)

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
        self._latest: list[tuple[Selection, Tensor | None]] = []
        self._asked: dict[int, Answer] = {}  # by layer, of the latest prefill
        self._replayed: dict[int, Answer] | None = None  # what `select` returns instead of asking the method
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

    def count(self, grids: Sequence[Grid], crops: int) -> int:
        """Return K of a sample with the visual tokens of images `grids`, cut into so many crops."""
        from methods import per_tile

        return per_tile.count(self.method, self.budget, grids, crops)

    def generators(self, count: int) -> list[torch.Generator]:
        """Begin a prefill of `count` samples; return the random generator of each."""
        if self._replayed is not None:
            return [self._generator] * count  # nothing is drawn
        self._asked = {}
        return [self._next_generator() for _ in range(count)]

    def select(
        self, layer: int, samples: Iterable[Tokens], sizes: Sequence[Size], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        """Choose at the cut behind `layer` among the visual tokens of each sample, of size (N, K)."""
        if self._replayed is not None:
            before, selections = self._replayed.get(layer, ([], []))
            if before != sizes:
                raise RuntimeError(f"a prefill cuts {list(sizes)} (N, K), the one to repeat cut {before}")
            return selections
        ks = [k for _, k in sizes]
        if self.budget.per_tile is None:
            selections = self.method.select_batch(samples, ks, generators)
        else:
            from methods import per_tile

            selections = per_tile.select_batch(self.method, samples, ks, generators)
        self._asked[layer] = list(sizes), selections
        return selections

    def scored(self, tokens: Tokens) -> Tokens:
        """Add the importance, if the method needs it."""
        import torch

        from methods.base import Signal

        if self._scorer is None or Signal.IMPORTANCE not in self.method.needs:
            return tokens
        with torch.no_grad():
            return replace(tokens, importance=self._scorer(tokens.features))

    def finish(self, records: list[Kept], latest: list[tuple[Selection, Tensor | None]]) -> None:
        """End a prefill: hold the record of each sample, and its selection with the importance that was seen."""
        self.records.extend(records)
        if self._replayed is None:
            self._latest = latest

    @property
    def latest(self) -> list[tuple[Selection, Tensor | None]]:
        """Selection of each sample of the latest prefill, with the importance [N] that the method saw, if any."""
        return self._latest

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
        self._replayed = self._asked
        try:
            with self.unrecorded():
                yield
        finally:
            self._replayed = None

    def _next_generator(self) -> torch.Generator:
        """Return the random generator of the next sample."""
        if self._seeds:
            self._generator = type(self._generator)().manual_seed(self._seeds.pop(0))
        return self._generator

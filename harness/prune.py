"""`prune`: any supported transformers model, with a share of its visual tokens, for the length of a `with` block.

model = Qwen2_5_VLForConditionalGeneration.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
inputs = processor(text=[prompt], images=[image], return_tensors="pt")
with harness.prune(model, "idpruner", keep=0.25, scorer="path/to/selector", lam=0.5) as pruning:
    print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64)), pruning.records)
"""

# The package exports the function of this name, so this module must stay importable without torch.
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.budget import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.pruning.vision_cache import SharedVision
    from methods.base import Method, Selection, Tokens


POSITIONS = ("keep", "compact")  # of kept tokens: see `prune`


@dataclass(frozen=True)
class Kept:
    """What was kept of one sample."""

    n: int  # visual tokens before
    k: int  # visual tokens after
    kept: list[int]  # their indices among the n, ascending
    grids: list[tuple[int, int, int]]  # (t, h, w) in tokens of each image or video
    per_layer: float = 0.0  # visual tokens that a decoder layer sees, on average: what `k` is worth as computation

    @property
    def compute(self) -> float:
        """`per_layer` as a share of n: the budget of a cut inside the LLM is above k / n."""
        return self.per_layer / self.n if self.n else 1.0


class Pruning:
    """Handle of a running `prune` block: what was kept, and the seed of methods that draw at random."""

    def __init__(
        self,
        method: Method,
        budget: Budget,
        scorer: Callable[[Tensor], Tensor] | None,
        seed: int,
        positions: str = "keep",
    ) -> None:
        import torch

        self.method = method
        self.budget = budget
        self.positions = positions
        self.records: list[Kept] = []  # one per sample of every prefill that has visual tokens, in batch order
        self.before_take: Callable[[], None] | None = None  # checks that wait until somebody wants the records
        self._selections: list[Selection] = []  # of the latest prefill
        self._replayed: list[Selection] | None = None
        self._scorer = scorer
        self._generator = torch.Generator()
        self._seeds: list[int] = []
        self.seed(seed)

    def take(self) -> list[Kept]:
        """Return the records since the last call and forget them; ValueError if decoding went wrong meanwhile."""
        if self.before_take is not None:
            self.before_take()
        taken = list(self.records)
        self.records.clear()
        return taken

    def seed(self, value: int | Sequence[int]) -> None:
        """Start the random numbers afresh: one seed from here on, or one for each of the next samples."""
        self._seeds = list(value) if isinstance(value, Sequence) else []
        if not isinstance(value, Sequence):
            self._generator.manual_seed(int(value))

    def select(self, samples: Iterable[Tokens], sizes: Sequence[int]) -> list[Selection]:
        """Choose among the visual tokens of each sample, which comes without importance; `sizes` is N of each."""
        if self._replayed is not None:
            return self._replay(self._replayed, sizes)
        ks = [self.budget.count(n) for n in sizes]
        scored = (self._scored(tokens, k) for tokens, k in zip(samples, ks, strict=True))
        self._selections = self.method.select_batch(scored, ks, [self._chance() for _ in sizes])
        return self._selections

    @property
    def replays(self) -> bool:
        """True within `replaying`."""
        return self._replayed is not None

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Forget the records of what happens within the block."""
        recorded = len(self.records)
        try:
            yield
        finally:
            del self.records[recorded:]

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Let prefills within the block keep what the latest one kept: no method is asked, and nothing is recorded."""
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

        if self._scorer is None or k >= len(tokens.features) or Signal.IMPORTANCE not in self.method.needs:
            return tokens
        with torch.no_grad():
            return replace(tokens, importance=self._scorer(tokens.features))

    def _chance(self) -> torch.Generator:
        """Return where the next sample's random numbers come from."""
        if self._seeds:
            self._generator = type(self._generator)().manual_seed(self._seeds.pop(0))
        return self._generator


@contextmanager
def prune(
    model: nn.Module,
    method: str | Method,
    *,
    keep: float | None = None,
    tokens: int | None = None,
    scorer: str | Path | nn.Module | None = None,
    seed: int = 0,
    positions: str = "keep",
    shared: SharedVision | None = None,
    **params: Any,
) -> Iterator[Pruning]:
    """Prune the visual tokens of every prompt that enters `model` within the block; afterwards the model is as before.

    Tokens are cut in front of the language model, or behind decoder layer j by a method whose stage is "layer:j". A
    key-value cache that was filled in the block stays pruned: use it in this or another block only (of the same j),
    since the model takes its layers for complete. Prompts of a batch that keep different numbers of tokens come out
    of a plain forward padded: on the right if they were padded on the right, else on the left, also if they came
    without padding. Of its S tokens, padding not counted, sample i then has S - `records[i].n` + `records[i].k` rows.

    Args:
        model: a model of a supported family, as transformers loads it.
        method: name from `methods.names()`, `path/to/file.py:Class`, or an instance.
        keep: share of each sample's visual tokens to keep, in (0, 1].
        tokens: number of visual tokens to keep of each sample; give this or `keep`.
        scorer: for methods that need importance: a module `[N, D] -> [N]`, or the folder or file of a released
            scorer; by default the one that came with the model's weights.
        seed: of methods that draw at random.
        positions: "keep" (default): kept tokens have the position ids of the whole prompt. "compact": what enters the
            language model is numbered 0..L-1 and decoding goes on from L, as in the published codes for LLaVA-1.5,
            which cut before there are positions; for families with 1-D positions and methods that cut there.
        shared: passes through the vision tower of this model, which earlier blocks left and later ones find.
        params: parameters of the method, if it is given by name.
    """
    from harness.models import adapter_for
    from harness.pruning.session import Session

    budget = Budget(keep=keep, tokens=tokens)
    chosen = _method(method, params)
    adapter = adapter_for(model)
    adapter.check(chosen, adapter.model.config)
    adapter.check_positions(positions, chosen)
    if chosen.stage == "pixels":
        instead = f"run python -m harness method={chosen.name}, or resize the images yourself"
        raise ValueError(f"{chosen.name} makes images smaller before the model gets them, prune() cannot: {instead}")
    # Where everything stays there is nothing to score.
    score = None if budget.keep == 1 else adapter.scorer_for(chosen, scorer)
    pruning = Pruning(chosen, budget, score, seed, positions)
    session = Session(adapter, pruning, shared)
    pruning.before_take = session.doubts.settle
    with session.attached():
        yield pruning


def _method(method: str | Method, params: dict[str, Any]) -> Method:
    import methods

    if isinstance(method, str):
        return methods.load(method, **params)
    if params:
        raise ValueError(f"{method.name} is already an instance: set {', '.join(params)} on it, not in prune()")
    return method

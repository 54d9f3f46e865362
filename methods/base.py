"""The base class of pruning methods: a `Method` maps `Tokens` to a `Selection`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from methods import checks
from methods.budget import Budget
from methods.selecting import Selecting, error
from methods.tokens import (
    OFFICIAL,
    PAPER,
    AttentionSpec,
    Cut,
    DeclaredTokens,
    Grid,
    HiddenState,
    LayerState,
    Mix,
    Reads,
    Selection,
    Signal,
    Tokens,
    num_tokens,
)

__all__ = [
    "OFFICIAL",
    "PAPER",
    "AttentionSpec",
    "Cut",
    "HiddenState",
    "LayerState",
    "Method",
    "Mix",
    "Reads",
    "Selection",
    "Signal",
    "Tokens",
]

Received = AttentionSpec  # old name, removed in the next release
RENAMED = {  # old names of attributes, removed in the next release
    "beside": "companion_files",
    "made_from": "file_metadata",
    "not_public": "unpublished_params",
    "received": "attention_spec",
}


LATER = "later"  # key of the metadata of fields that `later` makes


def later(default: Any) -> Any:
    """Declare a parameter that was added when runs already existed: at its default, their identity is unchanged."""
    return field(default=default, metadata={LATER: True})


@dataclass(kw_only=True)
class Method:
    """Base of all methods. A subclass is a dataclass whose fields are its parameters and which overrides `_select`.

    Its docstring has the idea, the deviation from the authors' code or "none", and the paper. `int`, `float`, `bool`,
    `str` and `Literal` fields are checked on construction; further limits go to `__post_init__` through `require`.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0  # raise it when other tokens are kept or merged; 0: its source text identifies it
    fidelity: ClassVar[str] = "undeclared"  # "exact": the authors' indices, or "adapted: <why>"; never inherited
    revisions: ClassVar[Mapping[str, int]] = {}  # variant -> `revision`
    half_precision: ClassVar[frozenset[str]] = frozenset()  # variants that are `in_model_dtype`
    needs: ClassVar[frozenset[Signal]] = frozenset()
    # Whether the authors' own code reads attention maps, which FlashAttention does not return; None: not known.
    attention_maps: ClassVar[bool | None] = None
    compares_frames: ClassVar[bool] = False  # what it keeps of a frame depends on the other frames of the video
    unpublished_params: ClassVar[frozenset[str]] = frozenset()  # parameters whose value the authors did not publish
    companion_files: ClassVar[Mapping[str, str]] = {}  # parameter -> default file next to a model's weights

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()
        cls.version = cls.__dict__.get("version", 0)
        cls.fidelity = cls.__dict__.get("fidelity", "undeclared")
        cls.attention_maps = cls.__dict__.get("attention_maps")
        for old, new in RENAMED.items():
            if old in cls.__dict__:
                warnings.warn(f"{cls.__name__}.{old} is called {new} now", FutureWarning, stacklevel=2)
                setattr(cls, new, cls.__dict__[old])

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        """Refuse a class that is not declared as methods are, before its parameters are read."""
        checks.declaration(cls)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        checks.parameters(self.name, self)

    def require(self, parameter: str, holds: bool, expected: str) -> None:
        """Raise a ValueError that names `parameter`, its value and what is `expected`, unless `holds`."""
        if not holds:
            raise ValueError(f"{self.name}: {parameter} must be {expected}, not {getattr(self, parameter)!r}")

    def check(self) -> None:
        """Raise ValueError if a parameter that a run must set is missing; commands call this before loading a model."""

    @property
    def revision(self) -> int:
        """Added to `version` in the identity of a run: raise it when other tokens are kept with some parameters only.

        Runs with the other parameters then stay the same. It never goes down, not even when `version` rises. By default
        it is that of the variant in `revisions`.
        """
        return self.revisions.get(getattr(self, "variant", ""), 0)

    @property
    def stage(self) -> str:
        """Where tokens are cut: "input" (before decoder layer 0), "layer:j" (after layer j), "layers" or "pixels".

        With "layer:j" the method reads layer j and has a field `layer`; layers 0..j see all tokens, later ones the
        kept. With "layers" it has a `schedule` of its own. With "pixels" no token is cut: the images are made smaller.
        """
        if type(self).schedule is not Method.schedule:
            return "layers"
        return f"layer:{getattr(self, 'layer', 0)}" if Signal.LLM in self.needs else "input"

    def count_kept(self, budget: Budget, grids: Sequence[Grid]) -> int:
        """Return K, the number of tokens to keep of a sample; by default `budget` counts all its tokens together."""
        return budget.count(num_tokens(grids))

    def schedule(self, n: int, k: int, layers: int) -> Sequence[Cut]:
        """Return the cuts of a sample of `n` visual tokens with budget `k` < n in a decoder with `layers` layers.

        Layers ascend from -1, the input, to `layers` - 2, the last that is followed by another; the number of tokens
        never rises. By default there is one cut, where `stage` says. `select` is asked once per cut, on tokens left.
        """
        return (Cut(int(self.stage.partition(":")[2] or -1), k),)

    def cuts(self, n: int, k: int, layers: int) -> tuple[Cut, ...]:
        """Return the checked `schedule`; none where the budget keeps all tokens, or where the method cuts none."""
        return checks.schedule(self.name, self.schedule(n, k, layers), n, layers) if k < n else ()

    @property
    def attention_spec(self) -> AttentionSpec:
        """Which attention of the vision tower is read; by default that of its last layer, as `variant` defines it."""
        return PAPER if getattr(self, "variant", "official") == "paper" else OFFICIAL

    @property
    def hidden_state(self) -> HiddenState:
        """Which hidden states of layer j `LayerState.hidden` holds; `LayerMethod` describes the choices."""
        return "output"

    @property
    def in_model_dtype(self) -> bool:
        """True if it computes with bfloat16 and float16 inputs as they are, not with their float32 copies."""
        return getattr(self, "variant", "") in self.half_precision

    @property
    def reads(self) -> Reads:
        """Whose q and k a cut behind layer j reads: "this" is layer j, "next" layer j+1 on the rows before the cut."""
        return "this"

    @property
    def rotated(self) -> bool:
        """True if rotary positions are applied to the q and k that the method reads."""
        return True

    @property
    def exact_k(self) -> bool:
        """False if the method may keep another number of tokens than `k`, as its authors do with `fit="official"`."""
        return getattr(self, "fit", "k") == "k"

    @property
    def before_mlp(self) -> bool:
        """True if the MLP of layer j also runs on the kept tokens alone, which gives the same result for less work.

        The comparison in arXiv 2602.13315 cuts there; the authors' own codes cut between two layers.
        """
        needs_no_output = self.hidden_state in ("unused", "normed_input")
        return needs_no_output and getattr(self, "variant", "official") == "paper"

    @property
    def file_metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Metadata of the files that parameters name, by parameter.

        The `digest`, or "none", is part of a run's label and identity; a file that names a `model` fits only that one.
        """
        return {}

    @property
    def flash_compatible(self) -> bool:
        """True if the method runs with any attention kernel; all do, since scores are recomputed from q and k."""
        return True

    @property
    def servable(self) -> bool:
        """True if a serving engine could run the method: it reads only the output of the vision tower."""
        return not self.needs & {Signal.VIT_ATTENTION, Signal.VIT_KEYS, Signal.VIT_FEATURES, Signal.LLM}

    def select(self, tokens: Tokens, k: int, generator: torch.Generator | None = None) -> Selection:
        """Choose exactly `k` of the N visual tokens; `k >= N` keeps all of them for every method and input.

        Where `exact_k` is False, another number may be kept.

        Randomness comes from `generator` alone, or from a fresh one with seed 0. Raises ValueError for NaN or infinite
        input, for a missing signal, and for a subclass that breaks the contract.
        """
        return self.select_batch([tokens], [k], [generator])[0]

    def select_batch(
        self, samples: Iterable[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator | None] | None = None
    ) -> list[Selection]:
        """Choose `ks[i]` tokens of each sample i, as `select` does; samples may differ in N."""
        jobs = zip(samples, ks, generators or [None] * len(ks), strict=True)
        return selections(self, jobs, together=type(self)._select_batch is not Method._select_batch)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        """Choose `k` < N tokens; all tensors of `tokens` are finite, and every signal in `needs` is present."""
        if type(self)._select_batch is Method._select_batch:
            raise error("it has no _select(self, tokens, k, generator) that chooses: write one")
        return self._select_batch([tokens], [k], [generator])[0]

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        """Choose tokens of several samples; a subclass overrides either this or `_select`."""
        return [self._select(*job) for job in zip(samples, ks, generators, strict=True)]


Job = tuple[Tokens, int, torch.Generator | None]  # a sample, its K, and its source of randomness


def selections(method: Method, jobs: Iterable[Job], together: bool) -> list[Selection]:
    """Return the selection of each job; with `together` the method receives all samples in one call.

    Otherwise `jobs` is read one at a time: the state of a decoder layer is large, and only one is then in memory.
    """
    if together:
        return _selections(method, list(jobs))
    return [_selections(method, [job])[0] for job in jobs]


def _selections(method: Method, jobs: Sequence[Job]) -> list[Selection]:
    sizes = [checks.tokens(method.name, tokens) for tokens, _, _ in jobs]
    ks = [checks.count(method.name, k, n) for (_, k, _), n in zip(jobs, sizes, strict=True)]
    device = jobs[0][0].features.device if jobs else torch.device("cpu")
    results = [Selection(kept=torch.arange(n, device=device)) for n in sizes]
    cut = [i for i, (k, n) in enumerate(zip(ks, sizes, strict=True)) if k < n]
    for i in cut:
        checks.signals(method.name, method.needs, jobs[i][0], sizes[i])
    if cut:
        samples = [DeclaredTokens.of(jobs[i][0], method.needs) for i in cut]
        generators = [jobs[i][2] or torch.Generator().manual_seed(0) for i in cut]
        with in_progress(method, device) as pending:
            chosen = method._select_batch(samples, [ks[i] for i in cut], generators)
        checks.number_of_selections(pending, chosen, len(cut))
        for i, selection in zip(cut, chosen, strict=True):
            checks.selection(pending, selection, sizes[i], ks[i], jobs[i][0].features.device)
            results[i] = selection
        pending.settle(device)
    return results


@contextmanager
def in_progress(method: Method, device: torch.device) -> Iterator[Selecting]:
    """Let `method` select within the block: without gradients, in the precision that it asks for."""
    # Autocast would silently compute similarities in half precision.
    with Selecting(method) as pending, torch.no_grad(), torch.autocast(device.type, enabled=False), _no_tf32():
        yield pending


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Multiply float32 matrices in float32 on a GPU: lmms-eval turns TF32 on, whose error of 1e-3 decides picks."""
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    setting = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, setting)

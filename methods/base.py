"""The contract of a pruning method: `Method`, around the `Tokens` it sees and the `Selection` it returns."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from methods import checks
from methods.tokens import OFFICIAL, PAPER, AttentionSpec, HiddenState, LayerState, Selection, Signal, Tokens

__all__ = ["OFFICIAL", "PAPER", "AttentionSpec", "HiddenState", "LayerState", "Method", "Selection", "Signal", "Tokens"]

Received = AttentionSpec  # its name until 0.1; goes with the next release
RENAMED = {  # attributes of a method as they were called until 0.1; goes with the next release
    "beside": "companion_files",
    "made_from": "file_metadata",
    "not_public": "unpublished_params",
    "received": "attention_spec",
}


@dataclass(kw_only=True)
class Method:
    """Base of all methods. A subclass is a dataclass whose fields are its parameters and which overrides `_select`.

    Its docstring says the idea, the deviation from the authors' code or "none", and the paper. `int`, `float`, `bool`,
    `str` and `Literal` fields are checked on construction; further limits go to `__post_init__` through `require`.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0  # raise it when other tokens are kept or merged; 0: results are known by the source text
    fidelity: ClassVar[str] = "undeclared"  # "exact": the authors' indices, or "adapted: <why>"; never inherited
    needs: ClassVar[frozenset[Signal]] = frozenset()
    unpublished_params: ClassVar[frozenset[str]] = frozenset()  # parameters whose value the authors did not publish
    companion_files: ClassVar[Mapping[str, str]] = {}  # parameter -> default file next to a model's weights

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()
        cls.version = cls.__dict__.get("version", 0)
        cls.fidelity = cls.__dict__.get("fidelity", "undeclared")
        for old, new in RENAMED.items():
            if old in cls.__dict__:
                warnings.warn(f"{cls.__name__}.{old} is called {new} now", FutureWarning, stacklevel=2)
                setattr(cls, new, cls.__dict__[old])

    def __post_init__(self) -> None:
        checks.parameters(self.name, self)

    def require(self, parameter: str, holds: bool, expected: str) -> None:
        """Refuse the value of `parameter` in one line unless `holds`."""
        if not holds:
            raise ValueError(f"{self.name}: {parameter} must be {expected}, not {getattr(self, parameter)!r}")

    def check(self) -> None:
        """Raise ValueError where a default leaves open what a run has to say: commands ask before they load a model."""

    @property
    def stage(self) -> str:
        """Where tokens are cut: "input" (before decoder layer 0) or "layer:j" (layers 0..j see all, later the kept).

        A method inside the LLM reads layer j and has a field `layer`. "pixels": none is cut, the images are smaller.
        """
        return f"layer:{getattr(self, 'layer', 0)}" if Signal.LLM in self.needs else "input"

    @property
    def attention_spec(self) -> AttentionSpec:
        """Which attention of the vision tower is read; by default that of its last layer, as `variant` defines it."""
        return PAPER if getattr(self, "variant", "official") == "paper" else OFFICIAL

    @property
    def hidden_state(self) -> HiddenState:
        """What `LayerState.hidden` is: layer j's input, normed; its output; that after the LLM's last norm; or any."""
        return "output"

    @property
    def before_mlp(self) -> bool:
        """True if layer j's MLP, too, runs on the kept tokens alone: the same result, for less work.

        The comparison in arXiv 2602.13315 cuts there, the authors' codes between two layers.
        """
        early = self.hidden_state in ("unused", "normed_input")  # what leaves the layer is not there yet
        return early and getattr(self, "variant", "official") == "paper"

    @property
    def file_metadata(self) -> Mapping[str, Mapping[str, str]]:
        """What the files hold that parameters name: parameter -> metadata.

        Results are labelled and known by its `digest`, or "none"; with a `model`, they are refused for any other.
        """
        return {}

    @property
    def flash_compatible(self) -> bool:
        """True if it runs whatever the model's attention kernel: here all do, on scores recomputed from q and k."""
        return True

    @property
    def attention_maps(self) -> bool:
        """True if the authors' own code reads attention maps, which kernels like FlashAttention do not return."""
        return bool(self.needs & {Signal.VIT_ATTENTION, Signal.LLM})

    @property
    def servable(self) -> bool:
        """True if a serving engine could run it: on what leaves the vision tower, before the LLM starts."""
        return not self.needs & {Signal.VIT_ATTENTION, Signal.VIT_KEYS, Signal.LLM}

    def select(self, tokens: Tokens, k: int, generator: torch.Generator | None = None) -> Selection:
        """Choose exactly `k` of the N visual tokens; `k >= N` keeps all, whatever the method and the values.

        Randomness comes from `generator` alone, or from a fresh one with seed 0. Raises ValueError for NaN or infinite
        input, for a missing signal, and for a subclass that broke the contract.
        """
        return self.select_batch([tokens], [k], [generator])[0]

    def select_batch(
        self, samples: Iterable[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator | None] | None = None
    ) -> list[Selection]:
        """Choose `ks[i]` tokens of each sample i, as `select` does; samples may differ in N."""
        given = zip(samples, ks, generators or [None] * len(ks), strict=True)
        return selections(self, given, together=type(self)._select_batch is not Method._select_batch)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        """Choose `k` < N tokens; everything in `tokens` is finite and what `needs` lists is there."""
        if type(self)._select_batch is Method._select_batch:
            raise NotImplementedError(f"{type(self).__name__} must override _select")
        return self._select_batch([tokens], [k], [generator])[0]

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        """As `_select`, for several samples: a subclass overrides one of the two."""
        return [self._select(*one) for one in zip(samples, ks, generators, strict=True)]


Given = tuple[
    Tokens, int, torch.Generator | None
]  # a sample, how many tokens to keep of it, and where chance comes from


def selections(method: Method, given: Iterable[Given], together: bool) -> list[Selection]:
    """Return a selection for each of the samples, which the method sees `together` or as they come.

    As they come no two are there at once: the state of a decoder layer is large.
    """
    if together:
        return _selections(method, list(given))
    return [_selections(method, [one])[0] for one in given]


def _selections(method: Method, given: Sequence[Given]) -> list[Selection]:
    sizes = [checks.tokens(method.name, tokens) for tokens, _, _ in given]
    ks = [checks.count(method.name, k, n) for (_, k, _), n in zip(given, sizes, strict=True)]
    device = given[0][0].features.device if given else torch.device("cpu")
    found = [Selection(kept=torch.arange(n, device=device)) for n in sizes]
    cut = [i for i, (k, n) in enumerate(zip(ks, sizes, strict=True)) if k < n]
    for i in cut:
        checks.signals(method.name, method.needs, given[i][0], sizes[i])
    if cut:
        samples, chosen = [given[i][0] for i in cut], [ks[i] for i in cut]
        generators = [given[i][2] or torch.Generator().manual_seed(0) for i in cut]
        # Autocast would take the similarities down to half precision behind the method's back.
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _no_tf32():
            made = method._select_batch(samples, chosen, generators)
        for i, selection in zip(cut, made, strict=True):
            checks.selection(method.name, selection, sizes[i], ks[i])
            found[i] = selection
    return found


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

"""The contract of a pruning method: what it sees (`Tokens`), what it returns (`Selection`), and `Method` around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor

from methods import checks


class Signal(StrEnum):
    """What a method may ask for beyond the features; each value is the field of `Tokens` that carries it."""

    IMPORTANCE = "importance"
    VIT_ATTENTION = "vit_attention"
    VIT_KEYS = "vit_keys"
    LLM = "llm"
    TEXT = "text"


@dataclass(frozen=True, eq=False)
class LayerState:
    """One decoder layer over the whole sequence of S text and visual tokens, positions applied."""

    q: Tensor  # [H, S, d]
    k: Tensor  # [KV, S, d]
    hidden: Tensor  # [S, D]
    visual_idx: Tensor  # [N] where the visual tokens stand in the sequence


@dataclass(frozen=True, eq=False)
class Tokens:
    """The visual tokens of one sample; every signal may be None unless the method needs it."""

    features: Tensor  # [N, D] as they would enter the LLM
    grids: Sequence[tuple[int, int, int]]  # (t, h, w) in tokens per image or video, in sequence order
    importance: Tensor | None = None  # [N] raw logits of a learned scorer
    vit_attention: Mapping[str, Tensor] | None = None  # {"last" | "middle": [N]} attention received in that layer
    vit_keys: Tensor | None = None  # [N, d_k] head-mean keys of the layer "last"
    llm: LayerState | None = None
    text: Tensor | None = None  # [T, D] embeddings of the question


@dataclass(frozen=True, eq=False)
class Selection:
    """What is kept. Methods that merge average every token into the kept row that `owner` names."""

    kept: Tensor  # [K] int64, ascending, distinct
    order: Tensor | None = None  # [K] the same indices in the order they were picked
    owner: Tensor | None = None  # [N] int64 row of `kept`

    @classmethod
    def of(cls, order: Tensor) -> Selection:
        """Build the selection of indices `order` [K], picked in that order."""
        return cls(kept=order.sort().values, order=order)


@dataclass(kw_only=True)
class Method:
    """Base of all methods. A subclass is a dataclass whose fields are its parameters and which overrides `_select`.

    Its docstring says the idea, the deviation from the authors' code or "none", and the paper. `int`, `float`, `bool`,
    `str` and `Literal` fields are checked on construction; further limits go to `__post_init__` through `require`.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[Signal]] = frozenset()

    def __init_subclass__(cls) -> None:
        cls.name = cls.__dict__.get("name") or cls.__name__.lower()

    def __post_init__(self) -> None:
        checks.parameters(self.name, self)

    def require(self, parameter: str, holds: bool, expected: str) -> None:
        """Refuse the value of `parameter` in one line unless `holds`."""
        if not holds:
            raise ValueError(f"{self.name}: {parameter} must be {expected}, not {getattr(self, parameter)!r}")

    @property
    def stage(self) -> str:
        """Where tokens are cut: "input" (before decoder layer 0) or "layer:j"; such a method has a field `layer`."""
        return f"layer:{getattr(self, 'layer', 0)}" if Signal.LLM in self.needs else "input"

    @property
    def flash_compatible(self) -> bool:
        """True if no attention score is needed, which kernels like FlashAttention do not return."""
        return not self.needs & {Signal.VIT_ATTENTION, Signal.LLM}

    @property
    def servable(self) -> bool:
        """True if a serving engine could run it: on what leaves the vision tower, before the LLM starts."""
        return not self.needs & {Signal.VIT_ATTENTION, Signal.VIT_KEYS, Signal.LLM}

    def select(self, tokens: Tokens, k: int, generator: torch.Generator | None = None) -> Selection:
        """Choose exactly `k` of the N visual tokens; `k >= N` keeps all, whatever the method and the values.

        Randomness comes from `generator` alone, or from a fresh one with seed 0. Raises ValueError for NaN or infinite
        input, for a missing signal, and for a subclass that broke the contract.
        """
        n = checks.tokens(self.name, tokens)
        k = checks.count(self.name, k, n)
        if k >= n:
            return Selection(kept=torch.arange(n, device=tokens.features.device))
        checks.signals(self.name, self.needs, tokens, n)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # Autocast would take the similarities down to half precision behind the method's back.
        with torch.no_grad(), torch.autocast(tokens.features.device.type, enabled=False):
            selection = self._select(tokens, k, generator)
        checks.selection(self.name, selection, n, k)
        return selection

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        """Choose `k` < N tokens; everything in `tokens` is finite and what `needs` lists is there."""
        raise NotImplementedError(f"{type(self).__name__} must override _select")

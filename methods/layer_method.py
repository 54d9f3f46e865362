"""The base class of methods that cut inside the LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

from methods.base import Cut, HiddenState, Method, Signal, later
from methods.schedules import mean_too_small


@dataclass(kw_only=True)
class LayerMethod(Method):
    """A method that cuts after decoder layer j, counted from 0: its stage is "layer:j".

    Decoder layers 0..j see all tokens, and so do their KV caches; layers j+1.. see the kept ones. `Tokens.llm` is the
    state of decoder layer j itself: the q and k that its attention uses, rotary positions applied, and as `hidden`
    [S, D] what the property `hidden_state` names:

        "unused"         not read: any finite tensor.
        "normed_input"   the input of layer j after the layer's input norm; its q and k are projections of it.
        "output"         the output of layer j with residual and MLP: the input of layer j+1, before any norm.
        "normed_output"  the same after the LLM's final norm, which precedes the language-model head.

    The MLP acts on each token alone, so cutting between the attention and the MLP of layer j gives the same tokens.

    Args:
        layer: j; default none, which takes the layer of the variant.
        budget_at: what K counts: "end", the tokens behind the cut, or "mean", the tokens that a decoder layer sees on
            average, of which layers 0..j see all. SelectionError for a K that is too small for any cut there.
    """

    needs = frozenset({Signal.LLM})
    layers: ClassVar[Mapping[str, int]] = {"official": 1, "paper": 0}  # j by variant
    hidden: ClassVar[Mapping[str, HiddenState]] = {"official": "unused", "paper": "unused"}  # by variant

    layer: int | None = None
    budget_at: Literal["end", "mean"] = later("end")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.layer, int) and not isinstance(self.layer, bool)
        self.require("layer", self.layer is None or (whole and self.layer >= 0), "an integer of at least 0, or null")

    @property
    def stage(self) -> str:
        """Where tokens are cut: "layer:j", after decoder layer j."""
        return f"layer:{self.layers[getattr(self, 'variant', 'official')] if self.layer is None else self.layer}"

    def schedule(self, n: int, k: int, layers: int) -> tuple[Cut, ...]:
        """Return the one cut, behind layer j."""
        (cut,) = super().schedule(n, k, layers)
        layer = cut.layer
        if self.budget_at == "mean":
            least = -(-((layer + 1) * n + layers - layer - 1) // layers)
            if k < least:
                raise mean_too_small(k, n, layers, least, layer + 1)
            k = round(Fraction(k * layers - (layer + 1) * n, layers - layer - 1))
        return (Cut(layer, k),)

    @property
    def hidden_state(self) -> HiddenState:
        """The kind of `LayerState.hidden`, one of those above."""
        return self.hidden[getattr(self, "variant", "official")]

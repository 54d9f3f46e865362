"""DART: keep a few pivots and the tokens that repeat them least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import HiddenState, LayerState, Selection, Tokens
from methods.kernels.cosine import Cosine, directions, snap
from methods.kernels.model_dtype import is_half, unit_rows
from methods.layer_method import LayerMethod
from methods.scores import top


@dataclass(kw_only=True)
class DART(LayerMethod):
    """Keep the visual pivots, and for each pivot the visual tokens least like it. Paper: arXiv 2502.11494.

        pivots = the visual and the text tokens whose keys have the largest L1 norm, all KV heads taken together
        for each pivot p: keep its share of tokens, those left of lowest cos(hidden_p, hidden_i)

    Args:
        variant: "official" (default) is the authors' algorithm as two independent ports have it, "paper" the comparison
            in arXiv 2602.13315. They differ in five points, besides the layer.
            `hidden`: official, what leaves decoder layer `layer`, after the LLM's final norm; paper, what enters it,
            after the layer's input norm.
            Text pivots: official, from the text after the last visual token; paper, from all text, system prompt
            included.
            Order of the pivots: official, that of a Python set of their positions in the sequence, filled with the
            visual ones, then the text ones, by descending norm; paper, as they were filled in.
            Share of a pivot, of what the visual pivots leave of K: official, equal and rounded down, and the remainder
            one by one in a second round; paper, equal and rounded up, the last pivots getting what is left.
            Precision: paper computes norms and cosines in the model's dtype if that is half precision.
        layer: 0-based decoder layer j whose k and `hidden` are read; layers 0..j see all tokens, later ones the kept.
            Default none: 1 for "official" (keys of layer 1, states that enter layer 2, which is the first to see the
            kept: the ports' layer 2), 0 for "paper".
        image_pivots: visual pivots; default 4, at most K.
        text_pivots: text pivots; default 4, or as many as there are.

    Deviation: official keeps 4 + 8 t tokens, t = int(N keep / 8); here exactly K: those of the largest t that fits, and
    the second round. Text pivots may be fewer than asked for. Pivots are counts; the comparison also takes shares.
    Otherwise float64, norms to 40 bits, cosines to 12 decimals; ties to the lowest index.
    Code: ZichenWen1/DART, not available to us, read in the ports of JulietChoo/VisionSelector and
    ModelTC/LightCompress; comparison: YF-T/IDPruner (dart.py).
    """

    name = "dart"
    version = 1
    fidelity = "adapted: exactly K tokens instead of 4 + 8 t, read in two ports of the authors' code"
    attention_maps = False  # the authors' code reads keys and hidden states
    revisions: ClassVar[Mapping[str, int]] = {"paper": 1}
    half_precision = frozenset({"paper"})
    hidden: ClassVar[Mapping[str, HiddenState]] = {"official": "normed_output", "paper": "normed_input"}

    variant: Literal["official", "paper"] = "official"
    image_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("image_pivots", self.image_pivots >= 1, "at least 1")
        self.require("text_pivots", self.text_pivots >= 0, "at least 0")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        visual = state.visual_idx
        image, pivots = self._pivots(state, k)
        distance = -self._similarity(state.hidden, torch.tensor(pivots, device=visual.device), visual)
        order = image
        for pivot, share in self._shares(k - len(image), len(pivots)):
            remaining = distance[pivot].index_fill(0, order, -torch.inf)
            order = torch.cat([order, top(remaining, share)])
        return Selection.of(order)

    def _similarity(self, hidden: Tensor, pivots: Tensor, visual: Tensor) -> Tensor:
        """Return the similarities [P, N] of the rows `pivots` to the rows `visual`."""
        if self.in_model_dtype and is_half(hidden):
            unit = unit_rows(hidden)
            return torch.cat([pivot[None] @ unit[visual].T for pivot in unit[pivots]])
        n, count = len(visual), len(pivots)
        cosine = Cosine(directions(hidden[torch.cat([visual, pivots])]))
        return cosine(torch.arange(n, n + count, device=visual.device))[:, :n]

    def _norms(self, k: Tensor) -> Tensor:
        """Return the L1 norms [S] of keys [KV, S, d], all heads taken together."""
        if self.in_model_dtype and is_half(k):
            return k.transpose(0, 1).flatten(1).norm(p=1, dim=1)
        return snap(k.double().abs().sum(dim=(0, 2)))

    def _shares(self, count: int, pivots: int) -> list[tuple[int, int]]:
        """Divide `count` tokens among pivots; return (pivot, tokens) in the order in which pivots choose."""
        if self.variant == "official":
            return [(i, count // pivots) for i in range(pivots)] + [(i, 1) for i in range(count % pivots)]
        share = -(-count // pivots)
        return [(i, min(share, max(0, count - i * share))) for i in range(pivots)]

    def _pivots(self, state: LayerState, k: int) -> tuple[Tensor, list[int]]:
        """Return the visual pivots as indices of visual tokens, and all pivots as positions in the order they choose.

        The order is that of a Python set, so these few numbers are read back from the device, whatever K is.
        """
        norms = self._norms(state.k)
        image = top(norms[state.visual_idx], min(self.image_pivots, k))
        text_norms = norms.index_fill(0, state.visual_idx, -1.0)  # below every norm
        if self.variant == "official":
            after_image = torch.arange(len(norms), device=norms.device) > state.visual_idx[-1]
            text_norms = text_norms.where(after_image, -1.0)
        text = top(text_norms, self.text_pivots)
        positions = [*state.visual_idx[image].tolist(), *text[: len(norms) - len(state.visual_idx)].tolist()]
        if self.variant == "official":
            last = state.visual_idx[-1:].tolist()[0]
            positions = list(set(positions[: len(image)] + [p for p in positions[len(image) :] if p > last]))
        return image, positions

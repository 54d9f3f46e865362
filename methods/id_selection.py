"""ID-Selection: repeatedly take the best token and lower the scores of similar ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import HiddenState, Method, Selection, Signal, Tokens
from methods.kernels.attention import attention_row
from methods.kernels.cosine import Cosine, directions, snap
from methods.scores import min_max
from methods.selecting import refuse_nan

READS = {
    "vit_attention": frozenset({Signal.VIT_ATTENTION}),
    "llm_last_token": frozenset({Signal.LLM}),
    "visionselector": frozenset({Signal.IMPORTANCE}),
    "unified": frozenset({Signal.VIT_ATTENTION, Signal.LLM}),
}
EPSILON = 1e-6  # added to the span in min-max scaling


@dataclass(kw_only=True)
class IDSelection(Method):
    """Pick by importance; each pick lowers the scores of similar tokens. Paper: arXiv 2604.05601, no public code.

        s    = minmax(importance)
        pick = argmax of s over the tokens left;   s_j -= exp(-gamma (1 - cos(x_j, x_pick))^2) * max(s_pick, 0)

    Args:
        gamma: decay of the suppression with distance; default 20, the paper's for all models.
        update: how a pick lowers the scores. "subtract_guarded" (default) as above; "subtract" without the max, so that
            a pick below zero raises similar tokens; "subtract_clamp0" with no score falling below zero; "multiply" by
            1 - exp(..). Which is the authors' is not public, and it matters where a quarter is kept or more.
        importance: "vit_attention" (default), the role "last": of CLS where the encoder has one, else received from all
            patches; "llm_last_token": mean over heads of the softmax, over the whole sequence, of the prompt's last
            token; "visionselector": a learned scorer's logits; "unified": mean of the first two, each min-max scaled.
            What the authors use for which model is not public, nor is their unified score.
        layer: used if `importance` reads the LLM: 0-based decoder layer j whose q and k are read; layers 0..j see all
            tokens, later ones the kept; `hidden` is unused. Default 1; not public. Otherwise the cut is before layer 0,
            and `layer` has no meaning.

    Deviation: written from second-hand accounts of the paper (abstract, equations 7 to 9), labelled a
    re-implementation; a model without CLS has the attention its patches receive as importance unless the LLM's is asked
    for. Scores are float64, cosines to 12 decimals, weights to 40 bits; ties go to the lowest index.
    """

    name = "id_selection"
    version = 1
    fidelity = "adapted: re-implemented from second-hand accounts, no public code"
    needs = READS["vit_attention"]  # of the default; an instance has the signals of its `importance`
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"update", "importance", "layer"})

    gamma: float = 20.0
    update: Literal["subtract_guarded", "subtract", "subtract_clamp0", "multiply"] = "subtract_guarded"
    importance: Literal["vit_attention", "llm_last_token", "visionselector", "unified"] = "vit_attention"
    layer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("gamma", self.gamma > 0, "above 0")
        self.require("layer", self.layer >= 0, "at least 0")
        object.__setattr__(self, "needs", READS[self.importance])  # a class variable to the type checker

    @property
    def hidden_state(self) -> HiddenState:
        """Hidden states are not read, only q and k."""
        return "unused"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        cosine = Cosine(directions(tokens.features))
        score = min_max(self._importance(tokens), EPSILON)
        refuse_nan(score)
        picked = torch.zeros_like(score)  # minus infinity for picked tokens
        order = torch.empty(k, dtype=torch.int64, device=score.device)
        for pick in order.split(1):
            pick.copy_((score + picked).argmax())  # the first of equal maxima
            picked.index_fill_(0, pick, -torch.inf)
            weight = snap((-self.gamma * (1 - cosine(pick)[0]).square()).exp())
            winner = score[pick]
            if self.update == "multiply":
                score = score * (1 - weight)
            elif self.update == "subtract_guarded":
                score = score - weight * winner.clamp_min(0)
            else:
                score = score - weight * winner
                score = score.clamp_min(0) if self.update == "subtract_clamp0" else score
        return Selection.of(order)

    def _importance(self, tokens: Tokens) -> Tensor:
        """Return the importance [N] that the parameter `importance` selects."""
        scores: list[Tensor] = []
        if Signal.IMPORTANCE in self.needs and tokens.importance is not None:
            scores.append(tokens.importance)
        if Signal.VIT_ATTENTION in self.needs and tokens.vit_attention is not None:
            scores.append(tokens.vit_attention["last"])
        if Signal.LLM in self.needs and tokens.llm is not None:
            scores.append(attention_row(tokens.llm.q[:, -1], tokens.llm.k)[tokens.llm.visual_idx])
        if len(scores) == 1:
            return scores[0]
        return torch.stack([min_max(score, EPSILON) for score in scores]).mean(dim=0)

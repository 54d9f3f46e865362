"""FastV: drop the visual tokens that the last text token attends to least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from methods.base import Selection, Tokens
from methods.kernels.attention import attention_row, last_text
from methods.kernels.model_dtype import is_half, received_by_keys
from methods.layer_method import LayerMethod
from methods.scores import top


@dataclass(kw_only=True)
class FastV(LayerMethod):
    """Keep the K visual tokens that one query attends to most in one decoder layer. Paper: arXiv 2403.06764.

        score_i = mean over heads of softmax_i(q . k_i / sqrt(d)),   q, k of decoder layer `layer`

    Args:
        variant: "official" (default) is the authors' code for transformers: the query is the last token of the prompt,
            the softmax runs over all S tokens, so that text takes its part of each head's attention. "paper" is the
            comparison in arXiv 2602.13315: the query is the last token that is not visual, the softmax runs over the
            visual tokens alone, and each step is rounded to the model's dtype if that is half precision.
        layer: 0-based decoder layer j whose q and k are read; layers 0..j see all tokens, later ones the kept. Default
            none: 1 for "official", which is the paper's K=2 (attention of the second layer, the third is the first to
            see the kept), 0 for "paper". The demo of the authors' code (k=3) is layer=2.

    Deviation: in float64 but for "paper" in half precision, ties to the lowest index; the visual tokens need not be one
    span, so several images and video share K. "paper" keeps everything where there is no text token; here the last
    token asks then. Not offered: the authors' first variant, which masks without cutting, and its random drop before
    layer 0.
    Code: pkunlp-icler/FastV (src/FastV/llava-hf); comparison: YF-T/IDPruner (attention_based.py, last_text).
    """

    name = "fastv"
    version = 1
    fidelity = "exact"
    attention_maps = True  # the authors' code reads the softmaxed attention of a decoder layer
    revisions: ClassVar[Mapping[str, int]] = {"paper": 1}
    half_precision = frozenset({"paper"})

    variant: Literal["official", "paper"] = "official"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        visual = state.visual_idx
        if self.variant == "official":
            scores = attention_row(state.q[:, -1], state.k)[visual]
        else:
            query = state.q.index_select(1, last_text(state.q.shape[1], visual))
            keys = state.k[:, visual]
            if is_half(query):
                keys = keys.repeat_interleave(len(query) // len(keys), dim=0)
                scores = received_by_keys(query, keys, query.shape[-1] ** -0.5)
            else:
                scores = attention_row(query.squeeze(1), keys)
        return Selection.of(top(scores, k))

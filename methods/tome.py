"""ToMe: merge the most similar tokens in pairs of two halves, until K are left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.grids import frames, merged_per_image
from methods.kernels.cosine import BARE_NORM, Cosine, directions
from methods.scores import top


@dataclass(kw_only=True)
class ToMe(Method):
    """Match alternate tokens by their keys, merge the best pairs, and repeat. Paper: arXiv 2210.09461.

        repeat until K tokens are left, of n:
            a, b = tokens[0::2], tokens[1::2]
            r    = min(n - K, n // 2)
            the r of a whose most similar token in b (by cosine of keys) is most similar merge into it
            a merged token has the mean of its members, in its key, too, and the place of the token in b

    Keys are means over the heads of the last layer. Each image and each time step of a video has its share of K.

    Deviation: the original merges in every layer of a vision tower and lets merged tokens weigh in its attention. Here
    tokens merge once, at the entry of the LLM, as is common for multimodal models. They stay in raster order, where the
    original puts what is left of a before b. Zero keys, which divide by zero there, are similar to none. Similarities
    are float64, ties go to the lowest index. With K below the number of units all of them are one.
    Code: facebookresearch/ToMe @ af95e4b.
    """

    name = "tome"
    version = 1
    fidelity = "adapted: merges at the LLM's entry instead of in every layer of the vision tower"
    needs = frozenset({Signal.VIT_KEYS})

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        keys = tokens.vit_keys
        assert keys is not None
        return merged_per_image(frames(tokens.grids), k, lambda unit, share: matched(keys[unit].double(), share))


def matched(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return which tokens [k] are left of those with `keys` [N, d], ascending, and which of these each [N] joins."""
    kept = owner = torch.arange(len(keys), device=keys.device)
    size = torch.ones_like(keys[:, :1])
    while len(kept) > k:
        n = len(kept)
        place = torch.arange(n, device=keys.device)
        a, b = place[0::2], place[1::2]
        similarity, nearest = Cosine(directions(keys, floor=BARE_NORM)).nearest(a, b)
        joining = top(similarity, min(n - k, n // 2))
        left = top(torch.ones_like(place).index_fill_(0, a[joining], 0), n - len(joining))  # ascending
        joins = place.index_copy(0, left, place[: len(left)])
        joins[a[joining]] = joins[b[nearest[joining]]]
        total = size.new_zeros(len(left), 1).index_add_(0, joins, size)
        keys = keys.new_zeros(len(left), keys.shape[1]).index_add_(0, joins, keys * size) / total
        kept, owner, size = kept[left], joins[owner], total
    return kept, owner

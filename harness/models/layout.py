"""Positions of visual tokens in a prefill, and the length of a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from methods.tokens import Grid


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions and grids of the visual tokens of a prefill."""

    visual: Tensor  # [B, S] bool
    grids: list[list[Grid]]  # (t, h, w) in tokens of each image and video, for each of P = B / copies prompts
    kinds: Tensor  # [P, S] 0 for text, 1 for an image's tokens, 2 for a video's
    copies: int = 1  # consecutive rows of one prompt, for beam search or num_return_sequences
    encoded: int = 1  # number of these copies whose pixels were encoded
    obstacle: str | None = None  # reason why no token may be dropped from this pass


def cached_length(cache: Any, layer: int = 0) -> int:
    """Return the number of positions that a KV cache holds in a layer."""
    return 0 if cache is None else int(cache.get_seq_length(layer))

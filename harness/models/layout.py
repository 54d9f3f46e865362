"""Where the visual tokens of a prefill stand, and how much a key-value cache holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from methods.tokens import Grid


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the visual tokens of a prefill stand."""

    visual: Tensor  # [B, S] bool
    grids: list[list[Grid]]  # (t, h, w) in tokens of each image and video, for each of P = B / copies prompts
    kinds: Tensor  # [P, S] 0 for text, 1 for an image's tokens, 2 for a video's
    copies: int = 1  # consecutive rows that beam search or num_return_sequences made of one prompt
    encoded: int = 1  # of these copies, those whose pixels were encoded
    obstacle: str | None = None  # why no token may be dropped from this pass


def cached_length(cache: Any, layer: int = 0) -> int:
    """Return the number of positions a key-value cache already holds in a layer."""
    return 0 if cache is None else int(cache.get_seq_length(layer))

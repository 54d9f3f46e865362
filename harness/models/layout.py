"""Positions of visual tokens in a prefill, and the length of a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from methods.tokens import Grid, num_tokens


@dataclass(frozen=True, eq=False)
class Placeholders:
    """The placeholder rows of one image or video: its patches and, in some families, rows of structure.

    A newline is a learned row that closes a line of patches. `harness.prune` says which newlines go with the patches.
    Other rows of structure stay, as text does.
    """

    grids: Sequence[Grid]  # (t, h, w) in tokens of its parts, in row order; they cover the patches alone
    patches: Tensor | None = None  # [rows] bool; None: every row is a patch
    line_ends: Tensor | None = None  # [rows] the newline row that closes a row's line, of a newline itself; -1: none
    crops: Tensor | None = None  # [N] the crop, counted from 0, from which a patch came; None: each grid is one

    @classmethod
    def of(cls, image: Grid | Placeholders) -> Placeholders:
        """Return `image`, or the rows of an image that has nothing but the patches of one grid."""
        return image if isinstance(image, Placeholders) else cls([image])

    @property
    def rows(self) -> int:
        """The number of placeholder rows."""
        return num_tokens(self.grids) if self.patches is None else len(self.patches)


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions and grids of the visual tokens of a prefill."""

    visual: Tensor  # [B, S] bool: rows that are patches
    grids: list[list[Grid]]  # (t, h, w) in tokens of each image and video, for each of P = B / copies prompts
    kinds: Tensor  # [P, S] 0 for text, 1 for an image's placeholders, 2 for a video's
    copies: int = 1  # consecutive rows of one prompt, for beam search or num_return_sequences
    encoded: int = 1  # number of these copies whose pixels were encoded
    obstacle: str | None = None  # reason why no token may be dropped from this pass
    line_ends: Tensor | None = None  # [B, S] position of the newline that closes a row's line, as in `Placeholders`
    crops: list[Tensor] | None = None  # for each prompt the crop [N] of each patch, as `Tokens.tiles`

    @property
    def newlines(self) -> Tensor:
        """Rows [B, S] that close a line of patches; they may go with the patches, but are none."""
        if self.line_ends is None:
            return torch.zeros_like(self.visual)
        return self.line_ends == torch.arange(self.line_ends.shape[1], device=self.line_ends.device)


def cached_length(cache: Any, layer: int = 0) -> int:
    """Return the number of positions that a KV cache holds in a layer."""
    return 0 if cache is None else int(cache.get_seq_length(layer))

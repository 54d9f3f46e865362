"""FLOPs of a language model with grouped-query attention and a gated MLP of three matrices: prefill and decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rows:
    """How many rows decoder layers see from layer `first` on, up to those of the next entry."""

    first: int
    count: int
    mlp_before: bool = False  # True if the MLP of layer `first` - 1 sees no more than these


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder such as Llama, Qwen2 or Qwen3."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """Read the sizes from the configuration of a language model, or of a model that contains one."""
        text = config.get_text_config()
        heads = int(text.num_attention_heads)
        return cls(
            layers=int(text.num_hidden_layers),
            hidden=int(text.hidden_size),
            heads=heads,
            kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            mlp=int(text.intermediate_size),
            vocabulary=int(text.vocab_size),
        )

    def prefill(self, seen: Sequence[Rows]) -> int:
        """Count the prefill of a prompt whose layers see the rows `seen`; logits are computed for one row."""
        total = self.head
        for rows, layers, mlps in self._spans(seen):
            total += layers * self._attention(rows, rows) + mlps * self._mlp(rows)
        return total

    def decode(self, seen: Sequence[Rows], steps: int) -> int:
        """Count `steps` decoding steps after such a prefill."""
        total = steps * (self.layers * self._mlp(1) + self.head)
        for rows, layers, _ in self._spans(seen):
            for past in range(1, steps + 1):  # a token also attends to itself
                total += layers * self._attention(1, rows + past)
        return total

    def paper_style(self, seen: Sequence[Rows]) -> int:
        """Count the prefill as papers do: 4 n d^2 + 2 n^2 d + 2 n d m a layer (FastV, arXiv 2403.06764, section 4).

        The formula has as many key heads as query heads, an MLP of two matrices and no logits. A multiplication and its
        addition are one operation.
        """
        d, m = self.hidden, self.mlp
        return sum(layers * (4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m) for n, layers, _ in self._spans(seen))

    def _spans(self, seen: Sequence[Rows]) -> list[tuple[int, int, int]]:
        """Return (rows, number of layers, number of MLPs) of each entry."""
        ends = [*(entry.first for entry in seen[1:]), self.layers]
        early = [*(entry.mlp_before for entry in seen), False]
        return [
            (entry.count, end - entry.first, end - entry.first + early[i] - early[i + 1])
            for i, (entry, end) in enumerate(zip(seen, ends, strict=True))
        ]

    @property
    def head(self) -> int:
        """Operations from one hidden state to logits over the vocabulary."""
        return 2 * self.hidden * self.vocabulary

    def _attention(self, rows: int, keys: int) -> int:
        """Count the projections of `rows` tokens, and their products with `keys` keys and values."""
        projections = 2 * rows * self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return projections + 4 * rows * keys * self.heads * self.head_dim

    def _mlp(self, rows: int) -> int:
        return 3 * 2 * rows * self.hidden * self.mlp

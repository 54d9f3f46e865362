"""FLOPs of a language model with grouped-query attention and a gated MLP of three matrices: prefill and decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CutPoint:
    """Where visual tokens are dropped: decoder layers below `first` see all of them, the others the kept ones."""

    first: int = 0
    before_mlp: bool = False  # True if the MLP of layer `first` - 1 sees only the kept ones


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

    def prefill(self, before: int, after: int, cut: CutPoint = CutPoint()) -> int:
        """Count the prefill of `before` tokens, of which `cut` keeps `after`; logits are computed for one row."""
        attention = cut.first * self._attention(before, before) + (self.layers - cut.first) * self._attention(
            after, after
        )
        full_mlps = cut.first - cut.before_mlp  # layers whose MLP sees all tokens
        return attention + full_mlps * self._mlp(before) + (self.layers - full_mlps) * self._mlp(after) + self.head

    def decode(self, before: int, after: int, steps: int, cut: CutPoint = CutPoint()) -> int:
        """Count `steps` decoding steps after such a prefill."""
        late, total = self.layers - cut.first, 0
        for past in range(1, steps + 1):  # a token also attends to itself
            total += cut.first * self._attention(1, before + past) + late * self._attention(1, after + past)
        return total + steps * (self.layers * self._mlp(1) + self.head)

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


def paper_style(shape: DecoderShape, before: int, after: int, cut: CutPoint = CutPoint()) -> int:
    """Count the prefill as papers do: 4 n d^2 + 2 n^2 d + 2 n d m per layer (FastV, arXiv 2403.06764, section 4).

    The formula has as many key heads as query heads, an MLP of two matrices and no logits. A multiplication and its
    addition are one operation.
    """

    def layer(n: int) -> int:
        return 4 * n * shape.hidden**2 + 2 * n**2 * shape.hidden + 2 * n * shape.hidden * shape.mlp

    return cut.first * layer(before) + (shape.layers - cut.first) * layer(after)

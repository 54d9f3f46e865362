"""PyramidDrop: drop tokens at three depths of the language model, each time those that the prompt's end ignores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from methods.base import Cut, Method, Reads, Selection, Signal, Tokens
from methods.kernels.attention import attention_row
from methods.schedules import BudgetAt, solved
from methods.scores import top

DEPTHS = (Fraction(8, 32), Fraction(16, 32), Fraction(24, 32))  # shares of the decoder's layers in front of each cut
RATIO = Fraction(1, 2)  # published: each cut leaves half of the tokens


@dataclass(kw_only=True)
class PyramidDrop(Method):
    """Cut behind a quarter, a half and three quarters of the layers, by the attention of the next one. arXiv 2410.17247

        score_i = mean over heads of softmax_i(q . k_i / sqrt(d)),   q of the prompt's last token, over all S tokens

    q and k are those that the layer behind the cut computes from all rows that are left; it then runs on the kept ones.

    Args:
        budget_at: what K counts. "mean" (default), tokens a layer, averaged over all layers: the cuts leave N r, N r^2
            and N r^3 tokens, with r such that the mean is K. An r below 1/4 is not used as long as all three cuts can
            come earlier, by the same factor. "end" or "entry": the last or the first cut leaves K. "official": the
            published schedule, N / 2, N / 4 and N / 8 rounded down, for any K below N. Its mean is 15/32 N.

    Deviation: the kept tokens keep their positions, where the authors number them again after each cut. Images of one
    prompt compete; the original ranks the first of them alone. Places of cuts are published for 32 layers; in other
    models they are at the same shares of the depth. How the paper's rows of 192, 128 and 64 tokens were made is not
    public. In float64, ties to the lowest index. Code: Cooperx521/PyramidDrop (modeling_llama_pdrop.py).
    """

    name = "pyramiddrop"
    version = 2
    fidelity = "adapted: kept tokens keep their positions"
    needs = frozenset({Signal.LLM})

    budget_at: BudgetAt = "mean"

    @property
    def reads(self) -> Reads:
        """The layer behind each cut."""
        return "next"

    def schedule(self, n: int, k: int, layers: int) -> Sequence[Cut]:
        """Return the three cuts."""
        before = [round(depth * layers) for depth in DEPTHS]
        if self.budget_at == "official":
            return [Cut(place - 1, max(1, int(n * RATIO**i))) for i, place in enumerate(before, 1)]
        return solved(n, k, layers, self.budget_at, before, lambda r: (r, r**2, r**3))

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        return Selection.of(top(attention_row(state.q[:, -1], state.k)[state.visual_idx], k))

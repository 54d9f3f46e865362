"""The soft mask of VisionSelector's training: all visual tokens stay, scaled by weights from the scorer.

Source: arXiv 2510.16598. Deviation: the paper's code takes the soft count over all images of a micro-batch. Here it is
taken over one prompt, which is what a scorer sees when it prunes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.adapter import Adapter
from harness.models.calls import Call
from harness.models.hooks import Handles
from harness.models.layout import Layout
from methods.scores import soft_top_k


class SoftMask:
    """Hooks that scale visual tokens before the language model by DiffTopK weights of the scorer's logits.

    The weights of a prompt sum to `share` times its number of visual tokens.
    """

    def __init__(self, adapter: Adapter, scorer: nn.Module, share: float) -> None:
        self._adapter, self._scorer, self._share = adapter, scorer, share
        self._layout: Layout | None = None
        self._binary: list[Tensor] = []

    @contextmanager
    def attached(self) -> Iterator[SoftMask]:
        """Apply the mask within the block, and remove the hooks afterwards."""
        handles = Handles()
        try:
            handles.before(self._adapter.site("multimodal"), self._enter_multimodal)
            handles.before(self._adapter.site("decoder"), self._enter_decoder)
            yield self
        finally:
            handles.remove()

    def take(self, samples: int) -> Tensor:
        """Return the BCE [samples] of the masks since the last call; RuntimeError if their number differs."""
        losses, self._binary = self._binary, []
        if len(losses) != samples:
            raise RuntimeError(f"{samples} prompts went in, the visual tokens of {len(losses)} were masked")
        return torch.stack(losses)

    def _enter_multimodal(self, call: Call) -> None:
        self._layout = self._adapter.layout(call)

    def _enter_decoder(self, call: Call) -> dict[str, Any]:
        layout = self._layout
        assert layout is not None
        states: Tensor = call.require("embeddings")
        visual = layout.visual.to(states.device)
        weights = [self._weigh(row[here]) for row, here in zip(states, visual, strict=True)]
        # [B, S, 1], one on text
        scale = torch.ones(visual.shape, device=states.device).masked_scatter(visual, torch.cat(weights)).unsqueeze(-1)
        scaled, *added = [(part * scale).to(part) for part in (states, *self._adapter.added(call))]
        return {"embeddings": scaled} | (self._adapter.added_arguments(added, visual) if added else {})

    def _weigh(self, features: Tensor) -> Tensor:
        """Return the weights [N] of one prompt's tokens [N, D], and record their BCE against the hard top-k."""
        logits: Tensor = self._scorer(features.detach())
        count = max(1, int(self._share * len(logits)))
        weights = diff_top_k(logits, count)
        hard = torch.zeros_like(weights)
        hard[logits.detach().topk(count).indices] = 1
        self._binary.append(F.binary_cross_entropy(weights, hard))
        return weights


class _DiffTopK(torch.autograd.Function):
    """Forward: p = sigmoid(s + t) with sum(p) = k. Backward: t depends on s, so that the sum stays k."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, k: float) -> Tensor:
        weights = soft_top_k(logits, k)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        slope = weights * (1 - weights)
        scaled = grads[0] * slope
        return scaled - slope * scaled.sum() / slope.sum().clamp(min=torch.finfo(slope.dtype).tiny), None


def diff_top_k(logits: Tensor, k: float) -> Tensor:
    """Return differentiable weights [N] in (0, 1) of `logits` [N] that sum to `k`, with 0 < k < N."""
    weights = _DiffTopK.apply(logits, k)
    assert isinstance(weights, Tensor)
    return weights

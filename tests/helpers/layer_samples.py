"""Samples with the state of one decoder layer, and attention by its definition, in plain float64."""

import numpy as np
import torch

from methods.base import LayerState, Tokens

# Of the rows of `reference_selection.WORKED`.
ATTENTION = [0.30, 0.25, 0.05, 0.10, 0.02, 0.08, 0.12, 0.08]


def layer_tokens(grids, seed=0, text=9, heads=4, kv=2, d=8, width=6, kind="normal", scale=1.0):
    """Return a sample whose visual tokens form a run per grid, with text tokens before, between and after."""
    g = torch.Generator().manual_seed(seed)
    n, position, visual = sum(t * h * w for t, h, w in grids), 2, []
    for t, h, w in grids:
        visual += range(position, position + t * h * w)
        position += t * h * w + 1
    sequence = n + max(text, len(grids) + 2)
    q, k = torch.randn(heads, sequence, d, generator=g), torch.randn(kv, sequence, d, generator=g) * scale
    hidden = torch.randn(sequence, width, generator=g)
    if kind == "duplicates":
        rows = torch.randint(0, max(sequence // 3, 1), (sequence,), generator=g)
        k, hidden = k[:, rows], hidden[rows]
    elif kind == "zero":
        k, hidden = torch.zeros_like(k), torch.zeros_like(hidden)
    state = LayerState(q=q, k=k, hidden=hidden, visual_idx=torch.tensor(visual))
    attention = torch.randn(n, generator=g).abs()
    return Tokens(torch.randn(n, width, generator=g), grids, llm=state, vit_attention={"last": attention})


def attention_of(q, k):
    """Return the attention [S] of one query [H, d] to keys [KV, S, d], the mean of all heads."""
    q, k = np.asarray(q, dtype=np.float64), np.asarray(k, dtype=np.float64)
    total = np.zeros(k.shape[1])
    for head, query in enumerate(q):
        keys = k[head * len(k) // len(q)]
        logits = np.array([(query * key).sum() for key in keys]) / np.sqrt(q.shape[1])
        weights = np.array([np.exp(logit - logits.max()) for logit in logits])
        total += weights / weights.sum()
    return total / len(q)


def cosine_of(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a / max(np.sqrt((a * a).sum()), 1e-8) * (b / max(np.sqrt((b * b).sum()), 1e-8))).sum()


def best(scores, k):
    """Return the indices of the `k` highest scores, ties to the lowest index."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]

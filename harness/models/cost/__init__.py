"""Floating-point operations of a prompt, counted from a model's configuration: vision, selection, prefill, decoding.

A multiplication and an addition are two operations. Matrix products, convolutions and attention count, as in
torch.utils.flop_counter; norms, activations and rotations do not. Attention counts as the full square that peers and
the counter have, though a causal kernel skips nearly half of it.
"""

from harness.models.cost.flops import Flops, count

__all__ = ["Flops", "count"]

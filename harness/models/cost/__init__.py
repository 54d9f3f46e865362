"""Count the floating-point operations of a prompt from a model's configuration: vision, selection, prefill, decoding.

A multiplication and an addition are two operations. Matrix products, convolutions and attention count, as in
torch.utils.flop_counter; norms, activations and rotations do not. Attention counts as a full square, as in papers and
in that counter, although a causal kernel skips nearly half of it.
"""

from harness.models.cost.flops import Flops, count

__all__ = ["Flops", "count"]

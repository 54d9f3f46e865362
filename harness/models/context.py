"""The context length of a model, and the refusal of longer prompts.

The prompt counts before it is pruned, so that a question fails in all runs of a sweep or in none.
"""

from typing import Any

from torch import Tensor

from harness.models.bad_input import BadInput

EXTENDED = ("yarn", "linear", "dynamic")  # rotary scalings whose factor max_position_embeddings may leave out


def context_length(config: Any) -> int:
    """Return the number of tokens that a model's configuration allows; a sliding window does not limit it."""
    text = config.get_text_config()
    length = int(text.max_position_embeddings)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") not in EXTENDED:
        return length
    return max(length, int(rope["factor"] * (rope.get("original_max_position_embeddings") or length)))


def check_length(mask: Tensor, context: int) -> None:
    """Raise BadInput if a prompt, the ones in a row of `mask` [B, S], has more tokens than `context`."""
    longest = int(mask.sum(1).max())
    if longest > context:
        raise BadInput(f"the prompt has {longest:,} tokens, the model takes {context:,}")

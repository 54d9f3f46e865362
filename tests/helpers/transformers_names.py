"""Names that differ between the versions of transformers that the tests run on."""

import inspect

from transformers import GenerationMixin, LlamaModel, LlavaForConditionalGeneration

# The argument and attribute that holds the key-value cache: `past_key_values` up to 5.23, `cache` since 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
# Since 5.18 generate() encodes the images of a prompt once, before it repeats the prompt for beams.
ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(LlavaForConditionalGeneration.forward).parameters

# Since 5.2 generate() counts on from the last row, be it padding; before, it counted what is no padding.
COUNTS_PADDING = hasattr(GenerationMixin, "_prepare_position_ids_for_generation")


def cache_of(outputs):
    """Return the key-value cache that a forward pass or `generate` returned."""
    return getattr(outputs, CACHE)


def states_of(output):
    """Return the hidden states that left a decoder layer; Qwen2.5-VL's was a tuple in 5.0."""
    return output[0] if isinstance(output, tuple) else output

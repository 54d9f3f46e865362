"""A tiny random Qwen3-VL with its stock processor."""

import torch
from tiny_models import CHAT_TEMPLATE, HIDDEN, MROPE, built, placeholders, text_config, tiny_tokenizer
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

LAYERS, DEPTH = 5, 4
DEEP = [0, 1, 2]  # vision layers whose features are added after decoder layers 0, 1 and 2


def tiny_qwen3_processor():
    """Build a processor whose images become 4 to 64 visual tokens of 32 x 32 pixels."""
    patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, size=pixels),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**patches, size=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen3(dtype=torch.float32, attn="sdpa", seed=0):
    """Build a model of random weights, large enough that answers depend on the image."""
    config = Qwen3VLConfig(
        text_config=text_config(LAYERS, head_dim=16, rope_parameters=MROPE),
        vision_config={
            "depth": DEPTH,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": DEEP,
            "initializer_range": 0.3,
        },
        tie_word_embeddings=False,
        **placeholders(),
    )
    return built(Qwen3VLForConditionalGeneration, config, dtype, attn, seed)

"""A tiny random Qwen2-VL with its stock processor."""

import torch
from tiny_models import CHAT_TEMPLATE, HIDDEN, MROPE, built, placeholders, text_config, tiny_tokenizer
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)


def tiny_qwen2_processor():
    """Build a processor whose images become 4 to 64 visual tokens of 28 x 28 pixels."""
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    sizes |= {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen2(dtype=torch.float32, attn="sdpa", seed=0, layers=4, depth=4):
    """Build a model of random weights, large enough that answers depend on the image."""
    config = Qwen2VLConfig(
        text_config=text_config(layers, rope_parameters=MROPE),
        vision_config={
            "depth": depth,
            "embed_dim": 32,
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "mlp_ratio": 2,
            "initializer_range": 0.3,
        },
        tie_word_embeddings=False,
        **placeholders(),
    )
    return built(Qwen2VLForConditionalGeneration, config, dtype, attn, seed)

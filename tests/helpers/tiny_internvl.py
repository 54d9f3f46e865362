"""A tiny random InternVL with its stock processor."""

import torch
from tiny_models import CHAT_TEMPLATE, IMAGE, built, placeholders, text_config, tiny_tokenizer
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

SIDE, PATCH, DEPTH = 112, 14, 4  # a tile has 8 x 8 patches, 4 x 4 tokens


def tiny_internvl_processor():
    """Build a processor that cuts images into up to four tiles of 16 tokens, and a thumbnail."""
    tokenizer = tiny_tokenizer()
    tokenizer._set_model_specific_special_tokens(
        {
            "start_image_token": "<|vision_start|>",
            "end_image_token": "<|vision_end|>",
            "context_image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
        }
    )
    size = {"height": SIDE, "width": SIDE}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=16,
        chat_template=CHAT_TEMPLATE.replace(IMAGE, "<|image_pad|>\n"),
    )


VIT_6B = {"use_qk_norm": True, "norm_type": "rms_norm"}  # what InternViT-6B has and InternViT-300M has not


def tiny_internvl(dtype=torch.float32, attn="sdpa", seed=0, layers=4, text=None, image=None, **vision):
    """Build a model of random weights, large enough that answers depend on the image.

    `text` replaces parts of the language model's configuration; `image` is the id of the placeholder.
    """
    config = InternVLConfig(
        text_config=text_config(layers, **{"model_type": "qwen2"} | (text or {})),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "layer_scale_init_value": 1.0,
            **vision,
        },
        image_token_id=placeholders()["image_token_id"] if image is None else image,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return built(InternVLForConditionalGeneration, config, dtype, attn, seed, vision_std=0.3)


def squares(patches):
    """The patches [tiles, 8 x 8, ...] of each token: [tiles * 4 * 4, 4, ...], naive."""
    tokens = []
    for tile in patches:
        for row in range(4):
            for column in range(4):
                four = [8 * (2 * row + y) + 2 * column + x for y in range(2) for x in range(2)]
                tokens.append(tile[four])
    return torch.stack(tokens)

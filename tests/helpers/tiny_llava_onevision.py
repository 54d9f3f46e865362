"""A tiny random LLaVA-OneVision with its stock processor."""

import torch
from tiny_models import CHAT_TEMPLATE, IMAGE, LLAVA_PATCH, VIDEO, built, placeholders, text_config, tiny_tokenizer
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

PIXELS = 70
SIDE = PIXELS // LLAVA_PATCH  # patches along a side of a crop, an odd number as released; 3 after pooling
PINPOINTS = [[PIXELS * rows, PIXELS * columns] for rows in (1, 2) for columns in (1, 2)]
RULE = "anyres_max_2"  # the mosaic of 2 x 2 tiles is resized from 10 x 10 to 7 x 7 tokens, unless much is padding


def tiny_llava_onevision_processor():
    """Build a processor that cuts the image of a prompt into 2 to 5 crops of 5 x 5 visual tokens."""
    size = {"height": PIXELS, "width": PIXELS}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tiny_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=SIDE**2,
        vision_feature_select_strategy="full",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_aspect_ratio=RULE,
        chat_template=CHAT_TEMPLATE.replace(IMAGE, "<|image_pad|>").replace(VIDEO, "<|video_pad|>"),
    )


def tiny_llava_onevision(dtype=torch.float32, attn="sdpa", seed=0, layers=4, depth=4, released=False):
    """Build a model of random weights; its newline is about as large as its visual tokens.

    If `released`, images and tiles have the sizes of the released models.
    """
    rules = {} if released else {"image_grid_pinpoints": PINPOINTS, "vision_aspect_ratio": RULE}
    config = LlavaOnevisionConfig(
        text_config=text_config(layers, model_type="qwen2"),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "image_size": 384 if released else PIXELS,
            "patch_size": LLAVA_PATCH,
            "vision_use_head": False,
        },
        image_token_index=placeholders()["image_token_id"],
        video_token_index=placeholders()["video_token_id"],
        **rules,
    )
    model = built(LlavaOnevisionForConditionalGeneration, config, dtype, attn, seed, vision_std=0.1)
    model.model.image_newline.data.normal_(std=0.5, generator=torch.Generator().manual_seed(seed))
    return model

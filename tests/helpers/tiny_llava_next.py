"""A tiny random LLaVA-NeXT with its stock processor."""

import torch
from tiny_models import (
    CHAT_TEMPLATE,
    CLIP,
    LLAVA_PATCH,
    LLAVA_SIDE,
    LLAVA_TOWERS,
    SIGLIP,
    built,
    placeholders,
    strategy_for,
    text_config,
    tiny_tokenizer,
)
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor, LlavaNextProcessor

SIDE = LLAVA_SIDE // LLAVA_PATCH  # patches along a side of a crop
PINPOINTS = [[LLAVA_SIDE * rows, LLAVA_SIDE * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


def tiny_llava_next_processor(tower=CLIP):
    """Build a processor that cuts images into 3 to 5 crops of 4 x 4 visual tokens."""
    side = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(
            size={"shortest_edge": LLAVA_SIDE}, crop_size=side, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=LLAVA_PATCH,
        vision_feature_select_strategy=strategy_for(tower),
        num_additional_image_tokens=int(tower != SIGLIP),
        image_token="<|image_pad|>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava_next(
    dtype=torch.float32, attn="sdpa", seed=0, layers=4, depth=4, text="llama", side=LLAVA_SIDE, tower=CLIP, **more
):
    """Build a model of random weights; its newline is about as large as its visual tokens."""
    scale = side // LLAVA_SIDE
    config = LlavaNextConfig(
        text_config=text_config(layers, model_type=text, **more),
        vision_config={
            **LLAVA_TOWERS[tower],
            "model_type": tower,
            "hidden_size": 32,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": LLAVA_PATCH,
        },
        vision_feature_select_strategy=strategy_for(tower),
        image_grid_pinpoints=[[scale * height, scale * width] for height, width in PINPOINTS],
        image_token_index=placeholders()["image_token_id"],
        image_seq_length=(side // LLAVA_PATCH) ** 2,
        tie_word_embeddings=False,
    )
    model = built(LlavaNextForConditionalGeneration, config, dtype, attn, seed, vision_std=0.2)
    model.model.image_newline.data.normal_(std=0.5, generator=torch.Generator().manual_seed(seed))
    return model

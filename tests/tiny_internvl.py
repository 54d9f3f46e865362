"""A tiny random InternVL with its stock processor."""

import torch
from tiny import CHAT_TEMPLATE, HIDDEN, IMAGE, tiny_tokenizer
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

SIDE, PATCH, DEPTH = 112, 14, 4  # a tile has 8 x 8 patches, 4 x 4 tokens


def tiny_internvl_processor():
    """A processor that cuts images into up to four tiles of 16 tokens, and a thumbnail."""
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


def tiny_internvl(dtype=torch.float32, attn="sdpa", seed=0, layers=4, **vision):
    """Random weights, large enough that what the model answers depends on what it sees."""
    ids = tiny_tokenizer().convert_tokens_to_ids
    special = {"bos_token_id": None, "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 512,
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.3,
            **special,
        },
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
        image_token_id=ids("<|image_pad|>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "language_model" not in name and parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model = model.to(dtype)
    model.generation_config.eos_token_id = special["eos_token_id"]
    model.generation_config.pad_token_id = special["pad_token_id"]
    return model

"""Build the pocket models: small `Qwen2_5_VLForConditionalGeneration` and `LlavaForConditionalGeneration`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

WIDTH = 192  # of the language model, hence of a visual token
SIDE, PATCH = 448, 28  # of the pictures that the CLIP tower takes, and of its patches: 256 visual tokens


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Build a random model: 4 ViT layers (full attention in 1 and 3, else windows) and 5 decoder layers."""
    config = Qwen2_5_VLConfig(
        text_config=_decoder(tokenizer, {"mrope_section": [4, 6, 6]}),
        vision_config={
            "depth": 4,
            "hidden_size": 160,
            "intermediate_size": 384,
            "num_heads": 5,
            "out_hidden_size": WIDTH,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return _with_generation_config(Qwen2_5_VLForConditionalGeneration(config), tokenizer)


def build_llava(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlavaForConditionalGeneration:
    """Build a random model: a CLIP tower of 6 layers, with tokens from the fifth, and the same decoder as Qwen2."""
    config = LlavaConfig(
        text_config={"model_type": "qwen2", **_decoder(tokenizer, {})},
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": SIDE,
            "patch_size": PATCH,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "projection_dim": 192,
        },
        image_token_index=_id(tokenizer, "<|image_pad|>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return _with_generation_config(LlavaForConditionalGeneration(config), tokenizer)


def _decoder(tokenizer: PreTrainedTokenizerFast, rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 512,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, **rope},
        "bos_token_id": None,
        "eos_token_id": _id(tokenizer, "<|im_end|>"),
        "pad_token_id": _id(tokenizer, "<|endoftext|>"),
        "tie_word_embeddings": True,
    }


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    index = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    return index


def _with_generation_config(model: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    model.generation_config.eos_token_id = _id(tokenizer, "<|im_end|>")
    model.generation_config.pad_token_id = _id(tokenizer, "<|endoftext|>")
    return model

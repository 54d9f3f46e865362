"""A tiny random Qwen2.5-VL and a tiny LLaVA-1.5, with tokenizer and processors, built in memory."""

from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.pocket.vocab import SPECIALS

HIDDEN = 64
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": HIDDEN,
    "window_size": 56,
    "fullatt_block_indexes": [1],
    "initializer_range": 0.3,
}
LLAVA_SIDE, LLAVA_PATCH = 56, 14  # 16 visual tokens
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE + "{% elif part['type'] == 'video' %}" + VIDEO + "{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Qwen2Tokenizer:
    """One token a byte, and the special tokens of Qwen2.5-VL."""
    vocab = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIALS),
        padding_side="left",
    )


def tiny_processor() -> Qwen2_5_VLProcessor:
    """A processor whose images become 4 to 64 visual tokens of 28 pixels a side."""
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **pixels),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches, **pixels),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen(
    dtype: torch.dtype = torch.float32, attn: str = "sdpa", seed: int = 0, layers: int = 2, **vision: object
) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, large enough that what the model answers depends on what it sees."""
    ids = tiny_tokenizer().convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 512,
            "hidden_size": HIDDEN,
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
            "initializer_range": 0.3,
        },
        vision_config=VISION | vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    return model


def tiny_llava_processor() -> LlavaProcessor:
    """A processor whose images become 4 x 4 visual tokens, whatever their size."""
    side = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": LLAVA_SIDE}, crop_size=side),
        tokenizer=tiny_tokenizer(),
        patch_size=LLAVA_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=CHAT_TEMPLATE,
    )


def tiny_llava(
    dtype: torch.dtype = torch.float32,
    attn: str = "sdpa",
    seed: int = 0,
    layers: int = 2,
    depth: int = 3,
    text: str = "llama",
    **config: object,
) -> LlavaForConditionalGeneration:
    """A LLaVA-1.5 of random weights: a CLIP tower with CLS, whose last layer but one the features are."""
    ids = tiny_tokenizer().convert_tokens_to_ids
    special = {"bos_token_id": None, "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    made = LlavaConfig(
        text_config={
            "model_type": text,
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
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "image_size": LLAVA_SIDE,
            "patch_size": LLAVA_PATCH,
        },
        image_token_index=ids("<|image_pad|>"),
        image_seq_length=(LLAVA_SIDE // LLAVA_PATCH) ** 2,
        **config,
    )
    made._attn_implementation = attn
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(made).eval()
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "language_model" not in name and parameter.ndim > 1:
                parameter.normal_(std=0.3)  # CLIP scales its own too small for images to matter
    model = model.to(dtype)
    model.generation_config.eos_token_id = special["eos_token_id"]
    model.generation_config.pad_token_id = special["pad_token_id"]
    return model


def tiny_attention(attn, build=tiny_qwen, **kwargs):
    """A tiny model with a kernel; "flash_like" keeps FlashAttention's contract on the CPU."""
    if attn != "flash_like":
        return build(attn=attn, **kwargs)
    ALL_ATTENTION_FUNCTIONS.register("flash_like", _flash_like)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_like", flash_attention_mask)
    model = build(**kwargs)
    model.model.language_model.config._attn_implementation = "flash_like"
    return model


def _flash_like(module, query, key, value, attention_mask, scaling, position_ids=None, **kwargs):
    """Unpad by a mask [B, S], which alone comes; text positions that jump would mean packed sequences."""
    assert attention_mask is None or attention_mask.ndim == 2
    if position_ids is not None and len(query) == 1 and query.shape[2] > 1:
        assert bool((position_ids.diff(dim=-1) == 1).all()), "taken for packed sequences"
    output = torch.zeros_like(query)
    groups, steps = query.shape[1] // key.shape[1], query.shape[2]
    for row in range(len(query)):
        rows = slice(None) if attention_mask is None else attention_mask[row].bool()
        new = slice(None) if attention_mask is None else attention_mask[row, -steps:].bool()
        q, k, v = query[row][:, new], key[row][:, rows], value[row][:, rows]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).log()
        output[row][:, new] = (q @ k.transpose(1, 2) * scaling + seen).softmax(-1) @ v
    return output.transpose(1, 2), None


def tiny_folder(tmp_path: Path, seed: int = 0) -> Path:
    """Write model and processor as a local checkpoint folder."""
    folder = tmp_path / "tiny-qwen2.5-vl"
    tiny_qwen(seed=seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder

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

from harness.pocket.recipe.vocab import SPECIALS

HIDDEN = 64
TEXT = {
    "vocab_size": 512,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
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
    """Build a tokenizer with one token per byte and the special tokens of Qwen2.5-VL."""
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
    """Build a processor whose images become 4 to 64 visual tokens of 28 x 28 pixels."""
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **pixels),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches, **pixels),
        chat_template=CHAT_TEMPLATE,
    )


def text_config(layers: int, **more: object) -> dict[str, object]:
    """Return the configuration of a small language model for `tiny_tokenizer`."""
    return {**TEXT, "num_hidden_layers": layers, **ends(), **more}


def ends() -> dict[str, int | None]:
    """Return the ids of the tokens that begin and end a text."""
    ids = tiny_tokenizer().convert_tokens_to_ids
    return {"bos_token_id": None, "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}


def placeholders() -> dict[str, int]:
    """Return the ids of the placeholders for images and videos in Qwen's prompts."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = tiny_tokenizer().convert_tokens_to_ids
    return {f"{name}_token_id": ids(f"<|{token}|>") for name, token in names.items()}


def built(build, config, dtype, attn, seed, vision_std=None):
    """Build a model of random weights; `vision_std` is their deviation outside the language model, if given."""
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = build(config).eval()
    if vision_std is not None:  # for classes whose initial weights are too small for images to matter
        with torch.no_grad():
            for name, parameter in model.model.named_parameters():
                if "language_model" not in name and parameter.ndim > 1:
                    parameter.normal_(std=vision_std)
    text = config.get_text_config()
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    return model.to(dtype)


def tiny_qwen(
    dtype: torch.dtype = torch.float32, attn: str = "sdpa", seed: int = 0, layers: int = 2, **vision: object
) -> Qwen2_5_VLForConditionalGeneration:
    """Build a model of random weights, large enough that answers depend on the image."""
    config = Qwen2_5_VLConfig(
        text_config=text_config(layers, rope_parameters=MROPE),
        vision_config=VISION | vision,
        tie_word_embeddings=False,
        **placeholders(),
    )
    return built(Qwen2_5_VLForConditionalGeneration, config, dtype, attn, seed)


# Towers of LLaVA, by model_type, with what is peculiar to their configurations. DINOv2 interpolates 7 x 7 positions.
LLAVA_TOWERS: dict[str, dict[str, object]] = {
    "clip_vision_model": {"intermediate_size": 48, "image_size": LLAVA_SIDE},
    "siglip_vision_model": {"intermediate_size": 48, "image_size": LLAVA_SIDE, "vision_use_head": False},
    "dinov2": {"mlp_ratio": 2, "image_size": 7 * LLAVA_PATCH},
}
CLIP, SIGLIP, DINOV2 = LLAVA_TOWERS


def strategy_for(tower: str) -> str:
    """Return how a model selects features of a tower: SigLIP has no CLS to leave out."""
    return "full" if tower == SIGLIP else "default"


def tiny_llava_processor(tower: str = CLIP) -> LlavaProcessor:
    """Build a processor whose images of any size become 4 x 4 visual tokens."""
    side = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": LLAVA_SIDE}, crop_size=side),
        tokenizer=tiny_tokenizer(),
        patch_size=LLAVA_PATCH,
        vision_feature_select_strategy=strategy_for(tower),
        num_additional_image_tokens=int(tower != SIGLIP),
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
    tower: str = CLIP,
    **config: object,
) -> LlavaForConditionalGeneration:
    """Build a LLaVA-1.5 of random weights: by default a CLIP tower with CLS; features of its last layer but one."""
    llava_config = LlavaConfig(
        text_config=text_config(layers, model_type=text),
        vision_config={
            "model_type": tower,
            "hidden_size": 32,
            "num_hidden_layers": depth,
            "num_attention_heads": 2,
            "patch_size": LLAVA_PATCH,
            **LLAVA_TOWERS[tower],
        },
        image_token_index=placeholders()["image_token_id"],
        image_seq_length=(LLAVA_SIDE // LLAVA_PATCH) ** 2,
        **{"vision_feature_select_strategy": strategy_for(tower), **config},
    )
    return built(LlavaForConditionalGeneration, llava_config, dtype, attn, seed, vision_std=0.3)


def tiny_folder(tmp_path: Path, seed: int = 0) -> Path:
    """Write model and processor as a local checkpoint folder."""
    folder = tmp_path / "tiny-qwen2.5-vl"
    tiny_qwen(seed=seed).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder

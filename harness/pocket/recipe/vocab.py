"""The pocket tokenizer: a closed vocabulary of whole words, single characters and bytes.

A word is one token, so that the dense targets of the vision tower (`scenes.Mark.words`) and the words of a question are
rows of one embedding table. Digits and capitals are single characters, because the model spells text that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from harness.pocket.recipe.model import PATCH, SIDE
from harness.pocket.words import CHARACTERS, COLORS, KEYS, OPTIONS, POSITIONS, ROLES, SHAPES

_TEMPLATE_WORDS = """
what What which Which is Is there are How many in the The image of a an and or with Answer option letter color shape
written value bar bars appears appear before after first second yes no Yes No one word number s does contain not present
circles rectangles triangles stars crosses rings diamonds arrows objects document chart video user assistant system
""".split()  # noqa: SIM905 (easier to read and to extend as words)
_SPECIAL_NAMES = "endoftext im_start im_end vision_start vision_end vision_pad image_pad video_pad"
SPECIALS = tuple(f"<|{name}|>" for name in _SPECIAL_NAMES.split())
# No newline after the role: the first word of the content would lose its word boundary.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}"
    "{% if message.content is string %} {{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' or 'image' in part %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' or 'video' in part %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %} {{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
MIN_PIXELS, MAX_PIXELS = 28 * 28, 448 * 448


def label_words() -> list[str]:
    """Return the words that label visual tokens, in a fixed order."""
    return [*COLORS, *SHAPES, *KEYS, *CHARACTERS, *POSITIONS, *ROLES]


def token_of(word: str) -> str:
    """Return the token of a label word: whole words include the word boundary, characters and positions do not."""
    return word if len(word) == 1 or word.startswith("<pos") else f"▁{word}"


POCKET_WORDS = (*COLORS, *SHAPES, *KEYS, *ROLES, *_TEMPLATE_WORDS)


def build_tokenizer(words: Sequence[str] = POCKET_WORDS) -> PreTrainedTokenizerFast:
    """Build a unigram tokenizer with byte fallback; every one of `words` is one token."""
    pieces = [f"▁{w}" for w in words] + [f"▁{c}" for c in OPTIONS]
    characters = [chr(c) for c in range(33, 127)] + ["▁", "\n"]
    vocab = [("<unk>", 0.0)]
    vocab += [(p, -2.0) for p in dict.fromkeys(pieces)]
    vocab += [(c, -12.0) for c in characters]
    vocab += [(f"<0x{b:02X}>", -20.0) for b in range(256)]
    core = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    core.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always"), decoders.Fuse()]
    )
    core.add_special_tokens([AddedToken(s, special=True) for s in SPECIALS])
    core.add_tokens([AddedToken(p, special=False) for p in POSITIONS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        extra_special_tokens=[*SPECIALS[3:], "<|im_start|>"],
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """Build a stock Qwen2.5-VL processor (14-px patches, 2x2 merge, 2-frame patches) with the pocket tokenizer."""
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    vision: dict[str, Any] = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_llava_processor() -> LlavaProcessor:
    """Build a stock LLaVA processor with the pocket tokenizer; images are padded to 448 pixels, never resized.

    Resized images would need much more training: without resizing, things lie near the middle of a 28-px patch.
    """
    side = {"height": SIDE, "width": SIDE}
    layout: dict[str, Any] = {"do_resize": False, "do_center_crop": False, "do_pad": True, "pad_size": side}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**layout, size=side, crop_size=side),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<|image_pad|>",
        num_additional_image_tokens=1,
    )

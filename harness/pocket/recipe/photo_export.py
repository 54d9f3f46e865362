"""Put the parts of `pocket_photo` together as a stock LLaVA, in the folder that ships (`harness/models/packed.py`)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from harness.models.checkpoint import DECODER, TOWER
from harness.pocket.photo.scenes import GRID, PATCH, SIDE
from harness.pocket.recipe.photo_bank import MEAN, STD
from harness.pocket.recipe.photo_projector import Projector
from harness.pocket.recipe.photo_tower import CONFIG
from harness.pocket.recipe.vocab import CHAT_TEMPLATE

IMAGE = "<|image_pad|>"


def photo_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return a stock LLaVA processor: every picture becomes 224 x 224 pixels, 256 visual tokens."""
    pixels: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**pixels, image_mean=list(MEAN), image_std=list(STD)),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def photo_config(decoder: Any, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """Return the configuration: features of the tower's layer before the last, without CLS."""
    token: Any = tokenizer.convert_tokens_to_ids
    return LlavaConfig(
        vision_config={"model_type": "dinov2", **CONFIG},
        text_config=decoder.config.to_dict(),
        image_token_index=token(IMAGE),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )


@torch.no_grad()
def write(folder: Path, decoder: Any, projector: Projector, tokenizer: PreTrainedTokenizerFast, tower: Path) -> None:
    """Write projector and language model in float16, the tower as it is in its file, and all that is read beside."""
    model: Any = LlavaForConditionalGeneration(photo_config(decoder, tokenizer))
    model.model.multi_modal_projector.load_state_dict(projector.state_dict())
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    token: Any = tokenizer.convert_tokens_to_ids
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=token("<|im_end|>"), pad_token_id=token("<|endoftext|>")
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as whole:
        model.half().save_pretrained(whole)
        tensors = load_file(Path(whole) / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if "vision_tower" not in n}, folder / DECODER, {"format": "pt"})
        for name in ("config.json", "generation_config.json"):
            shutil.copyfile(Path(whole) / name, folder / name)
    photo_processor(tokenizer).save_pretrained(folder)
    if tower.resolve() != (folder / TOWER).resolve():
        shutil.copyfile(tower, folder / TOWER)

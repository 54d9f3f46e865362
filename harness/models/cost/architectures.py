"""Real architectures with random weights, at full size or tiny: latency can be measured where no weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.models import llavaov15
from harness.models.scorer import VisionSelectorScorer

CONFIGS = Path(__file__).parent / "configs"
SCORER_SCALE = 0.02  # of random weights: spread logits, where the released start, 1e-4, would have nearly equal ones


def names() -> list[str]:
    """Models whose configuration is at hand."""
    return sorted(file.stem for file in CONFIGS.glob("*.json"))


def of_checkpoint(pretrained: str) -> str | None:
    """The model whose configuration is that of a checkpoint on the Hub, if it is at hand."""
    return next((name for name in names() if _about(name)["source"].split()[-1] == pretrained), None)


def config_of(name: str, tiny: bool = False) -> Any:
    """Return the transformers configuration of a model, or of a tiny one of its family; UserError if it is unknown."""
    about, made = _about(name), llavaov15.MODEL_TYPE
    fields: dict[str, Any] = dict(about["architecture"])
    if tiny:
        for key, value in about["tiny"].items():
            fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    family = fields.pop("model_type")
    if family == made:
        llavaov15.register()
    return transformers.AutoConfig.for_model(family, **fields)


def scorer_hidden(name: str) -> int:
    """Return the width of the scorer that was released for a model."""
    return int(_about(name)["scorer_hidden"])


def build(model: ModelConfig, tiny: bool, device: str, seed: int) -> nn.Module:
    """Make a model on `device`, in its dtype, of random weights; nothing is downloaded, nor built on the CPU first."""
    config = config_of(model.name, tiny)
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(seed)
    with torch.device(device):
        made = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, model.dtype), attn_implementation=model.attn
        )
    return made.eval().requires_grad_(False)


def random_scorer(width: int, hidden: int, device: str) -> VisionSelectorScorer:
    """Make a scorer for tokens of `width` numbers; in float32, as the released ones run."""
    with torch.device(device):
        scorer = VisionSelectorScorer(width, hidden, SCORER_SCALE)
    return scorer.eval().requires_grad_(False)


def _about(name: str) -> dict[str, Any]:
    file = CONFIGS / f"{name}.json"
    if not file.is_file():
        known = ", ".join(names())
        raise UserError(f"no architecture of model={name} is at hand: choose one of {known}, or weights=real")
    about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return about

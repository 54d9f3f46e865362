"""Real architectures with random weights, at full size or tiny, to measure latency without a checkpoint."""

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
SCORER_SCALE = 0.02  # of random weights; with the released initial value, 1e-4, logits would be nearly equal


def names() -> list[str]:
    """Return the models whose configuration is included."""
    return sorted(file.stem for file in CONFIGS.glob("*.json"))


def of_checkpoint(pretrained: str) -> str | None:
    """Return the model with the configuration of a checkpoint on the Hub, or None if it is not included."""
    return next((name for name in names() if _description(name)["source"].split()[-1] == pretrained), None)


def config_of(name: str, tiny: bool = False) -> Any:
    """Return the transformers configuration of a model, or of a tiny one of its family; UserError if it is unknown."""
    description = _description(name)
    fields: dict[str, Any] = dict(description["architecture"])
    if tiny:
        for key, value in description["tiny"].items():
            fields[key] = {**fields[key], **value} if isinstance(value, dict) else value
    family = fields.pop("model_type")
    if family == llavaov15.MODEL_TYPE:
        llavaov15.register()
    return transformers.AutoConfig.for_model(family, **fields)


def scorer_hidden(name: str) -> int:
    """Return the width of the scorer that was released for a model."""
    return int(_description(name)["scorer_hidden"])


def build(model: ModelConfig, tiny: bool, device: str, seed: int) -> nn.Module:
    """Build a model with random weights directly on `device`, in its dtype; nothing is downloaded."""
    config = config_of(model.name, tiny)
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(seed)
    with torch.device(device):
        network = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=getattr(torch, model.dtype), attn_implementation=model.attn
        )
    return network.eval().requires_grad_(False)


def random_scorer(width: int, hidden: int, device: str) -> VisionSelectorScorer:
    """Build a scorer with random weights for tokens of width `width`, in float32 as the released ones."""
    with torch.device(device):
        scorer = VisionSelectorScorer(width, hidden, SCORER_SCALE)
    return scorer.eval().requires_grad_(False)


def _description(name: str) -> dict[str, Any]:
    file = CONFIGS / f"{name}.json"
    if not file.is_file():
        choices = ", ".join(names())
        raise UserError(f"no architecture of model={name} is at hand: choose one of {choices}, or weights=real")
    description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return description

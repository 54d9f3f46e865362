"""Model families: where visual tokens are, and how signals about them are read."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from harness.models.adapter import Adapter

# model_type of the configuration -> module:class
FAMILIES = {
    "qwen2_5_vl": "harness.models.qwen25vl:Qwen25VL",
    "llava": "harness.models.llava:Llava",
    "llavaonevision1_5": "harness.models.llavaov15.adapter:LlavaOnevision15",
    "qwen2_vl": "harness.models.qwen2vl:Qwen2VL",
    "qwen3_vl": "harness.models.qwen3vl:Qwen3VL",
    "llava_next": "harness.models.llava_next:LlavaNext",
    "llava_onevision": "harness.models.llava_onevision:LlavaOnevision",
    "internvl": "harness.models.internvl:InternVL",
}
# Families that transformers lacks: model_type -> module:function that registers our port
PORTS = {"llavaonevision1_5": "harness.models.llavaov15:register"}


def adapter_for(model: nn.Module) -> Adapter:
    """Return an adapter for `model`, or for the model within wrappers of PEFT and DistributedDataParallel."""
    from harness.models.wrappers import unwrapped

    model = unwrapped(model)
    family = getattr(getattr(model, "config", None), "model_type", None)
    return adapter_class(family, type(model).__name__)(model)


def adapter_class(family: str | None, what: str = "this model") -> type[Adapter]:
    """Return the adapter class for the model_type `family`; ValueError, which names `what`, if there is none."""
    if family not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise ValueError(f"no adapter for {what} (model_type {family!r}); supported families: {supported}")
    adapter: type[Adapter] = _import(FAMILIES[family])
    return adapter


def register_family(folder: Path) -> str | None:
    """Return the model_type of a checkpoint, and register our port of it with transformers if there is one.

    No code in the folder is executed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family: str | None = config.get("model_type")
    if family in PORTS:
        _import(PORTS[family])()
    return family


def _import(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)

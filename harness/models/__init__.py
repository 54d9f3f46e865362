"""Model families: where a model's visual tokens are, how signals about them are read, and how they are cut."""

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
    "qwen3_vl": "harness.models.qwen3vl:Qwen3VL",
    "internvl": "harness.models.internvl:InternVL",
}
# Families that transformers lacks: model_type -> module:function that makes it know our port of them
PORTS = {"llavaonevision1_5": "harness.models.llavaov15:register"}


def adapter_for(model: nn.Module) -> Adapter:
    """Return the adapter of the family that `model` belongs to."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    return adapter_class(family, type(model).__name__)(model)


def adapter_class(family: str | None, what: str = "this model") -> type[Adapter]:
    """Return the adapter of the family with that model_type; an error says that `what` has none."""
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"no adapter for {what} (model_type {family!r}); supported families: {known}")
    adapter: type[Adapter] = _named(FAMILIES[family])
    return adapter


def make_known(folder: Path) -> str | None:
    """Return the model_type of a checkpoint; where it is one of our ports, transformers' Auto classes can read it then.

    No code that lies in the folder is executed.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family: str | None = config.get("model_type")
    if family in PORTS:
        _named(PORTS[family])()
    return family


def _named(address: str) -> Any:
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)

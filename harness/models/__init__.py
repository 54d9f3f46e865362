"""Model families: where a model's visual tokens are, how signals about them are read, and how they are cut."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from harness.models.base import Adapter

# model_type of the configuration -> module:class
FAMILIES = {"qwen2_5_vl": "harness.models.qwen25vl:Qwen25VL", "llava": "harness.models.llava:Llava"}


def adapter_for(model: nn.Module) -> Adapter:
    """Return the adapter of the family that `model` belongs to."""
    family = getattr(getattr(model, "config", None), "model_type", None)
    return adapter_class(family, type(model).__name__)(model)


def adapter_class(family: str | None, what: str = "this model") -> type[Adapter]:
    """Return the adapter of the family with that model_type; an error says that `what` has none."""
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"no adapter for {what} (model_type {family!r}); supported families: {known}")
    module, _, name = FAMILIES[family].partition(":")
    adapter: type[Adapter] = getattr(import_module(module), name)
    return adapter

"""Unwrap models of PEFT and DistributedDataParallel, and refuse models that hooks cannot reach."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from harness.models.calls import HookError

_COMPILED = "_torchdynamo_orig_callable"  # attribute of what torch.compile returns


def unwrapped(model: object) -> nn.Module:
    """Return the model within wrappers of PEFT and DistributedDataParallel; TypeError for anything but a model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a model as transformers loads it, got {_described(model)}")
    while (inner := _inner(model)) is not None:
        model = inner
    return model


def refuse_compiled(model: nn.Module) -> None:
    """Raise HookError if torch.compile was applied to a model or a part of it."""
    for path, module in model.named_modules():
        own = vars(module)
        if own.get("_compiled_call_impl") or _COMPILED in own or hasattr(own.get("forward"), _COMPILED):
            where = f"'{path}' of {type(model).__name__}" if path else "this model"
            raise HookError(
                f"{where} is compiled, and hooks do not run in compiled code: prune and call the plain model"
            )


def _inner(model: nn.Module) -> nn.Module | None:
    if isinstance(model, DistributedDataParallel):
        return model.module
    if isinstance(model, DataParallel):
        raise TypeError(
            "DataParallel runs copies of the model in threads, of which hooks see none: "
            "prune and call its .module, and start one process for each GPU"
        )
    if any(cls.__module__.partition(".")[0] == "peft" for cls in type(model).__mro__):
        # Without get_base_model, as in PeftMixedModel, `model` is looked up in what is wrapped.
        peft: Any = model
        inner: nn.Module = peft.get_base_model() if hasattr(peft, "get_base_model") else peft.model
        return inner
    return None


def _described(model: object) -> str:
    if isinstance(model, str):
        return f"the text {model!r}: load it first, as AutoModelForImageTextToText.from_pretrained({model!r})"
    if isinstance(model, type):
        return f"the class {model.__name__}: load a model first, as {model.__name__}.from_pretrained(...)"
    inside = ", which holds one: pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
    return f"an object of type {type(model).__name__}{inside}"

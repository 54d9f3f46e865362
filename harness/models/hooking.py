"""Hooks on named sub-modules, and how their arguments are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import transformers
from torch import nn


class Handles:
    """Hooks that are removed together. Functions get (module, args, kwargs), behind a pass also the output."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook` in front of `module`; what it returns, if anything, are the new (args, kwargs)."""
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any], always: bool = False) -> None:
        """Call `hook` behind `module`, also behind a pass that raised if `always`; it may return another output."""
        self._handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=always))

    def remove(self) -> None:
        """Take all of them off again."""
        while self._handles:
            self._handles.pop().remove()


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return a sub-module by name, or stop with what is needed to find out why it is not there."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        where = f"{type(model).__name__} (transformers {transformers.__version__})"
        hint = "pass the plain model, not a wrapper; or this version of transformers named it otherwise"
        raise RuntimeError(f"hook target '{path}' does not exist in {where}: {hint}") from None


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass of `module` by name."""
    names = inspect.signature(module.forward).parameters if args else ()
    return {**dict(zip(names, args, strict=False)), **kwargs}

"""Hooks on named sub-modules, and how their arguments are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
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

    def instead(self, module: nn.Module, stand_in: Callable[..., Any]) -> None:
        """Have `module` return `stand_in(forward, args, kwargs)`; the hooks around its pass run as ever."""
        forward, own = module.forward, vars(module).get("forward")  # accelerate leaves one of its own there

        @wraps(forward)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return stand_in(forward, args, kwargs)

        vars(module)["forward"] = replaced
        self._handles.append(_StandIn(module, own))

    def remove(self) -> None:
        """Take all of them off again."""
        while self._handles:
            self._handles.pop().remove()


@dataclass(frozen=True, eq=False)
class _StandIn:
    """What `instead` has to put back."""

    module: nn.Module
    own: Callable[..., Any] | None

    def remove(self) -> None:
        del vars(self.module)["forward"]
        if self.own is not None:
            vars(self.module)["forward"] = self.own


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

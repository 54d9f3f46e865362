"""Hooks on named sub-modules of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import transformers
from torch import nn

from harness.models.calls import Call, CallSite, HookError

Changes = Mapping[str, Any]  # role -> what the module gets instead


class Handles:
    """Hooks that are removed together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, site: CallSite, hook: Callable[[Call], Changes | None]) -> None:
        """Call `hook` before a pass through the module; it may return arguments to change, by role."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = site.read(args, kwargs)
            changes = hook(call)
            return None if changes is None else call.changed(changes)

        self._handles.append(site.module.register_forward_pre_hook(run, with_kwargs=True))

    def after(self, site: CallSite, hook: Callable[[Call, Any], Any], always: bool = False) -> None:
        """Call `hook` after a pass, also after one that raised if `always`; it may return another output."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return hook(site.read(args, kwargs), output)

        self._handles.append(site.module.register_forward_hook(run, with_kwargs=True, always_call=always))

    def entered(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook` before each pass through `module`, whatever its arguments."""
        self._handles.append(module.register_forward_pre_hook(lambda module, args: hook()))

    def left(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook` after each pass through `module`."""
        self._handles.append(module.register_forward_hook(lambda module, args, output: hook()))

    def output(self, module: nn.Module, hook: Callable[[Any], Any]) -> None:
        """Call `hook` with the output of each pass through `module`; it may return another one."""
        self._handles.append(module.register_forward_hook(lambda module, args, output: hook(output)))

    def instead(self, module: nn.Module, stand_in: Callable[..., Any], name: str = "forward") -> None:
        """Have method `name` of `module` return `stand_in(method, args, kwargs)`; hooks around a pass run as ever."""
        method, own = getattr(module, name), vars(module).get(name)  # accelerate leaves a forward of its own there

        @wraps(method)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return stand_in(method, args, kwargs)

        vars(module)[name] = replaced
        self._handles.append(_StandIn(module, name, own))

    def remove(self) -> None:
        """Take all of them off again."""
        while self._handles:
            self._handles.pop().remove()


@dataclass(frozen=True, eq=False)
class _StandIn:
    """What `instead` has to put back."""

    module: nn.Module
    name: str
    own: Callable[..., Any] | None

    def remove(self) -> None:
        del vars(self.module)[self.name]
        if self.own is not None:
            vars(self.module)[self.name] = self.own


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return a sub-module by name, or stop with what is needed to find out why it is not there."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        where = f"{type(model).__name__} (transformers {transformers.__version__})"
        hint = "pass the plain model, not a wrapper; or this version of transformers named it otherwise"
        raise HookError(f"hook target '{path}' does not exist in {where}: {hint}") from None

"""Hooks on named sub-modules of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import transformers
from torch import nn

from harness.models.calls import Call, CallSite, HookError

Changes = Mapping[str, Any]  # role -> new value of the argument


class Handles:
    """A set of hooks that are removed together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, site: CallSite, hook: Callable[[Call], Changes | None]) -> None:
        """Call `hook` before each pass through the module; it may return arguments to change, by role."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = site.read(args, kwargs)
            changes = hook(call)
            return None if changes is None else call.changed(changes)

        self._handles.append(site.module.register_forward_pre_hook(run, with_kwargs=True))

    def after(self, site: CallSite, hook: Callable[[Call, Any], Any], always: bool = False) -> None:
        """Call `hook` after each pass, with `always` also after one that raised; it may return another output."""

        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return hook(site.read(args, kwargs), output)

        self._handles.append(site.module.register_forward_hook(run, with_kwargs=True, always_call=always))

    def on_enter(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook`, without arguments, before each pass through `module`."""
        self._handles.append(module.register_forward_pre_hook(lambda module, args: hook()))

    def on_leave(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook`, without arguments, after each pass through `module`."""
        self._handles.append(module.register_forward_hook(lambda module, args, output: hook()))

    def on_output(self, module: nn.Module, hook: Callable[[Any], Any]) -> None:
        """Call `hook` with the output of each pass through `module`; it may return another one."""
        self._handles.append(module.register_forward_hook(lambda module, args, output: hook(output)))

    def replace_method(self, module: nn.Module, replacement: Callable[..., Any], name: str = "forward") -> None:
        """Let method `name` of `module` return `replacement(method, args, kwargs)`; hooks on its passes still run."""
        method, previous = getattr(module, name), vars(module).get(name)  # accelerate sets a forward on the instance

        @wraps(method)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return replacement(method, args, kwargs)

        vars(module)[name] = replaced
        self._handles.append(_ReplacedMethod(module, name, previous))

    def remove(self) -> None:
        """Remove all hooks."""
        while self._handles:
            self._handles.pop().remove()


@dataclass(frozen=True, eq=False)
class _ReplacedMethod:
    """A method that `replace_method` replaced, with what the instance held under its name."""

    module: nn.Module
    name: str
    previous: Callable[..., Any] | None

    def remove(self) -> None:
        del vars(self.module)[self.name]
        if self.previous is not None:
            vars(self.module)[self.name] = self.previous


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return a sub-module by name; HookError, which names the library's version, if it does not exist."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        where = f"{type(model).__name__} (transformers {transformers.__version__})"
        hint = "pass the plain model, not a wrapper; or this version of transformers named it otherwise"
        raise HookError(f"hook target '{path}' does not exist in {where}: {hint}") from None

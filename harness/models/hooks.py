"""Hooks on named sub-modules of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Never, SupportsIndex

import transformers
from torch import nn
from torch.utils.hooks import RemovableHandle

from harness.models.calls import Call, CallSite, HookError

Changes = Mapping[str, Any]  # role -> new value of the argument


class _Hook:
    """A hook of one module; no copy of the module may have it, because nothing would remove it there."""

    def __init__(self, module: nn.Module, run: Callable[..., Any], always: bool = False) -> None:
        self._module = module
        self._run = run
        self._always = always  # True if it also runs after an error, which is what it would raise here

    def __call__(self, module: nn.Module, *passed: Any) -> Any:
        if module is not self._module:
            if self._always:
                return None
            raise HookError(
                f"a copy of {type(self._module).__name__} ran within a prune block, as under DataParallel: "
                "call the model that was given to prune(), and start one process for each GPU"
            )
        return self._run(*passed)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Never:
        raise RuntimeError(
            f"{type(self._module).__name__} cannot be copied, pickled or saved whole between harness.prune() and the "
            "end of its block: leave the block first, or save its state_dict()"
        )


class Handles:
    """A set of hooks that are removed together."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def before(self, site: CallSite, hook: Callable[[Call], Changes | None]) -> None:
        """Call `hook` before each pass through the module; it may return arguments to change, by role."""

        def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = site.read(args, kwargs)
            changes = hook(call)
            return None if changes is None else call.changed(changes)

        self._handles.append(site.module.register_forward_pre_hook(_Hook(site.module, run), with_kwargs=True))

    def after(self, site: CallSite, hook: Callable[[Call, Any], Any], always: bool = False) -> None:
        """Call `hook` after each pass, with `always` also after one that raised; it may return another output."""

        def run(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            return hook(site.read(args, kwargs), output)

        hooked = _Hook(site.module, run, always)
        self._handles.append(site.module.register_forward_hook(hooked, with_kwargs=True, always_call=always))

    def on_enter(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook`, without arguments, before each pass through `module`."""
        self._handles.append(module.register_forward_pre_hook(_Hook(module, lambda args: hook())))

    def on_leave(self, module: nn.Module, hook: Callable[[], None]) -> None:
        """Call `hook`, without arguments, after each pass through `module`."""
        self._handles.append(module.register_forward_hook(_Hook(module, lambda args, output: hook())))

    def on_output(self, module: nn.Module, hook: Callable[[Any], Any]) -> None:
        """Call `hook` with the output of each pass through `module`; it may return another one."""
        self._handles.append(module.register_forward_hook(_Hook(module, lambda args, output: hook(output))))

    def replace_method(self, module: nn.Module, replacement: Callable[..., Any], name: str = "forward") -> None:
        """Let method `name` of `module` return `replacement(method, args, kwargs)`; hooks on its passes still run."""
        method, previous = getattr(module, name), vars(module).get(name)  # accelerate sets a forward on the instance

        @wraps(method)
        def replaced(*args: Any, **kwargs: Any) -> Any:
            return replacement(method, args, kwargs)

        vars(module)[name] = replaced
        self._handles.append(_ReplacedMethod(module, name, previous))

    def check(self) -> None:
        """Raise HookError if other code has removed a hook, so that later passes went unpruned."""
        for handle in self._handles:
            if isinstance(handle, RemovableHandle) and handle.id not in (handle.hooks_dict_ref() or {}):
                raise HookError("other code removed hooks within the prune block: leave all hooks of the model alone")

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

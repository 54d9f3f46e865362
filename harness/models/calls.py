"""Read and change the arguments of hooked forward passes by role: the one place that knows what a library calls them.

A library may rename an argument in a minor release. Whoever then looked it up by its old name would get nothing and go
on as if nothing had been passed. So a role is resolved against the signature of its module when a prune block begins,
by every name it is known under; one that is required and has no such name is an error before anything runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor, nn

# Role -> the names of its argument in the versions of transformers that are supported, and in our port.
NAMES: Mapping[str, tuple[str, ...]] = {
    "ids": ("input_ids",),  # [B, S]
    "embeddings": ("inputs_embeds",),  # [B, S, D]
    "mask": ("attention_mask",),
    "positions": ("position_ids",),
    "cache": ("past_key_values", "cache"),  # renamed in 5.24
    "use_cache": ("use_cache",),
    "cache_position": ("cache_position",),  # before 5.4
    "labels": ("labels",),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "image_grids": ("image_grid_thw",),
    "video_grids": ("video_grid_thw",),
    "grids": ("grid_thw",),  # of a pass through the vision tower
    "window_order": ("window_index",),  # where a caller of the tower has computed it
    "kinds": ("mm_token_type_ids",),  # since 5.3
    "encoded": ("mm_encoder_outputs",),  # since 5.18: generate() encodes ahead of the prefill
    "feature_layer": ("vision_feature_layer",),
    "feature_strategy": ("vision_feature_select_strategy",),
    "layers_wanted": ("output_hidden_states",),
    "packed_queries": ("cu_seq_lens_q",),
    "packed_keys": ("cu_seq_lens_k",),
    "states": ("hidden_states", "x"),  # what enters a layer, [B, S, D]
    "rotation": ("position_embeddings",),  # (cos, sin)
    "visual_rows": ("visual_pos_masks",),
    "added": ("deepstack_visual_embeds",),
}
# What a processor makes with one entry per token, and what a text token has there; None stands for its id.
TOKEN_INPUTS: Mapping[str, int | None] = {
    "input_ids": None,
    "attention_mask": 1,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}
PIXELS = {kind: NAMES[kind][0] for kind in ("image", "video")}


class HookError(RuntimeError):
    """The installed library does not do what a hook relies on, so that results would be wrong."""


@dataclass(frozen=True)
class Arguments:
    """The roles that hooks read or change at one module."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, required: str, optional: str = "") -> Arguments:
        """Build from names separated by blanks."""
        return cls(frozenset(required.split()), frozenset(optional.split()))

    def __or__(self, other: Arguments) -> Arguments:
        return Arguments(self.required | other.required, self.optional | other.optional)


class CallSite:
    """A hooked module, and the name under which it takes each role.

    HookError if a required role has no name that its forward pass knows.

    Args:
        module: the module.
        path: its name in the model, for messages.
        arguments: the roles that will be read.
    """

    def __init__(self, module: nn.Module, path: str, arguments: Arguments) -> None:
        self.module = module
        self.path = path
        self.arguments = arguments
        parameters = inspect.signature(module.forward).parameters
        self.order = [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.names: dict[str, str] = {}
        for role in sorted(arguments.required | arguments.optional):
            known = [name for name in NAMES[role] if name in self.order]
            if len(known) == 1:
                self.names[role] = known[0]
            elif known or role in arguments.required:
                self._refuse(role, known)

    @property
    def where(self) -> str:
        """The module for messages, with the version that named its arguments."""
        return f"{self.path} ({type(self.module).__name__}, transformers {transformers.__version__})"

    def _refuse(self, role: str, known: list[str]) -> None:
        expected = " or ".join(NAMES[role])
        came = f"it takes {' and '.join(known)}" if known else f"it takes {', '.join(self.order) or 'none by name'}"
        raise HookError(
            f"{self.where} cannot be hooked: role {role!r} needs one argument named {expected}, {came}; "
            "undo what changed the class, or install a tested version (python -m harness.doctor names the range)"
        )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return the arguments of one pass; HookError if one has no name, since changed calls are made by name."""
        if len(args) > len(self.order):
            raise HookError(
                f"{self.where} was called with {len(args)} arguments by position, {len(self.order)} have names"
            )
        return Call(self, {**dict(zip(self.order, args, strict=False)), **kwargs})


class Call(Mapping[str, Any]):
    """The arguments of one forward pass by role; one that is None counts as not passed."""

    def __init__(self, site: CallSite, passed: Mapping[str, Any]) -> None:
        self._site = site
        self._passed = passed
        self._values: dict[str, Any] = {}
        for role in site.arguments.required | site.arguments.optional:
            values = [passed[name] for name in NAMES[role] if passed.get(name) is not None]
            if len(values) > 1:
                raise HookError(f"{site.where} was called with {' and '.join(NAMES[role])}: pass one of them")
            if values:
                self._values[role] = values[0]

    def __getitem__(self, role: str) -> Any:
        if role in self._values:
            return self._values[role]
        if role not in self._site.arguments.required | self._site.arguments.optional:
            raise HookError(f"{self._site.where}: role {role!r} was not declared, so it was not checked")
        raise KeyError(role)

    def require(self, role: str) -> Any:
        """Return what was passed; HookError if nothing was."""
        if self.get(role) is None:
            name = self._site.names.get(role, NAMES[role][0])
            raise HookError(f"{self._site.where} was called without {name}, which pruning needs there")
        return self[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def changed(self, changes: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Return (args, kwargs) of the same pass with other values for some roles; None clears one."""
        passed = dict(self._passed)
        for role, value in changes.items():
            names = [name for name in NAMES[role] if name in passed]
            for name in names:
                del passed[name]
            if role in self._site.names or names:
                passed[self._site.names.get(role) or names[0]] = value
            elif value is not None:
                raise HookError(f"{self._site.where} takes no {NAMES[role][0]}")
        return (), passed

    def refuse_unknown_rows(self, length: int) -> None:
        """HookError for a tensor with one entry per token of which nothing here knows how to cut it."""
        known = {name for role in self._site.arguments.required | self._site.arguments.optional for name in NAMES[role]}
        for name, value in self._passed.items():
            if name not in known and isinstance(value, Tensor) and length in value.shape[:3]:
                shape = list(value.shape)
                raise HookError(
                    f"{self._site.where} got {name} of shape {shape}, which may have one entry for each of {length} "
                    "tokens: pruning does not know how to cut it; leave it out"
                )


def returned_cache(output: Any) -> Any:
    """Return the key-value cache in the output of a model, or None where it has none."""
    if isinstance(output, Mapping):
        fields = {**getattr(output, "__dict__", {}), **output}  # what is set later is no item in older versions
        return next((fields[name] for name in NAMES["cache"] if fields.get(name) is not None), None)
    parts = output if isinstance(output, tuple) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)

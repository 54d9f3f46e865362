"""Read and change the arguments of hooked forward passes by role. No other module knows their names in a library.

A library may rename an argument in a minor release. A look-up by the old name would then find nothing, as if nothing
had been passed. So each role is resolved against the signature of its module when a prune block begins, by all names
that it has had. A required role without such a name is an error before anything runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor, nn

# Role -> names of its argument in the supported versions of transformers and in our port.
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
    "image_sizes": ("image_sizes",),  # [images, 2] (height, width) in pixels
    "image_counts": ("batch_num_images",),  # [B] images of each prompt
    "aspect_ratio": ("vision_aspect_ratio",),
    "image_grids": ("image_grid_thw",),
    "video_grids": ("video_grid_thw",),
    "grids": ("grid_thw",),  # in a pass through the vision tower
    "window_order": ("window_index",),  # if the caller of the tower has computed it
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
# Outputs of a processor with one entry per token -> the entry of a text token; None stands for its id.
TOKEN_INPUTS: Mapping[str, int | None] = {
    "input_ids": None,
    "attention_mask": 1,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}
PIXELS = {kind: NAMES[kind][0] for kind in ("image", "video")}


class HookError(RuntimeError):
    """A library does not behave as a hook expects; results would be wrong."""


class NonFiniteError(HookError):
    """The model's logits are NaN or infinite, so its answers are meaningless."""


@dataclass(frozen=True)
class Arguments:
    """The roles that hooks read or change at one module."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(cls, required: str, optional: str = "") -> Arguments:
        """Build from roles separated by spaces."""
        return cls(frozenset(required.split()), frozenset(optional.split()))

    def __or__(self, other: Arguments) -> Arguments:
        return Arguments(self.required | other.required, self.optional | other.optional)


class CallSite:
    """A hooked module, and the argument name of each role.

    Raises HookError if the forward pass has no argument for a required role.

    Args:
        module: the module.
        path: its name in the model, for messages.
        arguments: the roles that hooks read or change.
    """

    def __init__(self, module: nn.Module, path: str, arguments: Arguments) -> None:
        self.module = module
        self.path = path
        self.arguments = arguments
        parameters = inspect.signature(module.forward).parameters
        self.order = [name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.names: dict[str, str] = {}
        for role in sorted(arguments.required | arguments.optional):
            matches = [name for name in NAMES[role] if name in self.order]
            if len(matches) == 1:
                self.names[role] = matches[0]
            elif matches or role in arguments.required:
                self._refuse(role, matches)

    @property
    def where(self) -> str:
        """Name and class of the module with the version of transformers, for messages."""
        return f"{self.path} ({type(self.module).__name__}, transformers {transformers.__version__})"

    def _refuse(self, role: str, matches: list[str]) -> None:
        expected = " or ".join(NAMES[role])
        taken = " and ".join(matches) or ", ".join(self.order) or "none by name"
        raise HookError(
            f"{self.where} cannot be hooked: role {role!r} needs one argument named {expected}, it takes {taken}; "
            "undo what changed the class, or install a tested version (python -m harness.doctor names the range)"
        )

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return the arguments of one pass; HookError if one has no name, because changes are passed by name."""
        if len(args) > len(self.order):
            raise HookError(
                f"{self.where} was called with {len(args)} arguments by position, {len(self.order)} have names"
            )
        return Call(self, {**dict(zip(self.order, args, strict=False)), **kwargs})


class Call(Mapping[str, Any]):
    """The arguments of one forward pass by role. An argument that is None counts as not passed."""

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
        """Return the value of a role; HookError if it was not passed."""
        if self.get(role) is None:
            name = self._site.names.get(role, NAMES[role][0])
            raise HookError(f"{self._site.where} was called without {name}, which pruning needs there")
        return self[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def changed(self, changes: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Return (args, kwargs) of the same pass with `changes` by role; a value of None removes the argument."""
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
        """Raise HookError for an undeclared tensor that may have one entry per token, because it would not be cut."""
        roles = self._site.arguments.required | self._site.arguments.optional
        declared = {name for role in roles for name in NAMES[role]}
        for name, value in self._passed.items():
            if name not in declared and isinstance(value, Tensor) and length in value.shape[:3]:
                shape = list(value.shape)
                raise HookError(
                    f"{self._site.where} got {name} of shape {shape}, which may have one entry for each of {length} "
                    "tokens: pruning does not know how to cut it; leave it out"
                )


def returned_logits(output: Any) -> Tensor | None:
    """Return the logits [B, T, V] in the output of a model, or None if there are none."""
    if isinstance(output, Mapping):
        return output.get("logits")
    parts = output if isinstance(output, tuple) else ()
    return next((part for part in parts if isinstance(part, Tensor) and part.ndim == 3), None)


def returned_cache(output: Any) -> Any:
    """Return the key-value cache in the output of a model, or None if there is none."""
    if isinstance(output, Mapping):
        fields = {**getattr(output, "__dict__", {}), **output}  # in older versions, fields set later are no items
        return next((fields[name] for name in NAMES["cache"] if fields.get(name) is not None), None)
    parts = output if isinstance(output, tuple) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)

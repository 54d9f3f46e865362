"""Adapter: what `harness.pruning.session` has to know of a model family to prune it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.core.config import NEWLINES, POSITIONS
from harness.models.calls import Arguments, Call, CallSite
from harness.models.coordinates import Coordinates
from harness.models.hooks import Handles, submodule
from harness.models.layout import Layout
from harness.models.scorer import VisionSelectorScorer, load_scorer, score_in_place, shipped_scorer
from harness.models.vision_tower import VisionSignals, VisionTower, refuse_old_names
from methods.base import Method, Signal


@dataclass(frozen=True)
class DecoderParts:
    """Names of the parts of the language model that are read or cut.

    `attention`, `mlp` and `input_norm` are relative to a decoder layer, `linear` and `projections` to its attention.
    """

    path: str  # the language model that receives the complete embeddings
    layers: str
    norm: str  # the last norm, after all layers
    attention: str = "self_attn"
    linear: tuple[str, str] = ("q_proj", "k_proj")
    projections: tuple[str, str] = ("q_proj", "k_proj")  # the last modules before the rotation: these, or their norms
    input_norm: str = "input_layernorm"
    mlp: str = "mlp"
    rotary: str = "model.language_model.rotary_emb"  # computes angles from positions
    # True if a position is one number, False if it has several coordinates. One-dimensional positions of kept rows are
    # passed at `rotary`: the language model would take their gaps for boundaries of packed sequences.
    one_dimensional: bool = False


# Arguments that hooks read or change, by hooked module; a family adds its own in `Adapter.arguments`.
ARGUMENTS: Mapping[str, Arguments] = {
    "root": Arguments.of("ids embeddings cache image", "labels encoded kinds"),
    "multimodal": Arguments.of("ids embeddings mask positions cache image", "encoded kinds use_cache"),
    "vision": Arguments.of(""),
    "decoder": Arguments.of("embeddings mask positions cache use_cache", "cache_position packed_queries packed_keys"),
    "rotary": Arguments.of("positions"),
    "layer": Arguments.of("states mask positions cache rotation", "cache_position"),
    "attention": Arguments.of("states mask rotation"),
    "mlp": Arguments.of("states"),
}


EXAMPLE = (576, 144)  # N and K for which schedules are listed


class Adapter(ABC):
    """One model family. Only the sub-modules in `targets` and inside the decoder and vision tower get hooks."""

    family: ClassVar[str]
    version: ClassVar[int] = 0  # raise it when the same question gets other logits; 0: the source is hashed instead
    prompts: ClassVar[str]  # lmms-eval's id of these models: some tasks have different prompts for some ids
    supplies: ClassVar[frozenset[Signal]]
    media: ClassVar[frozenset[str]] = frozenset({"image", "video"})  # accepted inputs
    lacks: ClassVar[Mapping[Signal, str]] = {}  # reason for each signal that cannot be supplied
    coordinates: ClassVar[Coordinates | None] = None  # of boxes in answers; None: unknown, no task may ask for boxes
    fixed_size: ClassVar[str] = ""  # reason why a smaller image does not have fewer tokens, if that is so
    frames_apart: ClassVar[str] = ""  # reason why the frames of a video are no steps of one grid, if that is so
    has_newlines: ClassVar[bool] = False  # True if `Layout.line_ends` has newline rows
    # Roles: "multimodal" sees token ids and images, "vision" is the image encoder, "decoder" the language model that
    # receives the complete embeddings, "first_layer" its layer 0.
    targets: ClassVar[Mapping[str, str]]
    vision_fields: ClassVar[tuple[str, ...]] = ("pooler_output",)  # fields of the output of "vision" that are used
    decoder: ClassVar[DecoderParts]
    arguments: ClassVar[Mapping[str, Arguments]] = {}  # in addition to ARGUMENTS, by hooked module
    rotate: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # transformers' function of (q, k [B, H, S, d], cos, sin)

    def __init_subclass__(cls) -> None:
        old_names = {"adding": "added_arguments", "saw_vision": "record_vision_pass"}
        old_names |= {"given_grids": "declared_grids", "encode_here": "encoding_hint"}
        refuse_old_names(cls, old_names)

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Class name of the model, for messages."""
        return type(self.model).__name__

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width D of a visual token where it enters the language model."""

    @property
    def placeholders(self) -> list[int]:
        """Token ids that stand for visual tokens in a prompt."""
        return []

    @property
    @abstractmethod
    def tower(self) -> VisionTower:
        """Description of the vision tower, from which signals are read."""

    @abstractmethod
    def has_visuals(self, call: Call) -> bool:
        """Tell whether a forward pass with the arguments `call` has visual tokens."""

    @abstractmethod
    def layout(self, call: Call) -> Layout:
        """Locate the visual tokens of a forward pass that has some; `call` holds the arguments of "multimodal"."""

    @abstractmethod
    def positions(self, call: Call) -> Tensor:
        """Return the position ids [R, B, S] of the full sequence; `call` holds the arguments of "decoder"."""

    @abstractmethod
    def position_ids(self, positions: Tensor) -> Tensor:
        """Convert positions [R, B, L], or [1, B, L] of text, to the form that "decoder" takes."""

    @abstractmethod
    def vision_signals(self, call: Call, layout: Layout) -> list[VisionSignals]:
        """Return the signals of each prompt's images; `call` holds the arguments of "multimodal"."""

    @abstractmethod
    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of a prompt that hold the user's words, without those of the chat template.

        `ids` [S] are the token ids; `kinds` [S] is as in `Layout`.
        """

    def record_vision_pass(self, call: Call, output: Any, signals: VisionSignals | None) -> None:  # noqa: B027
        """Record a pass through "vision", because its arguments may hold what later passes lack."""

    def hook_generation(self, handles: Handles) -> None:  # noqa: B027
        """Hook what generate() does before the prefill, if the family has to know it."""

    def added(self, call: Call) -> list[Tensor]:
        """Return what the model adds [B, S, D] to the rows after decoder layers 0, 1, ...; most families add nothing.

        `call` holds the arguments of "decoder"; rows to which nothing is added are zero.
        """
        return []

    def added_arguments(self, added: Sequence[Tensor], visual: Tensor) -> dict[str, Any]:
        """Return arguments of "decoder", by role, that make it add `added`, [B, L, D] per layer, to rows `visual`."""
        return {}

    def project(self, attention: nn.Module, states: Tensor) -> list[Tensor]:
        """Return the outputs of `projections` for normed states [B, S, D] that the attention itself does not get."""
        parts, size = self.decoder, int(getattr(attention, "head_dim"))  # noqa: B009 (untyped)
        projected = [submodule(attention, name)(states) for name in parts.linear]
        if parts.projections == parts.linear:
            return projected
        heads = [part.view(*states.shape[:2], -1, size) for part in projected]
        return [submodule(attention, name)(part) for name, part in zip(parts.projections, heads, strict=True)]

    def decoder_qk(
        self, attention: nn.Module, projected: Sequence[Tensor], rotation: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return q [B, H, S, d] and k [B, KV, S, d] of a decoder layer, with positions applied if there is `rotation`.

        `projected` are outputs of the projections of its attention, [B, S, H * d] or [B, S, H, d].
        """
        (batch, length), size = projected[0].shape[:2], int(getattr(attention, "head_dim"))  # noqa: B009 (untyped)
        q, k = (part.view(batch, length, -1, size).transpose(1, 2) for part in projected)
        return (q, k) if rotation is None else self.rotate(q, k, *rotation)

    def modules(self) -> dict[str, nn.Module]:
        """Return the hooked modules by role; "root" is the model itself."""
        return {"root": self.model} | {role: submodule(self.model, path) for role, path in self.targets.items()}

    def site(self, part: str, path: str | None = None) -> CallSite:
        """Return the call site of a hook; HookError if the installed library lacks a required argument there.

        `part` is a key of `ARGUMENTS`; `path` is the module's name if `targets` does not have it.
        """
        path = self.targets.get(part, "") if path is None else path
        arguments = ARGUMENTS[part] | self.arguments.get(part, Arguments.of(""))
        return CallSite(submodule(self.model, path), path or "the model", arguments)

    @classmethod
    def refusal(cls, method: Method) -> str | None:
        """Return in one line why no model of this family can run `method`, or None; no model has to be loaded."""
        missing = sorted(method.needs - cls.supplies)
        if missing:
            supplied = ", ".join(sorted(signal.value for signal in cls.supplies)) or "none"
            reasons = "".join(f"; {cls.lacks[signal]}" for signal in missing if signal in cls.lacks)
            needed = ", ".join(signal.value for signal in missing)
            return (
                f"{method.name} needs {needed}, which family {cls.family} cannot supply (it has: {supplied}{reasons})"
            )
        if Signal.LLM in method.needs and not cuts_inside(method):
            return f"{method.name} reads a decoder layer, so it must cut after one, not at its input"
        if method.stage == "pixels" and cls.fixed_size:
            return f"{method.name} makes images smaller, which saves no tokens in family {cls.family}: {cls.fixed_size}"
        if method.compares_frames and cls.frames_apart:
            what = f"{method.name} compares frames of a video, which family {cls.family} does not support"
            return f"{what}: {cls.frames_apart}"
        return None

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Raise ValueError if a method needs a signal that the family lacks, or cuts where the model has no layer.

        `config` is the configuration of the model, so that this can be checked before the model is loaded.
        """
        if reason := cls.refusal(method):
            raise ValueError(reason)
        layer, text = cut_layer(method), config.get_text_config()
        if not cuts_inside(method):
            return
        count = int(text.num_hidden_layers)
        if layer is None:
            method.cuts(EXAMPLE[0], EXAMPLE[0] - 1, count)  # raises if the schedule does not fit so many layers
        elif layer >= count - 1:
            limit = f"this {cls.family} has {count} layers, so {count - 2} is the last with one after it"
            raise ValueError(f"{method.name} cuts after decoder layer {layer}: {limit}")
        types = set(getattr(text, "layer_types", None) or ())
        if types - {"full_attention"}:
            raise ValueError(f"{method.name} cuts inside the language model, whose layers are of types {sorted(types)}")

    @classmethod
    def check_positions(cls, positions: str, method: Method) -> None:
        """Raise ValueError if `positions` is unknown, or does not apply to this family and method."""
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        if positions == "keep":
            return
        remedy = 'pass positions="keep"'
        if not cls.decoder.one_dimensional:
            reason = "a visual token's position is its time, row and column, which no count from 0 replaces"
            raise ValueError(f"positions={positions} does not fit family {cls.family}: {reason}; {remedy}")
        if method.stage == "pixels":
            reason = f"{method.name} downsizes images and removes no tokens afterwards"
            raise ValueError(f"positions={positions} renumbers what is left after a cut: {reason}; {remedy}")
        if cuts_inside(method):
            reason = f"{method.name} cuts after a decoder layer, where its authors' code keeps positions, too"
            raise ValueError(f"positions={positions} renumbers what enters the language model: {reason}; {remedy}")

    @classmethod
    def check_newlines(cls, newlines: str | None) -> str | None:
        """Return what becomes of newline rows, None in a family without them; ValueError for what does not apply."""
        if newlines is not None and newlines not in NEWLINES:
            raise ValueError(f"newlines must be one of {', '.join(NEWLINES)}, not {newlines!r}")
        if cls.has_newlines:
            return newlines or NEWLINES[0]
        if newlines is not None:
            reason = "which has no newline rows"
            raise ValueError(f"newlines={newlines} does not fit family {cls.family}, {reason}: leave it out")
        return None

    def scorer_for(self, method: Method, scorer: str | Path | nn.Module | None) -> Callable[[Tensor], Tensor] | None:
        """Return a function that scores tokens [N, D] -> [N], or None if `method` needs no scores.

        The scorer is `scorer`, a module or a path, or the one next to the model's weights.
        """
        if Signal.IMPORTANCE not in method.needs:
            return None
        if isinstance(scorer, nn.Module):
            if isinstance(scorer, VisionSelectorScorer) and scorer.in_features != self.hidden_size:
                raise ValueError(
                    f"the scorer is for tokens of width {scorer.in_features}, {self.name} has {self.hidden_size}"
                )
            return partial(score_in_place, scorer)
        path = scorer or shipped_scorer(str(getattr(self.model.config, "_name_or_path", "")))
        if path is None:
            raise ValueError(
                f"{method.name} needs a trained scorer and none came with {self.name}: pass scorer=<folder or file>"
            )
        module = load_scorer(path, self.hidden_size)
        # The device of the tokens is known only then: offloaded models keep their parameters elsewhere.
        return lambda features: module.to(features.device)(features)


def cut_layer(method: Method) -> int | None:
    """Return the decoder layer after which `method` cuts; None if it cuts before the first, or has a schedule."""
    stage, _, layer = method.stage.partition(":")
    return int(layer) if stage == "layer" else None


def cuts_inside(method: Method) -> bool:
    """Tell whether `method` cuts after decoder layers, perhaps also before the first."""
    return method.stage.startswith("layer")

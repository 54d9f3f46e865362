"""What a model family has to know so that `harness.pruning.session` can prune it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from harness.core.config import POSITIONS
from harness.models.calls import Arguments, Call, CallSite
from harness.models.hooks import Handles, submodule
from harness.models.layout import Layout
from harness.models.scorer import VisionSelectorScorer, load_scorer, score_in_place, shipped_scorer
from harness.models.vision_tower import VisionSignals, VisionTower
from methods.base import Method, Signal


@dataclass(frozen=True)
class DecoderParts:
    """Names of the language model's parts that are read or cut; those without "model" are relative to their layer."""

    path: str  # the language model that receives the complete embeddings
    layers: str
    norm: str  # the last norm, behind all layers
    attention: str = "self_attn"
    projections: tuple[str, str] = ("q_proj", "k_proj")  # of the attention: what comes last before the rotation
    mlp: str = "mlp"
    rotary: str = "model.language_model.rotary_emb"  # what turns positions into angles
    # A position is one number. Kept ones are handed over at `rotary`, since jumps in the ids that the language model
    # gets mean packed sequences to its masks. Else a token has several coordinates.
    one_dimensional: bool = False


# What hooks read or change, by hooked module; every family adds what is its own.
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


class Adapter(ABC):
    """One model family. The names in `targets` are the sub-modules that get hooks; everything else stays untouched."""

    family: ClassVar[str]
    version: ClassVar[int] = 0  # raise it when the same question gets other logits; 0: results are known by the source
    prompts: ClassVar[str]  # lmms-eval's id of these models: some of its tasks have prompts of their own for one
    supplies: ClassVar[frozenset[Signal]]
    media: ClassVar[frozenset[str]] = frozenset({"image", "video"})  # what it can be shown
    lacks: ClassVar[Mapping[Signal, str]] = {}  # why a signal that is not supplied cannot be
    fixed_size: ClassVar[str] = ""  # why a smaller image has no fewer tokens, where that is so
    # Roles: "multimodal" sees token ids and images, "vision" is the image encoder, "decoder" the language model that
    # receives the complete embeddings, "first_layer" its layer 0.
    targets: ClassVar[Mapping[str, str]]
    vision_fields: ClassVar[tuple[str, ...]] = ("pooler_output",)  # of what leaves "vision": those that the model reads
    decoder: ClassVar[DecoderParts]
    arguments: ClassVar[Mapping[str, Arguments]] = {}  # beyond ARGUMENTS, by hooked module
    rotate: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # (q, k [B, H, S, d], cos, sin), the library's own

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """Class of the model, for messages."""
        return type(self.model).__name__

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width D of a visual token at the entry of the language model."""

    @property
    def placeholders(self) -> list[int]:
        """Token ids that stand for visual tokens in a prompt."""
        return []

    @property
    @abstractmethod
    def tower(self) -> VisionTower:
        """How the vision tower is read."""

    @abstractmethod
    def has_visuals(self, call: Call) -> bool:
        """Tell whether a forward pass with the arguments `call` brings visual tokens in."""

    @abstractmethod
    def layout(self, call: Call) -> Layout:
        """Find the visual tokens of a forward pass that has some; `call` are the arguments of "multimodal"."""

    @abstractmethod
    def positions(self, call: Call) -> Tensor:
        """Return the position ids [R, B, S] of the full sequence; `call` are the arguments of "decoder"."""

    @abstractmethod
    def position_ids(self, positions: Tensor) -> Tensor:
        """Return positions [R, B, L], or [1, B, L] of text, as "decoder" takes them."""

    @abstractmethod
    def vision_signals(self, call: Call, layout: Layout) -> list[VisionSignals]:
        """Return per prompt what was read while its images were encoded; `call` are the arguments of "multimodal"."""

    @abstractmethod
    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of a prompt that are the user's words.

        Not the template's; `ids` [S] are the tokens, `kinds` [S] as in `Layout`.
        """

    def saw_vision(self, call: Call, output: Any, signals: VisionSignals | None) -> None:  # noqa: B027
        """Take note of a pass through "vision", whose arguments may hold what later passes lack."""

    def hook_generation(self, handles: Handles) -> None:  # noqa: B027
        """Hook what generate() does before the prefill, where that has to be known."""

    def added(self, call: Call) -> list[Tensor]:
        """Return what is added [B, S, D] to the rows behind decoder layers 0, 1, ...; in most families nothing.

        `call` are the arguments of "decoder"; rows to which nothing is added have zeros.
        """
        return []

    def adding(self, added: Sequence[Tensor], visual: Tensor) -> dict[str, Any]:
        """Return by role with what "decoder" adds `added`, [B, L, D] a layer, to the rows `visual` [B, L]."""
        return {}

    def decoder_qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q [B, H, S, d] and k [B, KV, S, d] of a decoder layer, positions applied.

        From the arguments of its attention and the outputs of its projections, [B, S, H * d] or [B, S, H, d].
        """
        (batch, length), size = call.require("states").shape[:2], int(getattr(attention, "head_dim"))  # noqa: B009 (untyped)
        q, k = (part.view(batch, length, -1, size).transpose(1, 2) for part in projected)
        return self.rotate(q, k, *call.require("rotation"))

    def modules(self) -> dict[str, nn.Module]:
        """Return the hook targets by role, "root" being the model itself."""
        return {"root": self.model} | {role: submodule(self.model, path) for role, path in self.targets.items()}

    def site(self, part: str, path: str | None = None) -> CallSite:
        """Return the place of a hook; RuntimeError if the installed library names an argument there otherwise.

        `part` is a key of `ARGUMENTS`, `path` the module's name where `targets` does not say it.
        """
        path = self.targets.get(part, "") if path is None else path
        arguments = ARGUMENTS[part] | self.arguments.get(part, Arguments.of(""))
        return CallSite(submodule(self.model, path), path or "the model", arguments)

    @classmethod
    def refusal(cls, method: Method) -> str | None:
        """Say in one line why no model of this family can run `method`, or return None: nothing has to be loaded."""
        missing = sorted(method.needs - cls.supplies)
        if missing:
            have = ", ".join(sorted(signal.value for signal in cls.supplies)) or "none"
            why = "".join(f"; {cls.lacks[signal]}" for signal in missing if signal in cls.lacks)
            what = f"{method.name} needs {', '.join(signal.value for signal in missing)}"
            return f"{what}, which family {cls.family} cannot supply (it has: {have}{why})"
        if Signal.LLM in method.needs and inside_layer(method) is None:
            return f"{method.name} reads a decoder layer, so it must cut behind one, not at its input"
        if method.stage == "pixels" and cls.fixed_size:
            return f"{method.name} makes images smaller, which saves no tokens in family {cls.family}: {cls.fixed_size}"
        return None

    @classmethod
    def check(cls, method: Method, config: Any) -> None:
        """Refuse a method that needs what this family cannot supply, or that cuts where a model has no layer.

        `config` is the model's, or what its config.json says: the answer is there before the model is.
        """
        if reason := cls.refusal(method):
            raise ValueError(reason)
        layer, text = inside_layer(method), config.get_text_config()
        if layer is None:
            return
        count = int(text.num_hidden_layers)
        if layer >= count - 1:
            only = f"this {cls.family} has {count} layers, so {count - 2} is the last with one behind it"
            raise ValueError(f"{method.name} cuts after decoder layer {layer}: {only}")
        types = set(getattr(text, "layer_types", None) or ())
        if types - {"full_attention"}:
            raise ValueError(f"{method.name} cuts inside the language model, whose layers are of types {sorted(types)}")

    @classmethod
    def check_positions(cls, positions: str, method: Method) -> None:
        """Refuse a setting of `positions` that there is not, or that means nothing here."""
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        if positions == "keep":
            return
        keep = 'pass positions="keep"'
        if not cls.decoder.one_dimensional:
            several = "a visual token's position is its time, row and column, which no count from 0 replaces"
            raise ValueError(f"positions={positions} does not fit family {cls.family}: {several}; {keep}")
        if method.stage == "pixels":
            whole = f"{method.name} makes images smaller, of which every token stays"
            raise ValueError(f"positions={positions} renumbers what is left after a cut: {whole}; {keep}")
        if inside_layer(method) is not None:
            late = f"{method.name} cuts behind a decoder layer, where its authors' code keeps positions, too"
            raise ValueError(f"positions={positions} renumbers what enters the language model: {late}; {keep}")

    def scorer_for(self, method: Method, scorer: str | Path | nn.Module | None) -> Callable[[Tensor], Tensor] | None:
        """Return what scores tokens [N, D] -> [N] for `method`: the given scorer, or the one beside the weights."""
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
        loaded = load_scorer(path, self.hidden_size)
        # Where the tokens are is only known once they come: offloaded models keep their parameters elsewhere.
        return lambda features: loaded.to(features.device)(features)


def inside_layer(method: Method) -> int | None:
    """Return the decoder layer behind which `method` cuts, or None if it cuts before the first."""
    stage, _, layer = method.stage.partition(":")
    return int(layer) if stage == "layer" else None

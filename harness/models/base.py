"""What a model family has to know so that `harness.models.session` can prune it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import transformers
from torch import Tensor, nn

from harness.models.scorer import VisionSelectorScorer, load_scorer, score_in_place, shipped_scorer
from methods.base import Method, Signal

Grid = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the visual tokens of a prefill stand."""

    visual: Tensor  # [B, S] bool
    grids: list[list[Grid]]  # (t, h, w) in tokens of each image and video, for each of B / copies prompts
    copies: int = 1  # consecutive rows that beam search or num_return_sequences made of one prompt
    obstacle: str | None = None  # why no token may be dropped from this pass


class Adapter(ABC):
    """One model family. The names in `targets` are the sub-modules that get hooks; everything else stays untouched."""

    family: ClassVar[str]
    supplies: ClassVar[frozenset[Signal]]
    # Roles: "multimodal" sees token ids and images, "vision" is the image encoder, "decoder" the language model that
    # receives the complete embeddings, "first_layer" its layer 0.
    targets: ClassVar[Mapping[str, str]]

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

    @abstractmethod
    def has_visuals(self, call: Mapping[str, Any]) -> bool:
        """Tell whether a forward pass with the arguments `call` brings visual tokens in."""

    @abstractmethod
    def layout(self, call: Mapping[str, Any]) -> Layout:
        """Find the visual tokens of a forward pass that has some; `call` are the arguments of "multimodal"."""

    @abstractmethod
    def positions(self, call: Mapping[str, Any]) -> Tensor:
        """Return the position ids [R, B, S] of the full sequence; `call` are the arguments of "decoder"."""

    def saw_vision(self, call: Mapping[str, Any], output: Any) -> None:  # noqa: B027 (not every family needs it)
        """Take note of a pass through "vision", whose arguments may hold what later passes lack."""

    def modules(self) -> dict[str, nn.Module]:
        """Return the hook targets by role, "root" being the model itself."""
        found = {"root": self.model}
        for role, path in self.targets.items():
            try:
                found[role] = self.model.get_submodule(path)
            except AttributeError:
                where = f"{self.name} (transformers {transformers.__version__})"
                hint = "pass the plain model, not a wrapper; or this version of transformers named it otherwise"
                raise RuntimeError(f"hook target '{path}' does not exist in {where}: {hint}") from None
        return found

    def check_signals(self, method: Method) -> None:
        """Refuse a method that needs what this family cannot supply."""
        missing = sorted(signal.value for signal in method.needs - self.supplies)
        if missing:
            have = ", ".join(sorted(signal.value for signal in self.supplies)) or "none"
            what = f"{method.name} needs {', '.join(missing)}"
            raise ValueError(f"{what}, which family {self.family} cannot supply yet (it has: {have})")

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


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward pass of `module` by name."""
    names = inspect.signature(module.forward).parameters if args else ()
    return {**dict(zip(names, args, strict=False)), **kwargs}


def cached_length(cache: Any) -> int:
    """Return the number of positions a key-value cache already holds."""
    return 0 if cache is None else int(cache.get_seq_length())

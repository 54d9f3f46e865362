"""Methods that reveal what an adapter passes to a method, and a mode that measures the largest tensor."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import AttentionSpec, Cut, HiddenState, Method, Mix, Selection, Signal, Tokens


@dataclass(kw_only=True)
class Keys(Method):
    """Keep the tokens with the largest sum of some components of their keys in layer `layer`.

    Only the state of the right layer gives the right tokens. Norms of keys would not do: some families normalise them.
    """

    needs = frozenset({Signal.LLM})

    layer: int = 1
    variant: Literal["official", "paper"] = "official"
    hidden: HiddenState = "normed_input"

    @property
    def hidden_state(self):
        return self.hidden

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        along = tokens.llm.k[:, tokens.llm.visual_idx, ::3].sum((0, 2))
        return Selection.of(along.argsort(descending=True, stable=True)[:k])


@dataclass(kw_only=True)
class MergeBefore(Method):
    """Keep the first K tokens and merge all others into the last of them."""

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        return Selection(torch.arange(k), owner=torch.arange(len(tokens.features)).clamp(max=k - 1))


@dataclass(kw_only=True)
class MergeInside(Keys):
    """Keep the first K tokens and merge all others into the last of them."""

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        return Selection(torch.arange(k), owner=torch.arange(len(tokens.features)).clamp(max=k - 1))


@dataclass(kw_only=True)
class Stages(Keys):
    """Cut several times, by keys of this layer or of the next one; with `merges`, the last row gathers what went.

    Every cut checks that it is told what the cuts before it left.
    """

    layers: tuple[int, ...] = (0, 1, 2)
    of_next: bool = False
    merges: bool = False

    @property
    def reads(self):
        return "next" if self.of_next else "this"

    def schedule(self, n: int, k: int, layers: int) -> list[Cut]:
        steps = len(self.layers)
        return [Cut(layer, k + (n - k) * (steps - 1 - i) // (steps + 1)) for i, layer in enumerate(self.layers)]

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        n = len(tokens.features)
        origin = torch.arange(n) if tokens.origin is None else tokens.origin
        assert (tokens.cut, tokens.origin is None) == (len(tokens.memory or ()), tokens.cut == 0)
        assert tokens.memory is None or torch.equal(tokens.memory[-1], origin)
        if tokens.at_input:
            kept = torch.arange(0, n, 1)[torch.linspace(0, n - 1, k).long()]
        else:
            kept = super()._select(tokens, k, generator).kept
        memory = (*(tokens.memory or ()), origin[kept])
        if not self.merges:
            return Selection(kept, memory=memory)
        gone = torch.ones(n, dtype=torch.bool).index_fill(0, kept, False).nonzero().squeeze(1)
        mix = Mix(torch.full_like(gone, k - 1), gone, torch.linspace(0.1, 0.5, len(gone)))
        return Selection(kept, mix=mix, memory=memory)


@dataclass(kw_only=True)
class Watch(Method):
    """Keep the first K tokens and record all inputs."""

    needs = frozenset({Signal.VIT_ATTENTION, Signal.VIT_KEYS, Signal.VIT_FEATURES, Signal.TEXT})

    variant: Literal["official", "paper"] = "official"
    wanted: Any = None
    seen: list[Any] = field(default_factory=list)

    @property
    def attention_spec(self):
        return self.wanted or AttentionSpec(roles=("last", "middle"), numbering=self.variant)

    def _select(self, tokens, k, generator):
        self.seen.append(tokens)
        return Selection(torch.arange(k))


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out

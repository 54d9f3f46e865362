"""What a pruning method sees (`Tokens`) and what it returns (`Selection`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from torch import Tensor

from methods import selecting

Grid = tuple[int, int, int]  # (t, h, w) in tokens of an image or video; an image has t = 1
HiddenState = Literal["unused", "normed_input", "output", "normed_output"]
Reads = Literal["this", "next"]  # q and k of layer j, whose output is cut, or of j+1, before it


def num_tokens(grids: Sequence[Grid]) -> int:
    """Return the number of visual tokens of all images and videos."""
    return sum(map(math.prod, grids))


def num_crops(grids: Sequence[Grid]) -> int:
    """Return the number of crops of images that are not cut into tiles: each image and time step of a video is one."""
    return sum(t for t, h, w in grids if h * w)


class Signal(StrEnum):
    """An input that a method may need beyond the features; the value is its field of `Tokens`."""

    IMPORTANCE = "importance"
    VIT_ATTENTION = "vit_attention"
    VIT_KEYS = "vit_keys"
    VIT_FEATURES = "vit_features"
    LLM = "llm"
    TEXT = "text"
    TEXT_AFTER = "text_after"


_SIGNALS = frozenset(signal.value for signal in Signal)


@dataclass(frozen=True)
class AttentionSpec:
    """Which attention of the vision tower `Tokens.vit_attention` holds; published methods define it differently.

    A token receives the softmaxed attention to its patches within one image or one step of a video, whatever windows
    the layer itself attends in: the mean over heads, the sum over queries, the sum over the patches merged into it.
    `Tokens.vit_keys` are the keys of the first of `roles`.
    """

    roles: tuple[str, ...] = ("last",)  # layers to read: "last", "middle", "after" the last if the tower has more
    heads: Literal["apart", "joined"] = "apart"  # "joined" reads one head, as wide as all of them
    queries: Literal["cls", "all"] = "cls"  # who attends; without a CLS token only "all" exists
    keys: Literal["patches", "tokens"] = "patches"  # "tokens" averages the keys of the patches merged into a token
    cls_key: bool = True  # False leaves the key of CLS out of the softmax, so that a head spreads 1 over the patches
    mean_query_from: int | None = None  # from this many patches on, without CLS, the mean query is used
    numbering: Literal["official", "paper"] = "official"  # whose layer "middle" is
    in_model_dtype: bool = False  # with bfloat16 or float16 q and k, round to it after each operation


# The attention in the authors' code, and in the comparison of arXiv 2602.13315.
OFFICIAL = AttentionSpec()
PAPER = AttentionSpec(cls_key=False, mean_query_from=6144, numbering="paper", in_model_dtype=True)


@dataclass(frozen=True)
class Cut:
    """One cut of a schedule: after decoder layer `layer`, `k` visual tokens stay; layer -1 is the input of the LLM."""

    layer: int
    k: int


@dataclass(frozen=True, eq=False)
class LayerState:
    """The state of one decoder layer for all S text and visual tokens that it sees.

    Rotary positions are applied to q and k if `Method.rotated`; the layer is the one that `Method.reads` names.
    """

    q: Tensor  # [H, S, d]
    k: Tensor  # [KV, S, d]
    hidden: Tensor  # [S, D] as `Method.hidden_state` names it
    visual_idx: Tensor  # [N] positions of the visual tokens in the sequence
    rotated_ones: Tensor | None = None  # [S, d] rotary positions of the layer, applied to a vector of ones


@dataclass(frozen=True, eq=False)
class Tokens:
    """The visual tokens of one sample; every signal may be None unless the method needs it.

    At the second and later cuts of a schedule, N counts the tokens that are left; `origin` says which they are.
    """

    features: Tensor  # [N, D] as they would enter the LLM
    grids: Sequence[Grid]  # of each image or video, in sequence order; of all tokens, also at a later cut
    tiles: Tensor | None = None  # int64 crop of each token of `grids`; None: each image and time step is one crop
    importance: Tensor | None = None  # [N] raw logits of a learned scorer
    vit_attention: Mapping[str, Tensor] | None = None  # {role: [N]} for the roles of `Method.attention_spec`
    vit_keys: Tensor | None = None  # [N, d_k] mean over heads of the keys of a layer, by default "last"
    vit_features: Tensor | None = None  # [N, C] states that leave the layer "last", before norm and projector
    has_cls: bool = True  # False if the vision tower has no CLS token, so that `vit_attention` is of all patches
    llm: LayerState | None = None
    text: Tensor | None = None  # [T, D] embeddings of the question
    text_after: Tensor | None = None  # [T, D] embeddings of all rows behind the last visual token
    cut: int = 0  # which cut of the schedule this is
    at_input: bool = False  # True at a cut before layer 0, where no decoder layer can be read
    origin: Tensor | None = None  # [N] int64 indices among the tokens of `grids`; None: all of them
    memory: Any = None  # `Selection.memory` of the cut before, None at the first


@dataclass(frozen=True, eq=False)
class DeclaredTokens(Tokens):
    """A sample as a method sees it: while it selects, reading a signal outside its `needs` is an error."""

    @classmethod
    def of(cls, tokens: Tokens, needs: Iterable[Signal]) -> DeclaredTokens:
        """Return the sample with the signals in `needs` alone."""
        signals = {signal.value: getattr(tokens, signal.value) for signal in needs}
        others = {name: getattr(tokens, name) for name in ("tiles", "has_cls", "cut", "at_input", "origin", "memory")}
        return cls(tokens.features, tokens.grids, **signals, **others)

    def __getattribute__(self, name: str) -> Any:
        """Return an attribute; SelectionError for a signal that is absent while a method selects."""
        value = super().__getattribute__(name)
        if name == "__dataclass_fields__":  # which dataclasses.replace() reads one by one
            return {key: field for key, field in value.items() if vars(self)[key] is not None}
        if value is None and name in _SIGNALS and selecting.current() is not None:
            if name == Signal.LLM and super().__getattribute__("at_input"):
                raise selecting.error("it reads tokens.llm before the first layer: look at tokens.at_input first")
            remedy = f"add Signal.{Signal(name).name} to needs"
            raise selecting.error(f"it reads tokens.{name}, which it does not declare: {remedy}")
        return value


class Mix(NamedTuple):
    """A linear merge: row r of `kept` becomes the sum over its entries of weight x row `source` of the N tokens.

    A row without an entry stays as it is. Sums are taken in float32.
    """

    row: Tensor  # [E] int64 rows of `kept`
    source: Tensor  # [E] int64 tokens
    weight: Tensor  # [E] floating point


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept tokens, and what becomes of the others.

    Methods that merge say so in `mix`, or in `owner`, where every token is averaged into one kept row. A merged token
    stands at the place of its row of `kept`.
    """

    kept: Tensor  # [K] int64, ascending, distinct
    order: Tensor | None = None  # [K] the same indices in the order they were picked
    owner: Tensor | None = None  # [N] int64 row of `kept`
    mix: Mix | None = None
    memory: Any = None  # what `Tokens.memory` shall be at the next cut of the schedule

    @classmethod
    def of(cls, order: Tensor) -> Selection:
        """Build the selection of indices `order` [K], picked in that order."""
        if not isinstance(order, Tensor):
            kind, remedy = type(order).__name__, "torch.tensor(indices, device=tokens.features.device)"
            raise selecting.error(f"Selection.of expects a tensor [K] of int64 indices, not a {kind}: pass {remedy}")
        return cls(kept=order.sort().values, order=order)

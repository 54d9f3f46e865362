"""Families that mark visual tokens by placeholder ids, and whose images may be encoded ahead of a pass."""

from __future__ import annotations

import inspect
import weakref
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from harness.models.adapter import Adapter
from harness.models.calls import Call
from harness.models.compat import ENCODES_AHEAD
from harness.models.hooks import Handles
from harness.models.layout import Layout, cached_length
from harness.models.vision_tower import VisionSignals, dealt
from methods.tokens import Grid, num_tokens

CODES = {"image": 1, "video": 2}  # as in `Layout.kinds`
NO_IDS = (
    "pruning finds visual tokens by their ids: pass input_ids instead of, or with, inputs_embeds; "
    "for text alone pass mm_token_type_ids of zeros"
)

MIXED_COPIES = (
    "beams and several answers need the images of a prompt in its own order, before transformers 5.18 they get others: "
    "install a newer version, or give each prompt one image of one tile"
)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A pass through the vision tower."""

    output: weakref.ref[Any]
    grids: list[Grid]  # in tokens, of each image or video
    signals: VisionSignals | None


class PlaceholderAdapter(Adapter):
    """A family that puts visual tokens in the place of the ids `image_token_id` and `video_token_id`."""

    encode_here: ClassVar[str]  # what to do about images that were encoded elsewhere
    steps_apart: ClassVar[bool] = False  # text stands between the steps of a video

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # generate() encodes first and then passes the encoder's output on without its grids.
        self._encoded: list[Encoded] = []
        self._expanded = 1  # rows that generate() is about to make of each prompt

    @abstractmethod
    def encoded_grids(self, call: Call) -> list[Grid]:
        """Return (t, h, w) in tokens of what a pass through "vision" encodes; `call` are its arguments."""

    @abstractmethod
    def given_grids(self, kind: str, call: Call) -> list[Grid] | None:
        """Return (t, h, w) in tokens of every image or video, if the arguments of "multimodal" say so."""

    @property
    def hidden_size(self) -> int:
        """Width D of a visual token at the entry of the language model."""
        return int(self._config.get_text_config().hidden_size)

    @property
    def placeholders(self) -> list[int]:
        """Token ids that stand for visual tokens in a prompt."""
        return list(self._placeholders().values())

    def _placeholders(self) -> dict[str, int]:
        ids = {kind: getattr(self._config, f"{kind}_token_id", None) for kind in CODES}
        return {kind: int(token) for kind, token in ids.items() if token is not None}

    @property
    def _config(self) -> Any:
        return self.model.config

    def has_visuals(self, call: Call) -> bool:
        """True if images or videos come along, or placeholders in a prompt (a decoded placeholder is just a token)."""
        if self._pixels(call) or any(output is not None for output in call.get("encoded", {}).values()):
            return True
        ids = call.get("ids")
        if cached_length(call.get("cache")):
            return False
        if ids is None:
            types = call.get("kinds")
            if types is None or bool(types.any()):
                raise ValueError(NO_IDS)
            return False
        return bool(self._kinds(ids).any())

    def saw_vision(self, call: Call, output: Any, signals: VisionSignals | None) -> None:
        """Remember the grids of what the vision tower just encoded, and what was read of it."""
        # A pass that encodes images and then videos may have dropped the first output already.
        self._encoded = [one for one in self._encoded[:-1] if one.output() is not None] + self._encoded[-1:]
        self._encoded.append(Encoded(weakref.ref(output), self.encoded_grids(call), signals))

    def vision_signals(self, call: Call, layout: Layout) -> list[VisionSignals]:
        """Return per prompt what was read, in this pass or when generate() encoded."""
        kinds = self._pixels(call)  # encoded in this pass, in this order
        known = dict(zip(kinds, self._encoded[-len(kinds) :], strict=True)) if kinds else {}
        for kind, output in call.get("encoded", {}).items():
            if output is not None and kind not in known:
                known[kind] = self._known(kind, output)
        signals = {CODES[kind]: one.signals for kind, one in known.items() if one.signals}
        return dealt(layout.kinds.repeat_interleave(layout.encoded, dim=0), signals)[:: layout.encoded]

    def hook_generation(self, handles: Handles) -> None:
        """Before transformers 5.18, generate() copies pixels for beams: note how many copies to expect."""
        if not ENCODES_AHEAD:
            handles.instead(self.model, self._expand, "_expand_inputs_for_generation")

    def _expand(self, method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._expanded = inspect.signature(method).bind(*args, **kwargs).arguments.get("expand_size", 1)
        return method(*args, **kwargs)

    def layout(self, call: Call) -> Layout:
        """Find the placeholders of images and videos and lay the grids over them, in order of appearance."""
        ids = call.get("ids")
        if ids is None:
            raise ValueError(NO_IDS)
        kinds = self._kinds(ids)
        grids = {kind: self._grids(kind, call) for kind in CODES}
        copies, encoded = _copies(kinds, grids), 1
        if copies == 1 and self._expanded > 1 and torch.equal(ids, _repeated(ids, self._expanded)):
            copies = encoded = self._expanded
        self._expanded = 1
        per_prompt = _per_prompt(kinds[:: copies // encoded].cpu(), grids, self.steps_apart)[::encoded]
        obstacle = _obstacle(call)
        if encoded > 1 and self._mixes_copies() and any(len(grids) > 1 for grids in per_prompt):
            obstacle = MIXED_COPIES
        return Layout(kinds > 0, per_prompt, kinds[::copies], copies, encoded, obstacle)

    def _mixes_copies(self) -> bool:
        """Tell whether generate() copies the images of a prompt as a a b b, where a copy of it needs a b."""
        name = "_expand_inputs_for_generation"
        return getattr(type(self.model), name) is getattr(GenerationMixin, name)

    def _pixels(self, call: Call) -> list[str]:
        """Return the kinds of pixels that a pass brings, in the order in which the model encodes them."""
        shown = [kind for kind in CODES if kind in self.media]
        return [kind for kind in shown if call.get(kind) is not None]

    def _kinds(self, ids: Tensor) -> Tensor:
        """Return [B, S]: 1 where a placeholder of an image stands, 2 for a video, else 0."""
        kinds = torch.zeros_like(ids, dtype=torch.int8)
        for kind, token in self._placeholders().items():
            kinds += (ids == token).to(torch.int8) * CODES[kind]
        return kinds

    def _grids(self, kind: str, call: Call) -> list[Grid]:
        given = self.given_grids(kind, call)
        encoded = call.get("encoded", {}).get(kind)
        if given is None and encoded is not None:
            given = self._known(kind, encoded).grids
        return given or []

    def _known(self, kind: str, encoded: Any) -> Encoded:
        """Return what was noted when `encoded` left the vision tower."""
        for one in self._encoded:
            if _same(one.output(), encoded):
                return one
        raise ValueError(
            f"{kind}s were encoded outside the prune block, or prefill_chunk_size splits them: "
            f"{self.encode_here.format(kind=kind)}, and pass the prompt in one chunk"
        )


def _same(known: Any, encoded: Any) -> bool:
    """True for one output of the vision tower and what a chunked prefill makes of it if one chunk has it all."""
    if known is None or known is encoded:
        return known is not None
    known, encoded = (torch.cat(list(output.pooler_output)) for output in (known, encoded))
    return torch.equal(known.to(encoded.device), encoded)  # on its way to another part of the model it may have moved


def _obstacle(call: Call) -> str | None:
    if cached_length(call.get("cache")):
        remedy = "pass the whole conversation without its cache and without prefill_chunk_size"
        return f"an image after a cached prefix cannot be pruned: {remedy}"
    if call.get("encoded") and call.get("use_cache") is False:
        return "generate(use_cache=False) would prune anew for every token: leave the cache on"
    return None


def _copies(kinds: Tensor, grids: Mapping[str, list[Grid]]) -> int:
    """Return how many consecutive rows of `kinds` [B, S] were made of each prompt for beams or several answers."""
    found = set()
    for kind, code in CODES.items():
        tokens, covered = int((kinds == code).sum()), num_tokens(grids[kind])
        if tokens == covered == 0:
            continue
        if not covered or not tokens or tokens % covered:
            raise ValueError(f"there are {tokens} {kind} tokens, but the {kind} grids {grids[kind]} cover {covered}")
        found.add(tokens // covered)
    copies = found.pop() if len(found) == 1 else 0
    if not copies or len(kinds) % copies or not torch.equal(kinds, _repeated(kinds, copies)):
        raise ValueError("the images and videos do not fit the prompts: their tokens are not covered once by the grids")
    return copies


def _repeated(rows: Tensor, copies: int) -> Tensor:
    """Repeat every row [S] that is not a copy of the one before."""
    return rows[::copies].repeat_interleave(copies, dim=0)


def _per_prompt(kinds: Tensor, grids: Mapping[str, list[Grid]], steps_apart: bool) -> list[list[Grid]]:
    """Deal the grids out to the prompts `kinds` [B, S] in the order in which their placeholders appear."""
    queues = {code: iter(grids[kind]) for kind, code in CODES.items()}
    names = {code: kind for kind, code in CODES.items()}
    dealt = []
    for row in kinds:
        where = row.nonzero().squeeze(1)
        codes, mine, start = row[where], [], 0
        while start < len(where):
            code = int(codes[start])
            grid = next(queues[code], None)
            end = start + (grid[0] * grid[1] * grid[2] if grid else 1)
            if grid is None or end > len(where) or not _in_runs(where[start:end], grid[0] if steps_apart else 1):
                raise ValueError(f"{names[code]} tokens do not form a block of their grid (t, h, w) = {grid}")
            if not bool((codes[start:end] == code).all()):
                raise ValueError(f"{names[code]} tokens of grid {grid} are mixed with those of another kind")
            mine.append(grid)
            start = end
        dealt.append(mine)
    return dealt


def _in_runs(rows: Tensor, count: int) -> bool:
    """Tell whether `rows`, ascending, are `count` equally long runs without gaps."""
    runs = rows.view(count, -1)
    return bool((runs[:, -1] - runs[:, 0] == runs.shape[1] - 1).all())

"""Qwen2.5-VL: visual tokens of 28 x 28 pixels, M-RoPE position triples, images and videos in one sequence."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from harness.models.base import Adapter, DecoderParts
from harness.models.cache import cached_length
from harness.models.prefill import Grid, Layout
from harness.models.qwen_text import question
from harness.models.qwen_vision import Qwen25Tower
from harness.models.vision import VisionSignals, dealt
from methods.base import Signal

KINDS = {"image": 1, "video": 2}
NO_IDS = (
    "pruning finds visual tokens by their ids: pass input_ids instead of, or with, inputs_embeds; "
    "for text alone pass mm_token_type_ids of zeros"
)
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True, eq=False)
class Encoded:
    """A pass through the vision tower."""

    output: weakref.ref[Any]
    grids: Tensor  # [images or videos, 3] in patches
    signals: VisionSignals | None


class Qwen25VL(Adapter):
    """`Qwen2_5_VLForConditionalGeneration`, cut in front of decoder layer 0 or between two later ones."""

    family = "qwen2_5_vl"
    supplies: ClassVar[frozenset[Signal]] = frozenset(Signal)
    targets: ClassVar[Mapping[str, str]] = {
        "multimodal": "model",
        "vision": "model.visual",
        "decoder": "model.language_model",
        "first_layer": "model.language_model.layers.0",
    }
    decoder: ClassVar[DecoderParts] = DecoderParts(
        path="model.language_model", layers="model.language_model.layers", norm="model.language_model.norm"
    )
    rotate = staticmethod(apply_rotary_pos_emb)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # generate() encodes first and then passes the encoder's output on without its grids.
        self._encoded: list[Encoded] = []

    @property
    def hidden_size(self) -> int:
        """Width D of a visual token at the entry of the language model."""
        return int(self._config.get_text_config().hidden_size)

    @property
    def tower(self) -> Qwen25Tower:
        """How the vision tower is read."""
        return Qwen25Tower(self.model)

    @property
    def _config(self) -> Any:
        return self.model.config

    def has_visuals(self, call: Mapping[str, Any]) -> bool:
        """True if images or videos come along, or placeholders in a prompt (a decoded placeholder is just a token)."""
        encoded = call.get("mm_encoder_outputs") or {}
        if any(call.get(PIXELS[kind]) is not None or encoded.get(kind) is not None for kind in KINDS):
            return True
        ids = call.get("input_ids")
        if cached_length(call.get("past_key_values")):
            return False
        if ids is None:
            types = call.get("mm_token_type_ids")
            if types is None or bool(types.any()):
                raise ValueError(NO_IDS)
            return False
        return bool(self._kinds(ids).any())

    def saw_vision(self, call: Mapping[str, Any], output: Any, signals: VisionSignals | None) -> None:
        """Remember the grids of what the vision tower just encoded, and what was read of it."""
        self._encoded = [one for one in self._encoded if one.output() is not None]
        self._encoded.append(Encoded(weakref.ref(output), call["grid_thw"], signals))

    def vision_signals(self, call: Mapping[str, Any], layout: Layout) -> list[VisionSignals]:
        """Return per prompt what was read, in this pass or when generate() encoded."""
        given = [kind for kind in KINDS if call.get(PIXELS[kind]) is not None]  # encoded in this pass, in this order
        known = dict(zip(given, self._encoded[-len(given) :], strict=True)) if given else {}
        for kind, output in (call.get("mm_encoder_outputs") or {}).items():
            if output is not None and kind not in known:
                known[kind] = self._known(kind, output)
        return dealt(layout.kinds, {KINDS[kind]: one.signals for kind, one in known.items() if one.signals})

    def question(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Return the rows [T] of the words in the turn of the last image or video."""
        return question(ids, kinds, self._config, self.model.generation_config)

    def _known(self, kind: str, encoded: Any) -> Encoded:
        """Return what was noted when `encoded` left the vision tower."""
        for one in self._encoded:
            if _same(one.output(), encoded):
                return one
        raise ValueError(
            f"{kind}s were encoded outside the prune block, or prefill_chunk_size splits them: "
            f"pass {kind}_grid_thw along with them, and the prompt in one chunk"
        )

    def layout(self, call: Mapping[str, Any]) -> Layout:
        """Find the placeholders of images and videos and lay the grids over them, in order of appearance."""
        ids = call.get("input_ids")
        if ids is None:
            raise ValueError(NO_IDS)
        kinds = self._kinds(ids)
        grids = {kind: self._grids(kind, call) for kind in KINDS}
        copies = _copies(kinds, grids)
        per_prompt = _per_prompt(kinds[::copies].cpu(), grids)
        return Layout(kinds > 0, per_prompt, kinds[::copies], copies=copies, obstacle=_obstacle(call))

    def positions(self, call: Mapping[str, Any]) -> Tensor:
        """Return the M-RoPE triples [3, B, S] of the full sequence."""
        states, ids = call["inputs_embeds"], call.get("position_ids")
        batch, length = states.shape[:2]
        if ids is None:  # what the model itself falls back to
            ids = torch.arange(length, device=states.device).view(1, 1, -1)
        elif ids.ndim == 2:
            ids = ids.unsqueeze(0)
        elif len(ids) == 4:
            # generate() puts 1-D text positions in front, which only serve to find packed sequences by their jumps.
            # Without dropped rows they would jump, so they are left out once it is sure that nothing is packed.
            if call.get("attention_mask") is None and bool((ids[0].diff(dim=-1) != 1).any()):
                raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
            ids = ids[1:]
        return ids.expand(3, batch, length)

    def position_ids(self, positions: Tensor) -> Tensor:
        """Return triples [3, B, L]; those of text are three times the same."""
        return positions.expand(3, -1, -1)

    def _kinds(self, ids: Tensor) -> Tensor:
        """Return [B, S]: 1 where a placeholder of an image stands, 2 for a video, else 0."""
        image, video = ids == self._config.image_token_id, ids == self._config.video_token_id
        return image.to(torch.int8) * KINDS["image"] + video.to(torch.int8) * KINDS["video"]

    def _grids(self, kind: str, call: Mapping[str, Any]) -> list[Grid]:
        """Return (t, h, w) in merged tokens of every image (or video) of the batch."""
        given = call.get(f"{kind}_grid_thw")
        encoded = (call.get("mm_encoder_outputs") or {}).get(kind)
        if given is None and encoded is not None:
            given = self._known(kind, encoded).grids
        if given is None:
            return []
        merge = int(self._config.vision_config.spatial_merge_size)
        return [(t, h // merge, w // merge) for t, h, w in given.tolist()]


def _same(known: Any, encoded: Any) -> bool:
    """True for one output of the vision tower and what a chunked prefill makes of it if one chunk has it all."""
    if known is None or known is encoded:
        return known is not None
    known, encoded = (torch.cat(list(output.pooler_output)) for output in (known, encoded))
    return torch.equal(known, encoded)


def _obstacle(call: Mapping[str, Any]) -> str | None:
    if cached_length(call.get("past_key_values")):
        remedy = "pass the whole conversation without past_key_values and without prefill_chunk_size"
        return f"an image after a cached prefix cannot be pruned: {remedy}"
    if call.get("mm_encoder_outputs") and call.get("use_cache") is False:
        return "generate(use_cache=False) would prune anew for every token: leave the cache on"
    return None


def _copies(kinds: Tensor, grids: Mapping[str, list[Grid]]) -> int:
    """Return how many consecutive rows of `kinds` [B, S] were made of each prompt for beams or several answers."""
    found = set()
    for kind, code in KINDS.items():
        tokens, covered = int((kinds == code).sum()), sum(t * h * w for t, h, w in grids[kind])
        if tokens == covered == 0:
            continue
        if not covered or not tokens or tokens % covered:
            raise ValueError(f"there are {tokens} {kind} tokens, but the {kind} grids {grids[kind]} cover {covered}")
        found.add(tokens // covered)
    copies = found.pop() if len(found) == 1 else 0
    if not copies or len(kinds) % copies or not torch.equal(kinds, kinds[::copies].repeat_interleave(copies, dim=0)):
        raise ValueError("the images and videos do not fit the prompts: their tokens are not covered once by the grids")
    return copies


def _per_prompt(kinds: Tensor, grids: Mapping[str, list[Grid]]) -> list[list[Grid]]:
    """Deal the grids out to the prompts `kinds` [B, S] in the order in which their placeholders appear."""
    queues = {code: iter(grids[kind]) for kind, code in KINDS.items()}
    names = {code: kind for kind, code in KINDS.items()}
    dealt = []
    for row in kinds:
        where = row.nonzero().squeeze(1)
        codes, mine, start = row[where], [], 0
        while start < len(where):
            code = int(codes[start])
            grid = next(queues[code], None)
            end = start + (grid[0] * grid[1] * grid[2] if grid else 1)
            block = where[start:end]
            if grid is None or end > len(where) or int(block[-1] - block[0]) != end - start - 1:
                raise ValueError(f"{names[code]} tokens do not form a block of their grid (t, h, w) = {grid}")
            if not bool((codes[start:end] == code).all()):
                raise ValueError(f"{names[code]} tokens of grid {grid} are mixed with those of another kind")
            mine.append(grid)
            start = end
        dealt.append(mine)
    return dealt

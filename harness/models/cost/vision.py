"""FLOPs of vision towers and projectors, and of recomputing the attention that a method reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from methods.base import Method, Signal
from methods.tokens import Grid, num_tokens


@dataclass(frozen=True)
class Block:
    """Sizes of one transformer block of a vision tower."""

    hidden: int
    mlp: int
    matrices: int  # in the MLP: 3 with a gate, else 2

    def count(self, rows: int, segments: Sequence[int]) -> int:
        """Count a block on `rows` rows; attention stays within segments of the lengths `segments`."""
        linear = 2 * rows * self.hidden * (4 * self.hidden + self.matrices * self.mlp)
        return linear + 4 * self.hidden * sum(length**2 for length in segments)


class VisionShape(ABC):
    """Sizes of a family's vision tower and projector; grids (t, h, w) of images and videos are in tokens."""

    patches: int  # patches that are merged into one token
    has_cls: bool
    block: Block

    @abstractmethod
    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the tower with its patch embedding, without the projector."""

    @abstractmethod
    def projector(self, grids: Sequence[Grid]) -> int:
        """Count the projector."""

    def signals(self, grids: Sequence[Grid], method: Method) -> int:
        """Count the attention that is recomputed from q and k for a method that reads it."""
        spec = method.attention_spec
        if Signal.VIT_ATTENTION not in method.needs:
            return 0
        total = 0
        for rows in self._segments(grids):
            keys = rows + (self.has_cls and spec.cls_key)
            mean_query = not self.has_cls and spec.mean_query_from is not None and rows >= spec.mean_query_from
            single_query = mean_query or (self.has_cls and spec.queries == "cls")
            queries = 1 if single_query else rows + self.has_cls
            # Scores of all queries, and their sum over queries.
            total += 2 * queries * keys * self.block.hidden + 2 * queries * keys * self.heads
        return len(spec.roles) * total

    heads: int

    def _segments(self, grids: Sequence[Grid]) -> list[int]:
        """Return the number of patches of every image and every time step of a video."""
        return [self.patches * h * w for t, h, w in grids for _ in range(t)]


@dataclass(frozen=True)
class QwenVision(VisionShape):
    """Qwen2.5-VL: windows of `side` x `side` tokens in all but `full` layers; four patches become a token."""

    block: Block
    depth: int
    full: int
    side: int
    patches: int
    values: int  # per patch
    out: int
    heads: int
    has_cls = False

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the patch embedding, windowed layers and full ones."""
        segments, windows = self._segments(grids), [n for t, h, w in grids for n in t * self._windows(h, w)]
        rows = sum(segments)
        windowed = (self.depth - self.full) * self.block.count(rows, windows)
        return 2 * rows * self.values * self.block.hidden + windowed + self.full * self.block.count(rows, segments)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices, applied to four patches at once."""
        width = self.patches * self.block.hidden
        return 2 * num_tokens(grids) * width * (width + self.out)

    def _windows(self, h: int, w: int) -> list[int]:
        """Return the number of patches of every window; windows at the edges are smaller."""
        heights, widths = _window_sides(h, self.side), _window_sides(w, self.side)
        return [self.patches * rows * columns for rows in heights for columns in widths]


@dataclass(frozen=True)
class RiceVision(VisionShape):
    """LLaVA-OneVision-1.5: every image and frame has a CLS row and full attention; four patches become a token."""

    block: Block
    depth: int
    patches: int
    values: int
    out: int
    heads: int
    has_cls = True

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the patch embedding and all layers."""
        segments = [rows + 1 for rows in self._segments(grids)]
        patches = sum(segments) - len(segments)
        return 2 * patches * self.values * self.block.hidden + self.depth * self.block.count(sum(segments), segments)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices, applied to four patches at once."""
        width = self.patches * self.block.hidden
        return 2 * num_tokens(grids) * width * (width + self.out)


@dataclass(frozen=True)
class ClipVision(VisionShape):
    """LLaVA-1.5: every image has a CLS row and full attention; a patch is a token, all layers run."""

    block: Block
    depth: int
    values: int
    out: int
    heads: int
    patches = 1
    has_cls = True

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the patch embedding and all layers, also the one after the features."""
        segments = [rows + 1 for rows in self._segments(grids)]
        patches = sum(segments) - len(segments)
        return 2 * patches * self.values * self.block.hidden + self.depth * self.block.count(sum(segments), segments)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices, applied to every patch."""
        return 2 * num_tokens(grids) * self.out * (self.block.hidden + self.out)


def vision_shape(config: Any) -> VisionShape:
    """Read the sizes of the tower from a model's configuration; ValueError for a family without a formula."""
    vision, family = config.vision_config, config.model_type
    out = int(config.get_text_config().hidden_size)
    if family == "llava":
        block = Block(int(vision.hidden_size), int(vision.intermediate_size), 2)
        values = 3 * int(vision.patch_size) ** 2
        return ClipVision(block, int(vision.num_hidden_layers), values, out, int(vision.num_attention_heads))
    if family not in ("qwen2_5_vl", "llavaonevision1_5"):
        raise ValueError(f"operations are counted for qwen2_5_vl, llava and llavaonevision1_5, not for {family}")
    merge = int(vision.spatial_merge_size)
    values = 3 * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    sizes = int(vision.hidden_size), int(vision.intermediate_size)
    if family == "llavaonevision1_5":
        return RiceVision(Block(*sizes, 2), int(vision.depth), merge**2, values, out, int(vision.num_heads))
    side = int(vision.window_size) // int(vision.patch_size) // merge
    full = len(vision.fullatt_block_indexes)
    return QwenVision(Block(*sizes, 3), int(vision.depth), full, side, merge**2, values, out, int(vision.num_heads))


def _window_sides(length: int, side: int) -> list[int]:
    return [side] * (length // side) + [length % side] * (length % side > 0)

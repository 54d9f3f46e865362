"""Vision towers: patches, windowed or full attention, MLP, and the projector; reading their attention beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from methods.base import Method, Signal
from methods.tokens import Grid, num_tokens


@dataclass(frozen=True)
class Block:
    """Sizes of one transformer block of a tower."""

    hidden: int
    mlp: int
    matrices: int  # of the MLP: 3 with a gate, else 2

    def count(self, rows: int, segments: Sequence[int]) -> int:
        """Count a block on `rows` rows that attend within `segments`, rows of each."""
        linear = 2 * rows * self.hidden * (4 * self.hidden + self.matrices * self.mlp)
        return linear + 4 * self.hidden * sum(length**2 for length in segments)


class VisionShape(ABC):
    """What a family's tower and projector cost for images and videos of given grids (t, h, w), in tokens."""

    patches: int  # merged into one token
    has_cls: bool
    block: Block

    @abstractmethod
    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the tower, patches included, projector not."""

    @abstractmethod
    def projector(self, grids: Sequence[Grid]) -> int:
        """Count what makes visual tokens of what leaves the tower."""

    def signals(self, grids: Sequence[Grid], method: Method) -> int:
        """Count the scores that are recomputed from q and k for a method that reads the tower's attention."""
        wanted = method.attention_spec
        if Signal.VIT_ATTENTION not in method.needs:
            return 0
        total = 0
        for rows in self._units(grids):
            keys = rows + (self.has_cls and wanted.cls_key)
            mean = not self.has_cls and wanted.mean_query_from is not None and rows >= wanted.mean_query_from
            one = mean or (self.has_cls and wanted.queries == "cls")
            queries = 1 if one else rows + self.has_cls
            # Scores, and the sum over queries of what each spreads over the keys.
            total += 2 * queries * keys * self.block.hidden + 2 * queries * keys * self.heads
        return len(wanted.roles) * total

    heads: int

    def _units(self, grids: Sequence[Grid]) -> list[int]:
        """Patches of every image and every step of a video."""
        return [self.patches * h * w for t, h, w in grids for _ in range(t)]


@dataclass(frozen=True)
class QwenVision(VisionShape):
    """Qwen2.5-VL: windows of `side` x `side` tokens except in `full` layers; four patches become a token."""

    block: Block
    depth: int
    full: int
    side: int
    patches: int
    values: int  # numbers in a patch
    out: int
    heads: int
    has_cls = False

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count patches, windowed layers and full ones."""
        units, windows = self._units(grids), [n for t, h, w in grids for n in t * self._windows(h, w)]
        rows = sum(units)
        windowed = (self.depth - self.full) * self.block.count(rows, windows)
        return 2 * rows * self.values * self.block.hidden + windowed + self.full * self.block.count(rows, units)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices on four patches at once."""
        width = self.patches * self.block.hidden
        return 2 * num_tokens(grids) * width * (width + self.out)

    def _windows(self, h: int, w: int) -> list[int]:
        """Patches of every window; those at the edges are smaller."""
        return [self.patches * rows * columns for rows in _pieces(h, self.side) for columns in _pieces(w, self.side)]


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
        """Count patches and layers."""
        units = [rows + 1 for rows in self._units(grids)]
        patches = sum(units) - len(units)
        return 2 * patches * self.values * self.block.hidden + self.depth * self.block.count(sum(units), units)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices on four patches at once."""
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
        """Count patches and layers, the one behind the features included."""
        units = [rows + 1 for rows in self._units(grids)]
        patches = sum(units) - len(units)
        return 2 * patches * self.values * self.block.hidden + self.depth * self.block.count(sum(units), units)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices on every patch."""
        return 2 * num_tokens(grids) * self.out * (self.block.hidden + self.out)


def vision_shape(config: Any) -> VisionShape:
    """Read the tower's sizes from the configuration of a model; ValueError for a family that is not counted."""
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


def _pieces(length: int, side: int) -> list[int]:
    return [side] * (length // side) + [length % side] * (length % side > 0)

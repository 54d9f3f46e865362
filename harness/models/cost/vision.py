"""FLOPs of vision towers and projectors, and of recomputing the attention that a method reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from methods.base import Method, Signal
from methods.tokens import Grid, num_tokens

COUNTED = ("qwen2_5_vl", "qwen2_vl", "llava", "llavaonevision1_5")  # families
IN_CROPS = ("llava_next", "llava_onevision")  # also counted, if the number of crops is known

DINOV2 = "dinov2"  # model_type of a tower


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


@dataclass(frozen=True)
class VisionShape:
    """Sizes of a family's vision tower and projector; grids (t, h, w) of images and videos are in tokens.

    Every image and frame is a segment with full attention and, if `has_cls`, a CLS row.
    """

    block: Block
    depth: int
    patches: int  # that are merged into one token
    values: int  # of a patch
    middle: int  # width between the two matrices of the projector
    out: int
    heads: int
    has_cls: bool

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the tower with its patch embedding, without the projector; all layers run, also unread ones."""
        segments = [rows + self.has_cls for rows in self._segments(grids)]
        return self._embedding(grids) + self.depth * self.block.count(sum(segments), segments)

    def projector(self, grids: Sequence[Grid]) -> int:
        """Count two matrices, applied to all patches of a token at once."""
        return 2 * num_tokens(grids) * self.middle * (self.patches * self.block.hidden + self.out)

    def signals(self, grids: Sequence[Grid], method: Method) -> int:
        """Count the attention that is recomputed from q and k for a method that reads it."""
        spec = method.attention_spec
        if Signal.VIT_ATTENTION not in method.needs:
            return 0
        total = 0
        for rows in self._segments(grids):
            keys = rows // (self.patches if spec.keys == "tokens" else 1) + (self.has_cls and spec.cls_key)
            mean_query = not self.has_cls and spec.mean_query_from is not None and rows >= spec.mean_query_from
            single_query = mean_query or (self.has_cls and spec.queries == "cls")
            queries = 1 if single_query else rows + self.has_cls
            total += 2 * queries * keys * self.block.hidden  # scores; their sums over queries are no products
        return len(spec.roles) * total

    def _embedding(self, grids: Sequence[Grid]) -> int:
        return 2 * sum(self._segments(grids)) * self.values * self.block.hidden

    def _segments(self, grids: Sequence[Grid]) -> list[int]:
        """Return the number of patches of every image and every time step of a video."""
        return [self.patches * h * w for t, h, w in grids for _ in range(t)]


@dataclass(frozen=True)
class QwenVision(VisionShape):
    """Qwen2.5-VL: windows of `side` x `side` tokens in all but `full` layers."""

    full: int
    side: int

    def tower(self, grids: Sequence[Grid]) -> int:
        """Count the patch embedding, windowed layers and full ones."""
        segments, windows = self._segments(grids), [n for t, h, w in grids for n in t * self._windows(h, w)]
        rows = sum(segments)
        windowed = (self.depth - self.full) * self.block.count(rows, windows)
        return self._embedding(grids) + windowed + self.full * self.block.count(rows, segments)

    def _windows(self, h: int, w: int) -> list[int]:
        """Return the number of patches of every window; windows at the edges are smaller."""
        heights, widths = _window_sides(h, self.side), _window_sides(w, self.side)
        return [self.patches * rows * columns for rows in heights for columns in widths]


def vision_shape(config: Any) -> VisionShape:
    """Read the sizes of the tower from a model's configuration; ValueError for a family without a formula."""
    vision, family = config.vision_config, config.model_type
    if family not in COUNTED + IN_CROPS:
        raise ValueError(f"operations are counted for {', '.join(COUNTED + IN_CROPS)}, not for {family}")
    out, pixels = int(config.get_text_config().hidden_size), 3 * int(vision.patch_size) ** 2
    if family == "qwen2_vl":  # its `hidden_size` is that of the language model
        width, mlp = int(vision.embed_dim), int(vision.embed_dim * vision.mlp_ratio)
    elif vision.model_type == DINOV2:
        width, mlp = int(vision.hidden_size), int(vision.hidden_size * vision.mlp_ratio)
    else:
        width, mlp = int(vision.hidden_size), int(vision.intermediate_size)
    if family in ("llava", *IN_CROPS):  # a patch is a token
        depth, heads = int(vision.num_hidden_layers), int(vision.num_attention_heads)
        cls, gated = vision.model_type != "siglip_vision_model", getattr(vision, "use_swiglu_ffn", False)
        block = Block(width, (mlp * 2 // 3 + 7) // 8 * 8, 3) if gated else Block(width, mlp, 2)
        return VisionShape(block, depth, 1, pixels, middle=out, out=out, heads=heads, has_cls=cls)
    depth, heads, merge = int(vision.depth), int(vision.num_heads), int(vision.spatial_merge_size)
    patches, values = merge**2, pixels * int(vision.temporal_patch_size)
    shape = {"middle": patches * width, "out": out, "heads": heads}
    if family in ("llavaonevision1_5", "qwen2_vl"):
        has_cls = family == "llavaonevision1_5"
        return VisionShape(Block(width, mlp, 2), depth, patches, values, **shape, has_cls=has_cls)
    full, side = len(vision.fullatt_block_indexes), int(vision.window_size) // int(vision.patch_size) // merge
    return QwenVision(Block(width, mlp, 3), depth, patches, values, **shape, has_cls=False, full=full, side=side)


def tokens_of_side(config: Any) -> int:
    """Return the number of tokens along a side of the square image, or tile, that a family with one size encodes."""
    vision = config.vision_config
    if config.model_type == "llava" and vision.model_type == DINOV2:  # whose positions are interpolated
        return isqrt(int(config.image_seq_length))
    return int(vision.image_size) // int(vision.patch_size)


def _window_sides(length: int, side: int) -> list[int]:
    return [side] * (length // side) + [length % side] * (length % side > 0)

"""Rows of placeholders in a batch of prompts: which image they belong to, and which of them are patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.models.layout import Placeholders
from methods.per_tile import crops_of

CODES = {"image": 1, "video": 2}  # as in `Layout.kinds`


def count_copies(kinds: Tensor, images: Mapping[str, list[Placeholders]]) -> int:
    """Return how many consecutive rows of `kinds` [B, S] are copies of one prompt, for beams or several answers."""
    ratios = set()
    for kind, code in CODES.items():
        tokens, covered = int((kinds == code).sum()), sum(image.rows for image in images[kind])
        if tokens == covered == 0:
            continue
        if not covered or not tokens or tokens % covered:
            grids = [grid for image in images[kind] for grid in image.grids]
            raise ValueError(f"there are {tokens} {kind} tokens, but the {kind} grids {grids} cover {covered}")
        ratios.add(tokens // covered)
    copies = ratios.pop() if len(ratios) == 1 else 0
    if not copies or len(kinds) % copies or not torch.equal(kinds, repeated(kinds, copies)):
        raise ValueError("the images and videos do not fit the prompts: their tokens are not covered once by the grids")
    return copies


def repeated(rows: Tensor, copies: int) -> Tensor:
    """Replace every block of `copies` rows by copies of its first row."""
    return rows[::copies].repeat_interleave(copies, dim=0)


def split_images(
    kinds: Tensor, images: Mapping[str, list[Placeholders]], steps_apart: bool
) -> list[list[Placeholders]]:
    """Return the images of each prompt in `kinds` [B, S], in the order in which their placeholders appear."""
    queues = {code: iter(images[kind]) for kind, code in CODES.items()}
    names = {code: kind for kind, code in CODES.items()}
    per_prompt = []
    for row in kinds:
        places = row.nonzero().squeeze(1)
        codes, of_prompt, start = row[places], [], 0
        while start < len(places):
            code = int(codes[start])
            image = next(queues[code], None)
            end = start + (image.rows if image else 1)
            grid = None if image is None else image.grids[0]
            runs = grid[0] if grid and steps_apart else 1
            if image is None or end > len(places) or not _is_in_runs(places[start:end], runs):
                raise ValueError(f"{names[code]} tokens do not form a block of their grid (t, h, w) = {grid}")
            if not bool((codes[start:end] == code).all()):
                raise ValueError(f"{names[code]} tokens of grid {grid} are mixed with those of another kind")
            of_prompt.append(image)
            start = end
        per_prompt.append(of_prompt)
    return per_prompt


def structure(kinds: Tensor, per_prompt: list[list[Placeholders]]) -> tuple[Tensor, Tensor | None]:
    """Return which rows of `kinds` [P, S] are patches, and `Layout.line_ends` [P, S], or None without newlines."""
    visual = kinds > 0
    line_ends = torch.full(kinds.shape, -1, device=kinds.device)
    for row, images in enumerate(per_prompt):
        places = visual[row].nonzero().squeeze(1)
        for image, part in zip(images, places.split([image.rows for image in images]), strict=True):
            if image.patches is not None:
                visual[row, part] = image.patches.to(visual.device)
            if image.line_ends is not None:
                ends = image.line_ends.to(part.device)
                line_ends[row, part] = torch.where(ends < 0, -1, part[ends])
    return visual, line_ends if bool((line_ends >= 0).any()) else None


def crops(per_prompt: list[list[Placeholders]]) -> list[Tensor] | None:
    """Return the crop [N] of each patch of each prompt, counted through its images; None in families without tiles."""
    if all(image.crops is None for images in per_prompt for image in images):
        return None
    per_patch = []
    for images in per_prompt:
        first, parts = 0, [torch.zeros(0, dtype=torch.int64)]
        for image in images:
            parts.append(first + crops_of(image.grids, image.crops))
            first = int(parts[-1].max()) + 1
        per_patch.append(torch.cat(parts))
    return per_patch


def _is_in_runs(rows: Tensor, count: int) -> bool:
    """Tell whether `rows`, ascending, are `count` runs of equal length without gaps."""
    runs = rows.view(count, -1)
    return bool((runs[:, -1] - runs[:, 0] == runs.shape[1] - 1).all())

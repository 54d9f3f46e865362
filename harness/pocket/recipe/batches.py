"""Training batches: packed images for the vision tower, and several questions after each image for the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.pocket.scenes import Question

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, as the stock image processor normalises
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH, MERGE = 14, 2
WINDOW = 64  # patches of a full 112-px window
IGNORE = -100


def normalised(frames: list[Image.Image]) -> Tensor:
    """Return pixels [T, 3, H, W] of frames of one size, normalised as for CLIP."""
    pixels = torch.from_numpy(np.stack([np.asarray(f, dtype=np.float32) for f in frames])) / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def patchify(frames: list[Image.Image]) -> tuple[Tensor, tuple[int, int, int]]:
    """Return flat patches [t*h*w, 1176] and the grid (t, h, w) in patches, equal to those of the stock processor."""
    pixels = normalised(frames)
    if len(pixels) == 1:
        pixels = pixels.expand(2, -1, -1, -1)
    t, h, w = len(pixels) // 2, pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
    x = pixels.reshape(t, 2, 3, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH)
    return x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, -1), (t, h, w)


def _packed_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend within the segments of a packed sequence [1, H, S, d]: windows in a padded batch, images one by one."""
    cu: Tensor = kwargs["cu_seq_lens_q"]
    lengths = (cu[1:] - cu[:-1]).long()
    longest = int(lengths.max())
    if longest > WINDOW:
        parts = zip(*[x[0].split(lengths.tolist(), dim=1) for x in (q, k, v)], strict=True)
        return torch.cat([_attend(a, b, c, module.scaling) for a, b, c in parts], dim=1).transpose(0, 1)[None], None
    column = torch.arange(longest, device=q.device)
    valid = column[None] < lengths[:, None]  # [n, longest]
    index = (cu[:-1].long()[:, None] + column[None]).clamp(max=q.shape[2] - 1)
    a, b, c = (x[0].transpose(0, 1)[index].transpose(1, 2) for x in (q, k, v))  # [n, H, longest, d]
    out = _attend(a, b, c, module.scaling, None if bool(valid.all()) else valid[:, None, None, :])
    return out.transpose(1, 2)[valid][None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, valid: Tensor | None = None) -> Tensor:
    """Compute plain attention, which for short segments on a CPU is faster than the fused kernel."""
    scores = (q * scale) @ k.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def use_packed_attention(vision: Any) -> None:
    """Attend once per layer instead of once per window; "flash" in the name makes transformers pass `cu_seqlens`."""
    ALL_ATTENTION_FUNCTIONS.register("packed_flash", _packed_attention)
    vision.config._attn_implementation = "packed_flash"


def _grouped_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute masked attention [B, H, L, d] with grouped queries; on a CPU faster than the fused kernel."""
    b, h, length, d = q.shape
    groups = h // k.shape[1]
    scores = (q * kwargs["scaling"]).reshape(b, k.shape[1], groups * length, d) @ k.transpose(-1, -2)
    scores = scores.view(b, k.shape[1], groups, length, length)
    scores = scores.masked_fill(~attention_mask[:, :, None], torch.finfo(scores.dtype).min)
    out = scores.softmax(-1).view(b, k.shape[1], groups * length, length) @ v
    return out.view(b, h, length, d).transpose(1, 2), None


def use_grouped_attention(decoder: Any) -> None:
    """Use an attention for the boolean masks of `pack`, in training only."""
    ALL_ATTENTION_FUNCTIONS.register("packed_plain", _grouped_attention)
    decoder.config._attn_implementation = "packed_plain"


@dataclass
class Encoded:
    """Visual tokens [N, D] of one scene, its merged grid and its questions."""

    features: Tensor
    grid: tuple[int, int, int]
    questions: list[Question]
    interval: int = 1  # M-RoPE temporal step; videos only
    short: bool = (
        False  # whether text begins after the rows and columns of a video, as in newer transformers, or its time
    )
    kept: Tensor | None = None  # indices of the tokens that remain, ascending; None: all


def image_positions(grid: tuple[int, int, int], start: int, interval: int, flat: bool = False) -> Tensor:
    """Return M-RoPE triples [3, N] of an image or video from position `start` on; if `flat`, with equal rows."""
    t, h, w = (torch.arange(n) for n in grid)
    if flat:
        return torch.arange(start, start + len(t) * len(h) * len(w)).expand(3, -1)
    return torch.stack([x.flatten() for x in torch.meshgrid(t * interval, h, w, indexing="ij")]) + start


def pack(
    samples: list[tuple[Encoded, list[Question]]],
    tokenizer: PreTrainedTokenizerFast,
    embed: torch.nn.Embedding,
    weight: Mapping[str, float] | None = None,
    flat: bool = False,
) -> dict[str, Tensor]:
    """Return embeddings, positions, mask, labels and label weights (by task, default 1) of a batch.

    Questions about the same image do not see each other. Positions are M-RoPE triples [3, B, L] or, if `flat`, [B, L].
    """
    weight = weight or {}
    ids = tokenizer.convert_tokens_to_ids
    head = torch.tensor([ids("<|im_start|>"), ids("▁user"), ids("<|vision_start|>")])
    tail = torch.tensor([ids("<|vision_end|>")])
    end, turn = ids("<|im_end|>"), [ids("<|im_end|>"), ids("<|im_start|>"), ids("▁assistant")]
    rows = []
    for sample, questions in samples:
        start = len(head)
        visual = image_positions(sample.grid, start, sample.interval, flat)
        after = start + max(sample.grid[1:]) if sample.short else int(visual.max()) + 1
        if sample.kept is not None:
            visual = visual[:, sample.kept]
        positions = [torch.arange(start).expand(3, -1), visual, torch.full((3, 1), after)]
        tokens, block, labels, weights = [head, torch.full((visual.shape[1],), -1), tail], [], [], []
        n_prefix = start + visual.shape[1] + 1
        for i, question in enumerate(questions):
            prompt = tokenizer(question.text)["input_ids"] + turn
            answer = [*tokenizer(question.answer)["input_ids"], end]
            both = torch.tensor(prompt + answer)
            tokens.append(both)
            positions.append((torch.arange(len(both)) + after + 1).expand(3, -1))
            block.append(torch.full((len(both),), i + 1))
            labels.append(torch.tensor([IGNORE] * len(prompt) + answer))
            weights.append(torch.full((len(both),), weight.get(question.task, 1.0)))
        rows.append(
            {
                "token": torch.cat(tokens),
                "group": torch.cat([torch.zeros(n_prefix, dtype=torch.long), *block]),
                "labels": torch.cat([torch.full((n_prefix,), IGNORE), *labels]),
                "weights": torch.cat([torch.zeros(n_prefix), *weights]),
                "position": torch.cat(positions, dim=1).T,
            }
        )
    device = embed.weight.device
    padding = {"token": 0, "group": -1, "labels": IGNORE, "weights": 0.0, "position": 0}
    token, group, label, label_weight, position = (
        pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value).to(device)
        for name, value in padding.items()
    )
    length, position = token.shape[1], position.permute(2, 0, 1)
    embeds = embed(token.clamp(min=0))
    visual_rows = torch.cat([s.features if s.kept is None else s.features[s.kept] for s, _ in samples]).to(
        device=device, dtype=embeds.dtype
    )
    embeds = embeds.masked_scatter((token == -1)[..., None], visual_rows)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    see = (group[:, None, :] == 0) | (group[:, None, :] == group[:, :, None])
    return {
        "inputs_embeds": embeds,
        "position_ids": position[0] if flat else position,
        "attention_mask": (see & causal)[:, None],
        "labels": label,
        "weights": label_weight,
        "visual": token == -1,
    }

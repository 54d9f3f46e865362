"""The question in a prompt of Vicuna's format ("USER: <image>\\n... ASSISTANT:"), found by token ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.models.question_tokens import named

# What Llama's tokenizer makes of "USER:" and "ASSISTANT:" behind a space, and without one.
USER = ((3148, 1001, 29901), (11889, 29901))
ASSISTANT = ((319, 1799, 9047, 13566, 29901), (22933, 9047, 13566, 29901))
SPACE, BREAK = 29871, 13
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")


def question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words in the turn of the last visual token, before or behind it.

    A turn reaches from "USER:" to "ASSISTANT:", which are known by the ids that Llama's tokenizer gives them; where
    one is missing, from the first or to the last token. So a system prompt counts only if no "USER:" ends it. Left out
    are special tokens, and the line break behind an image. Without a template, or with another tokenizer's ids, all
    words count. An instruction that a benchmark adds to the question is part of it.

    Args:
        ids: tokens [S] of one prompt, with its padding.
        kinds: [S], 0 on what is not visual.
        configs: of the model and of generation, which name special tokens.
    """
    place = torch.arange(len(ids), device=ids.device)
    visual = kinds > 0
    last = place.where(visual, 0).amax()
    begin = max((start + len(mark) for mark in USER for start in _starts(ids, mark) if start < last), default=0)
    end = min((start for mark in ASSISTANT for start in _starts(ids, mark) if start > last), default=len(ids))
    special = torch.isin(ids, ids.new_tensor(named(configs, SPECIAL)))
    words = (place >= begin) & (place < end) & ~special & ~visual
    # "USER: <image>\n": in some versions of the tokenizer a space of its own stands in front of an image, or behind it.
    space = (ids == SPACE) & (visual.roll(-1) | visual.roll(1))
    line_break = (ids == BREAK) & (visual | space).roll(1)
    return (words & ~space & ~line_break).nonzero().squeeze(1)


def _starts(ids: Tensor, mark: tuple[int, ...]) -> list[int]:
    """Return where the sequence `mark` begins in `ids` [S]."""
    if len(ids) < len(mark):
        return []
    found: list[int] = (ids.unfold(0, len(mark), 1) == ids.new_tensor(mark)).all(1).nonzero().squeeze(1).tolist()
    return found

"""The question in a prompt of Vicuna's format ("USER: <image>\\n... ASSISTANT:"), found by token ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.models.qwen_text import named

# What Llama's tokenizer makes of "USER:" and "ASSISTANT:" at the start of a text or behind a space, and of a break.
USER = (3148, 1001, 29901)
ASSISTANT = (319, 1799, 9047, 13566, 29901)
SPACE, BREAK = 29871, 13
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")


def question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words in the turn of the last visual token, before or behind it.

    A turn reaches from "USER:" to "ASSISTANT:", which are known by the ids that Llama's tokenizer gives them; where
    one is missing, from the first or to the last token. So a system prompt counts only if no "USER:" ends it. Left out
    are special tokens and the line break behind an image. Without a template, or with another tokenizer's ids, all
    words count. An instruction that a benchmark adds to the question is part of it.

    Args:
        ids: tokens [S] of one prompt, with its padding.
        kinds: [S], 0 on what is not visual.
        configs: of the model and of generation, which name special tokens.
    """
    place = torch.arange(len(ids), device=ids.device)
    visual = kinds > 0
    last = place.where(visual, 0).amax()
    ends = _starts(ids, USER) + len(USER)
    begin = ends[ends <= last].amax() if bool((ends <= last).any()) else place.new_zeros(())
    stops = _starts(ids, ASSISTANT)
    end = stops[stops > last].amin() if bool((stops > last).any()) else place.new_tensor(len(ids))
    special = torch.isin(ids, ids.new_tensor(named(configs, SPECIAL)))
    words = (place >= begin) & (place < end) & ~special & ~visual
    behind = visual.roll(1) & (place > 0)
    behind |= behind.roll(1) & (ids.roll(1) == SPACE)  # some versions put a space of its own in front of the break
    return (words & ~(behind & torch.isin(ids, ids.new_tensor([SPACE, BREAK])))).nonzero().squeeze(1)


def _starts(ids: Tensor, marks: tuple[int, ...]) -> Tensor:
    """Return where the sequence `marks` begins in `ids` [S]."""
    if len(ids) < len(marks):
        return ids.new_zeros(0)
    return (ids.unfold(0, len(marks), 1) == ids.new_tensor(marks)).all(1).nonzero().squeeze(1)

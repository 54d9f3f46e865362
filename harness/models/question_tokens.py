"""The question in a prompt of Qwen or Vicuna, found by token ids: an adapter has no tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ENDS = ("eos_token_id",)  # <|im_end|>, and <|endoftext|> in some configurations
PADDING = ("bos_token_id", "pad_token_id")
BRACKETS = ("vision_start_token_id", "vision_end_token_id")
VISUAL = ("image_token_id", "video_token_id", *BRACKETS)


def chatml_question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words that stand in the same turn as the last visual token, before or behind it.

    Left out are special tokens, the role at the head of the turn, line breaks between turns, and what stands between
    <|vision_start|> and <|vision_end|>: the times of a video's frames, where a processor writes them. Qwen's tokenizers
    number special tokens behind all others, and <|im_start|> is the one that no configuration names. A break follows
    <|im_end|>, and ends the role, too ("user"); where there is none, as in the pocket model's template, a role is one
    token. Without a template all words count. An instruction that a benchmark adds to the question is part of it.

    Args:
        ids: tokens [S] of one prompt, with its padding.
        kinds: [S], 0 on what is not visual.
        configs: of the model and of generation, which name special tokens.
    """
    end, padding, visual = (torch.isin(ids, ids.new_tensor(named(configs, n))) for n in (ENDS, PADDING, VISUAL))
    place = torch.arange(len(ids), device=ids.device)
    special = ids >= min(named(configs, ENDS + PADDING + VISUAL))
    start = special & ~(end | padding | visual)
    last_of_all = place == len(ids) - 1
    between = ~special & end.roll(1) & (place > 0) & ((special & ~visual).roll(-1) | last_of_all)

    first, second = (torch.isin(ids, ids.new_tensor(named(configs, (name,)))).long() for name in BRACKETS)
    inside = first.cumsum(0) - second.cumsum(0) > 0

    last = place.where(kinds > 0, 0).amax()
    turn = (place > place.where(end & (place < last), -1).amax()) & (
        place < place.where(end & (place > last), len(ids)).amin()
    )
    words = turn & ~special & ~between & ~inside
    opening = int(place.where(turn & start, len(ids)).amin())
    if opening < len(ids) and not bool(words[:opening].any()):
        breaks = turn & (place > opening) & torch.isin(ids, ids[between][:1])
        role = int(place.where(breaks, len(ids)).amin()) if bool(breaks.any()) else opening + 1
        words &= place > role
    return words.nonzero().squeeze(1)


def named(configs: tuple[Any, ...], names: tuple[str, ...]) -> list[int]:
    """Return the ids that the configurations, or their parts for text, have under `names`."""
    found: list[int] = []
    for config in configs:
        for part in (config, getattr(config, "text_config", None)):
            values = [getattr(part, name, None) for name in names]
            for value in values:
                found += value if isinstance(value, list) else [] if value is None else [value]
    return found


# What Llama's tokenizer makes of "USER:" and "ASSISTANT:" behind a space, and without one.
USER = ((3148, 1001, 29901), (11889, 29901))
ASSISTANT = ((319, 1799, 9047, 13566, 29901), (22933, 9047, 13566, 29901))
SPACE, BREAK = 29871, 13
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")


def vicuna_question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
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

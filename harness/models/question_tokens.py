"""Find the question in a prompt of Qwen or Vicuna by token ids, because an adapter has no tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ENDS = ("eos_token_id",)  # <|im_end|>, and <|endoftext|> in some configurations
PADDING = ("bos_token_id", "pad_token_id")
BRACKETS = ("vision_start_token_id", "vision_end_token_id")
LLAMA_SPECIAL = {0, 1, 2}  # <unk>, <s> and </s>
VISUAL = ("image_token_id", "video_token_id", *BRACKETS)


def chatml_question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words in the same turn as the last visual token, before or after it.

    Special tokens, the role at the start of the turn, and line breaks between turns are left out. So is everything
    between <|vision_start|> and <|vision_end|>, where Qwen3-VL's writes the times of a video's frames. Tokenizers
    of Qwen and InternLM2.5 give special tokens the largest ids, but for Llama's first three, and <|im_start|> is the
    one that no configuration names. A line break follows <|im_end|> and the role ("user"). If there are none, as in
    the pocket model's template, a role is one token. Without a template, all words count. An instruction that a
    benchmark adds is part of the question.

    Args:
        ids: tokens [S] of one prompt, with its padding.
        kinds: [S], 0 on what is not visual.
        configs: of the model and of generation, which name special tokens.
    """
    end, padding, visual = (torch.isin(ids, ids.new_tensor(ids_of(configs, n))) for n in (ENDS, PADDING, VISUAL))
    place = torch.arange(len(ids), device=ids.device)
    named = ids_of(configs, ENDS + PADDING + VISUAL)
    special = (ids >= min(set(named) - LLAMA_SPECIAL)) | end | padding | visual
    start = special & ~(end | padding | visual)
    last_of_all = place == len(ids) - 1
    between = ~special & end.roll(1) & (place > 0) & ((special & ~visual).roll(-1) | last_of_all)

    starts, stops = (torch.isin(ids, ids.new_tensor(ids_of(configs, (name,)))).long() for name in BRACKETS)
    inside = starts.cumsum(0) - stops.cumsum(0) > 0

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


def ids_of(configs: tuple[Any, ...], names: tuple[str, ...]) -> list[int]:
    """Return the token ids that the configurations, or their text parts, have under `names`."""
    ids: list[int] = []
    for config in configs:
        for part in (config, getattr(config, "text_config", None)):
            values = [getattr(part, name, None) for name in names]
            for value in values:
                ids += value if isinstance(value, list) else [] if value is None else [value]
    return ids


Marks = tuple[tuple[int, ...], ...]  # ids of a mark, one entry for each way to write it
# Llama's token ids of "USER:" and "ASSISTANT:", after a space and without one.
VICUNA = ((3148, 1001, 29901), (11889, 29901)), ((319, 1799, 9047, 13566, 29901), (22933, 9047, 13566, 29901))
# Mistral's of "[INST]" and "[/INST]".
MISTRAL = ((733, 16289, 28793), (28792, 16289, 28793)), ((733, 28748, 16289, 28793), (28792, 28748, 16289, 28793))
SPACES, BREAK = (29871, 28705), 13  # of Llama's tokenizer and of Mistral's
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "image_token_id")


def vicuna_question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words in the turn of the last visual token, before or after it.

    A turn reaches from "USER:" to "ASSISTANT:", which are found by their ids in Llama's tokenizer. If one is missing,
    the turn reaches from the first token, or to the last. So a system prompt counts only if no "USER:" ends it.
    Special tokens and the line break after an image are left out. Without a template, or with another tokenizer's ids,
    all words count. An instruction that a benchmark adds is part of the question.

    Args:
        ids: tokens [S] of one prompt, with its padding.
        kinds: [S], 0 on what is not visual.
        configs: of the model and of generation, which name special tokens.
    """
    return _between(*VICUNA, ids, kinds, *configs)


def mistral_question(ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    """Return the rows [T] of the words in the turn of the last visual token, from "[INST]" to "[/INST]".

    The arguments and rules are those of `vicuna_question`.
    """
    return _between(*MISTRAL, ids, kinds, *configs)


def _between(opening: Marks, closing: Marks, ids: Tensor, kinds: Tensor, *configs: Any) -> Tensor:
    place = torch.arange(len(ids), device=ids.device)
    visual = kinds > 0
    last = place.where(visual, 0).amax()
    begin = max((start + len(mark) for mark in opening for start in _starts(ids, mark) if start < last), default=0)
    end = min((start for mark in closing for start in _starts(ids, mark) if start > last), default=len(ids))
    special = torch.isin(ids, ids.new_tensor(ids_of(configs, SPECIAL)))
    words = (place >= begin) & (place < end) & ~special & ~visual
    # "USER: <image>\n": some versions of the tokenizer have a separate space before or after an image.
    space = torch.isin(ids, ids.new_tensor(SPACES)) & (visual.roll(-1) | visual.roll(1))
    line_break = (ids == BREAK) & (visual | space).roll(1)
    return (words & ~space & ~line_break).nonzero().squeeze(1)


def _starts(ids: Tensor, mark: tuple[int, ...]) -> list[int]:
    """Return where the sequence `mark` begins in `ids` [S]."""
    if len(ids) < len(mark):
        return []
    starts: list[int] = (ids.unfold(0, len(mark), 1) == ids.new_tensor(mark)).all(1).nonzero().squeeze(1).tolist()
    return starts

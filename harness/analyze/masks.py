"""Draw which tokens of chosen images each method keeps, and what the model then answers.

In the manner of figure 4 of arXiv 2602.13315. The pictures are what the model was shown, from its own input tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from textwrap import fill, shorten
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from PIL import Image

from harness.analyze import settings
from harness.analyze.collect import check_cut, pruners
from harness.analyze.output import leave
from harness.analyze.questions import Prompt, Source
from harness.core.errors import UserError, as_user_error
from harness.models.loading import Loaded, load
from harness.pruning.handle import Kept
from harness.report.images import shown
from harness.results import plots
from harness.results.method_groups import printed

NEW_TOKENS = 16
FAINT = 0.82  # how far a dropped token fades to white


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings of this analysis that are wrong."""
    settings.check(cfg)
    for place in cfg.docs:
        if not str(place).partition("/")[2].isdigit():
            raise UserError(f"docs takes a task and a number, as in docs=[pocket_text/6], got {place}")


CHECKS = (check, settings.check_methods, check_cut)


def masks(cfg: DictConfig) -> None:
    """Ask every method about the same images and draw what it kept."""
    config = settings.about(cfg)
    loaded = load(config.model)
    prompts = chosen(cfg, Source(config, loaded))
    columns = list(answered(cfg, loaded, prompts))
    kept_by = {(column.label, column.keep): column.records for column in columns}
    names = [f"{prompt.task}/{prompt.doc_id}" for prompt in prompts]
    rows = [
        {
            "question": name,
            "keep": column.keep,
            "method": column.label,
            "n": record.n,
            "k": record.k,
            "kept": " ".join(map(str, record.kept)),
            "answer": answer,
        }
        for column in columns
        for name, record, answer in zip(names, column.records, column.answers, strict=True)
    ]
    about = {"analysis": "masks", "model": config.model.name, "questions": names, "overlaps": overlaps(kept_by)}
    leave(cfg, config.model.name, pd.DataFrame(rows), picture(loaded, prompts, columns), about)


@dataclass(frozen=True)
class Column:
    """What a method kept at a budget, and what the model answered; an entry for each question."""

    label: str
    keep: float
    records: Sequence[Kept]
    answers: Sequence[str]


def answered(cfg: DictConfig, loaded: Loaded, prompts: Sequence[Prompt]) -> Iterator[Column]:
    """Let the model answer each question under every method and budget."""
    for point, keep, pruner in pruners(cfg, loaded):
        with as_user_error(ValueError), pruner.attach(loaded.model) as pruning, torch.inference_mode():
            texts = []
            for prompt in prompts:
                inputs = prompt.inputs(loaded)
                tokens = loaded.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
                answer = tokens[0, inputs["input_ids"].shape[1] :]
                texts.append(loaded.processor.decode(answer, skip_special_tokens=True))
        yield Column(point.label, keep, pruning.take(), texts)


def chosen(cfg: DictConfig, source: Source) -> list[Prompt]:
    """Return the questions named by `docs`, or random ones."""
    if not cfg.docs:
        return list(islice(source.drawn(cfg.seed), cfg.limit))
    prompts = []
    for place in cfg.docs:
        task, _, doc_id = str(place).partition("/")
        prompt = source.prompt(task, int(doc_id))
        if not prompt.pictures:
            raise UserError(f"{place} is not about images alone: choose another one")
        prompts.append(prompt)
    return prompts


def overlaps(kept_by: dict[tuple[str, float], Sequence[Kept]]) -> list[dict[str, Any]]:
    """Return the mean Jaccard index of the tokens that two methods kept, for all pairs of one budget."""
    pairs = [(a, b) for a, b in combinations(kept_by, 2) if a[1] == b[1]]
    return [
        {"keep": a[1], "methods": [a[0], b[0]], "jaccard": round(float(np.mean(_jaccards(kept_by[a], kept_by[b]))), 4)}
        for a, b in pairs
    ]


def _jaccards(a: Sequence[Kept], b: Sequence[Kept]) -> list[float]:
    sets = [(set(mine.kept), set(theirs.kept)) for mine, theirs in zip(a, b, strict=True)]
    return [len(mine & theirs) / len(mine | theirs) for mine, theirs in sets]


def picture(loaded: Loaded, prompts: Sequence[Prompt], columns: Sequence[Column]) -> Figure:
    """Draw a row for each question: its first picture, then what each method kept of it and what was answered."""
    size = (1.55 * (1 + len(columns)), 2.0 * len(prompts))
    with plots.style():
        figure = Figure(figsize=size, layout="constrained")
        lines = figure.subplots(len(prompts), 1 + len(columns), squeeze=False)
        for place, (prompt, line) in enumerate(zip(prompts, lines, strict=True)):
            grids = columns[0].records[place].grids
            (image, *_), _ = shown(loaded.processor, prompt.inputs(loaded).to("cpu"), prompt.messages, grids)
            line[0].imshow(image)
            line[0].set_title(fill(_text(prompt), 26, max_lines=3), fontsize=7, loc="left")
            line[0].text(0, -0.02, f"answer: {prompt.target}", transform=line[0].transAxes, fontsize=7, va="top")
            for column, axis in zip(columns, line[1:], strict=True):
                record, answer = column.records[place], column.answers[place].strip()
                axis.imshow(faded(image, record))
                axis.set_title(f"{printed(column.label)}\n{record.k} of {record.n}", fontsize=7, loc="left")
                mark, color = ("✓", "#1a7f37") if answer.lower() == prompt.target.strip().lower() else ("✗", "#c0392b")
                said = shorten(answer or "(nothing)", 18, placeholder="…")
                axis.text(0, -0.02, f"{mark} {said}", transform=axis.transAxes, fontsize=7, va="top", color=color)
            for axis in line:
                axis.set_axis_off()
    return figure


def _text(prompt: Prompt) -> str:
    parts = [part["text"] for message in prompt.messages for part in message["content"] if part["type"] == "text"]
    return next((line for line in "\n".join(parts).splitlines() if line.strip()), "")


def faded(image: Image.Image, record: Kept) -> Image.Image:
    """Fade every token that was dropped of the first picture of a question."""
    _, rows, columns = record.grids[0]
    token = image.width // columns  # side in pixels
    stays = np.isin(np.arange(rows * columns), record.kept).reshape(rows, columns)
    stays = stays.repeat(token, 0).repeat(token, 1)[..., None]
    pixels = np.asarray(image, dtype=float)
    return Image.fromarray(np.where(stays, pixels, 255 * FAINT + pixels * (1 - FAINT)).astype(np.uint8))

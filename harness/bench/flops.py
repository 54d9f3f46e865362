"""Operations alone: python -m harness.bench flops model=qwen25vl7b keep=0.25. No model is built, none is downloaded."""

from __future__ import annotations

import functools
import json
import sys
from typing import Any

from omegaconf import DictConfig

from harness.bench.settings import Settings, settings
from harness.core.command import command
from harness.core.errors import UserError, as_user_error


def main() -> None:
    """`python -m harness.bench flops`."""
    command("bench", table, checks=[settings])


def table(cfg: DictConfig) -> None:
    """Print the operations of every method at every size for people, and one JSON line."""
    from harness.bench.screen import OPERATIONS, tables

    rows = counted(settings(cfg))
    print(tables(rows, [OPERATIONS]))
    print(json.dumps({"rows": rows}, allow_nan=False))


def counted(chosen: Settings) -> list[dict[str, Any]]:
    """Return one row for everyone at every size, of one prompt; UserError for a family that is not counted."""
    from harness.bench.setup import Candidate, allowed_in, contestant_of
    from harness.bench.workloads import synthetic
    from harness.models import checkpoint
    from harness.models.cost import architectures
    from harness.models.loading import config_in

    if chosen.images:
        raise UserError("operations are counted for sizes, images have none before a processor: leave images out")
    name, hidden = chosen.model.name, None
    if chosen.weights != "real" or name in architectures.names():
        config = architectures.config_of(name, chosen.weights == "tiny")
        hidden = None if chosen.weights == "tiny" else architectures.scorer_hidden(name)
    else:
        config = config_in(checkpoint.download(chosen.model))
    told = functools.partial(print, file=sys.stderr)
    allowed = allowed_in(chosen, config, None, told)
    contestants = [Candidate("none"), *(contestant_of(run, method) for run, method, _ in allowed)]
    workloads = [synthetic(config, size, chosen.text_tokens) for size in chosen.sizes]
    return [_row(chosen, config, hidden, one, workload) for workload in workloads for one in contestants]


def _row(chosen: Settings, config: Any, hidden: int | None, one: Any, workload: Any) -> dict[str, Any]:
    from harness.bench.output import operations
    from harness.models.cost import count

    text = chosen.text_tokens
    with as_user_error(ValueError):
        found = count(config, workload.grids, text, one.method, one.budget, chosen.new_tokens, hidden)
    kept = workload.shrunk(one.budget).tokens if one.resizes else one.budget.count(workload.tokens)
    return {
        "model": chosen.model.name,
        "workload": workload.name,
        "visual_tokens": workload.tokens,
        "text_tokens": text,
        "new_tokens": chosen.new_tokens,
        "batch": 1,
        "method": one.name,
        "params": one.params,
        "budget": one.budget.label,
        "kept_tokens": kept,
        **operations(found, 1),
    }

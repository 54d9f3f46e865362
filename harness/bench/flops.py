"""Count FLOPs without building a model: python -m harness.bench flops model=qwen25vl7b keep=0.25."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from omegaconf import DictConfig

from harness.bench.settings import Settings, settings
from harness.core.command import command
from harness.core.console import print_json, say
from harness.core.errors import UserError, as_user_error, one_line


def main() -> None:
    """`python -m harness.bench flops`."""
    command("bench", table, checks=[settings])


def table(cfg: DictConfig) -> None:
    """Print a table of FLOPs for every method and size, and one JSON line; write them to `out`."""
    from harness.bench import output
    from harness.bench.screen import OPERATIONS, tables

    chosen = settings(cfg)
    output.check(chosen.out)
    rows = counted(chosen)
    print(tables(rows, [OPERATIONS]))
    if chosen.out is not None:
        output.write(chosen.out, rows, {"model": chosen.model.name})
        say(f"wrote {output.csv_of(chosen.out)} and {output.json_of(chosen.out)}")
    print_json({"rows": rows}, None if chosen.out is None else output.json_of(chosen.out))


def counted(chosen: Settings) -> list[dict[str, Any]]:
    """Return a row for every method and size, for one prompt; UserError if the family has no FLOPs model."""
    from harness.bench.setup import Candidate, allowed_in, candidate_of
    from harness.bench.workloads import synthetic
    from harness.models import checkpoint
    from harness.models.cost import architectures
    from harness.models.model_folder import ModelFolder

    if chosen.images:
        raise UserError("operations are counted for sizes, images have none before a processor: leave images out")
    name, hidden = chosen.model.name, None
    if chosen.weights != "real" or name in architectures.names():
        config = architectures.config_of(name, chosen.weights == "tiny")
        hidden = None if chosen.weights == "tiny" else architectures.scorer_hidden(name)
    else:
        config = ModelFolder(checkpoint.download(chosen.model)).config
    tell, rows = partial(print, file=sys.stderr), []
    allowed = allowed_in(chosen, config, None, tell)
    candidates = [Candidate("none"), *(candidate_of(run, method) for run, method, _ in allowed)]
    for workload in [synthetic(config, size, chosen.text_tokens) for size in chosen.sizes]:
        for candidate in candidates:
            try:
                rows.append(_row(chosen, config, hidden, candidate, workload))
            except UserError as error:  # a schedule that cannot meet this budget
                if not chosen.all_methods:
                    raise
                tell(f"left out: {candidate.label}: {one_line(error)}")
    return rows


def _row(chosen: Settings, config: Any, hidden: int | None, candidate: Any, workload: Any) -> dict[str, Any]:
    from harness.bench.output import operations
    from harness.models.cost import count

    text, budget = chosen.text_tokens, candidate.budget
    with as_user_error(ValueError):
        flops = count(config, workload.grids, text, candidate.method, budget, chosen.new_tokens, hidden)
    kept = workload.shrunk(budget).tokens if candidate.resizes else budget.count(workload.tokens)
    return {
        "model": chosen.model.name,
        "workload": workload.name,
        "visual_tokens": workload.tokens,
        "text_tokens": text,
        "new_tokens": chosen.new_tokens,
        "batch": 1,
        "method": candidate.name,
        "params": candidate.params,
        "budget": budget.label,
        "kept_tokens": kept,
        **operations(flops, 1),
    }

"""Does the unpruned model score what the paper says it does? Before that, nothing pruned is worth comparing."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness.core.errors import UserError, one_line
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.results.method_groups import BASELINE


def baselines(runs: Path, folder: Path) -> Iterator[Finding]:
    """Unpruned runs below `runs` against the published scores in `folder`: a finding per model and benchmark.

    The band is the published score plus or minus `band` of conf/tables/paper.yaml, in percent of the full scale.
    """
    from harness.results import paper
    from harness.results.frames import read_scores
    from harness.results.result import collect

    if not (folder / paper.SCORES).is_file():
        yield Finding("baselines", "published scores", ABSENT, f"not in paper={folder}: nothing to hold runs against")
        return
    try:
        published = read_scores(folder / paper.SCORES)
        found = [result for result in collect(runs) if result.is_baseline] if runs.is_dir() else []
    except UserError as error:
        yield Finding("baselines", "all", BROKEN, one_line(error))
        return
    ours = paper.ours(found)
    for model, theirs in published[published["method"] == BASELINE].groupby("model", sort=False):
        mine = ours[ours["model"] == model]
        if not len(mine):
            count = theirs["benchmark"].nunique()
            yield Finding("baselines", str(model), ABSENT, f"no unpruned run of its {count} published benchmarks")
        else:
            for benchmark, scores in theirs.groupby("benchmark", sort=False)["score"]:
                yield from _judged(f"{model} {benchmark}", str(benchmark), scores, mine[mine["benchmark"] == benchmark])
    for result in found:
        config = result.about["config"]
        if config["model"]["name"] not in set(published["model"]):
            name = f"{config['model']['name']} {config['tasks']['name']}"
            yield Finding("baselines", name, ABSENT, "no published number")


def _judged(name: str, benchmark: str, published: pd.Series, mine: pd.DataFrame) -> Iterator[Finding]:
    """One benchmark of a model; two tables may give it two published scores, and runs can be several."""
    from harness.results.paper import facts

    full = facts()["benchmarks"][benchmark].get("of", 100)
    margin = facts()["band"] * full / 100
    low, high = max(published.min() - margin, 0), min(published.max() + margin, full)
    band = f"published {published.iloc[0]:g}, band {low:g} to {high:g}"
    if not len(mine):
        yield Finding("baselines", name, ABSENT, f"no run ({band})")
    for score, limit, made in zip(mine["score"], mine["limit"], mine["versions"], strict=True):
        if not pd.isna(limit):
            yield Finding("baselines", name, ABSENT, f"{score:.2f} of the first {limit:g} questions alone ({band})")
        elif low <= score <= high:
            yield Finding("baselines", name, OK, f"{score:.2f} ({band})")
        else:
            versions = f"ours by {made}; the paper's by {facts()['made_with']}"
            yield Finding("baselines", name, BROKEN, f"{score:.2f} is outside ({band}; {versions})")

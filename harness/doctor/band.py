"""Comparison of unpruned runs with the published scores of the unpruned models."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from harness.core.errors import UserError, one_line
from harness.core.question_sample import ALL
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.results.method_groups import BASELINE


def baselines(runs: Path, folder: Path) -> Iterator[Finding]:
    """Compare unpruned runs below `runs` with the published scores in `folder`: a finding per model and benchmark.

    The band is the published score plus or minus `band` of conf/tables/paper.yaml, in percent of the full scale.
    """
    from harness.results import paper
    from harness.results.frames import read_scores
    from harness.results.result import collect

    if not (folder / paper.SCORES).is_file():
        yield Finding("baselines", "published scores", ABSENT, f"not in paper={folder}: runs cannot be compared")
        return
    try:
        published = read_scores(folder / paper.SCORES)
        unpruned = [result for result in collect(runs) if result.is_baseline] if runs.is_dir() else []
    except UserError as error:
        yield Finding("baselines", "all", BROKEN, one_line(error))
        return
    ours = paper.ours(unpruned)
    for model, rows in published[published["method"] == BASELINE].groupby("model", sort=False):
        own = ours[ours["model"] == model]
        if not len(own):
            count = rows["benchmark"].nunique()
            yield Finding("baselines", str(model), ABSENT, f"no unpruned run of its {count} published benchmarks")
        else:
            for benchmark, scores in rows.groupby("benchmark", sort=False)["score"]:
                yield from _compare(f"{model} {benchmark}", str(benchmark), scores, own[own["benchmark"] == benchmark])
    for result in unpruned:
        config = result.about["config"]
        if config["model"]["name"] not in set(published["model"]):
            name = f"{config['model']['name']} {config['tasks']['name']}"
            yield Finding("baselines", name, ABSENT, "no published number")


def _compare(name: str, benchmark: str, published: pd.Series, ours: pd.DataFrame) -> Iterator[Finding]:
    """Compare one benchmark of a model, which may have several published scores and several runs."""
    from harness.results.benchmarks import facts

    full = facts()["benchmarks"][benchmark].get("of", 100)
    margin = facts()["band"] * full / 100
    low, high = max(published.min() - margin, 0), min(published.max() + margin, full)
    band = f"published {published.iloc[0]:g}, band {low:g} to {high:g}"
    if not len(ours):
        yield Finding("baselines", name, ABSENT, f"no run ({band})")
    for score, asked, versions in zip(ours["score"], ours["asked"], ours["versions"], strict=True):
        if asked != ALL:
            yield Finding("baselines", name, ABSENT, f"{score:.2f} of only {asked} ({band})")
        elif low <= score <= high:
            yield Finding("baselines", name, OK, f"{score:.2f} ({band})")
        else:
            used = f"our run used {versions}; the paper's used {facts()['made_with']}"
            yield Finding("baselines", name, BROKEN, f"{score:.2f} is outside ({band}; {used})")

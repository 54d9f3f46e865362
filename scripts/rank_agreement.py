"""Print how far tables agree in the order of methods: python scripts/rank_agreement.py OURS.csv OTHER.csv ...

All files are of `python -m harness.tables csv=FILE`. Budgets are matched by the share of tokens that they keep, the
nearest first. Spearman's correlation is over the methods that both have; its interval (95 %) takes the methods as a
sample of those that could have been compared, and averages as known up to their standard errors. The second
correlation is without methods that cut inside the language model.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

DRAWS, FEWEST = 10_000, 5
TOKENS = {"llava15_7b": 576, "pocket_llava": 256}  # of an image, where a budget is a number


def share(model: str, budget: str) -> float:
    """Return the share of visual tokens that a budget keeps."""
    kind, _, number = budget.partition("=")
    return float(number) if kind == "keep" else int(number) / TOKENS[model]


def blocks(file: str) -> pd.DataFrame:
    """Return a row for each method and budget: share, average, its standard error (0 without intervals), where it cuts.

    A method that has several rows of a budget, with other parameters, is left out.
    """
    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    frame = frame[(frame["budget"] != "") & (frame["avg"] != "")]
    frame["method"] = frame["method"].str.replace(r"\*? \(prior \w+\)$", "", regex=True)
    keys = ["model", "tasks", "budget", "method"]
    frame = frame.drop_duplicates(keys, keep=False).reset_index(drop=True)
    frame["share"] = [share(*pair) for pair in zip(frame["model"], frame["budget"], strict=True)]
    width = pd.to_numeric(frame["high"]) - pd.to_numeric(frame["low"]) if "low" in frame else 0.0
    inside = pd.to_numeric(frame["per_layer"]) > pd.to_numeric(frame["K"]) if "K" in frame else False
    return frame[[*keys, "share"]].assign(avg=pd.to_numeric(frame["avg"]), error=width / 3.92, inside=inside)


def correlation(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return Spearman's correlation of each row of a [R, M] with that of b [R, M]; NaN where a row has no order."""
    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (a, b))
    with np.errstate(invalid="ignore"):
        found: NDArray[Any] = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return found


def agreement(both: pd.DataFrame) -> str:
    """Return the number of methods in common, the correlation and its interval, as cells of a table."""
    if len(both) < FEWEST:
        return f"{len(both)} | - | -"
    rng = np.random.default_rng(0)
    means, errors = (both[[f"{name}_x", f"{name}_y"]].to_numpy().T[:, None] for name in ("avg", "error"))  # [2, 1, M]
    drawn = means + errors * rng.standard_normal((2, DRAWS, len(both)))
    methods = rng.integers(0, len(both), (1, DRAWS, len(both)))
    low, high = np.nanquantile(correlation(*np.take_along_axis(drawn, methods, 2)), [0.025, 0.975])
    return f"{len(both)} | {correlation(*means).item():.2f} | {low:.2f} to {high:.2f}"


def main() -> None:
    """Print a row for each budget of each other table."""
    ours, *others = (blocks(file) for file in sys.argv[1:])
    columns = "methods | correlation | 95 %"
    print(f"| our budget | compared with | budget | {columns} | before the LLM: {columns} |")
    print("| --- | --- | --- | ---: | ---: | --- | ---: | ---: | --- |")
    for (model, tasks, budget), block in pd.concat(others).groupby(["model", "tasks", "budget"], sort=False):
        nearest = (ours["share"] - block["share"].iloc[0]).abs().idxmin()
        mine = ours[ours["budget"] == ours.loc[nearest, "budget"]]
        both = mine.merge(block, on="method")
        if len(both) >= FEWEST:
            place = f"{mine['budget'].iloc[0]} | {tasks} ({model}) | {budget}"
            print(f"| {place} | {agreement(both)} | {agreement(both[~both['inside_x']])} |")


if __name__ == "__main__":
    main()

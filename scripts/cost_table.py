"""Print what each method costs and scores: python scripts/cost_table.py SCORES.csv COSTS.csv [COSTS.csv ...]

The first file is of `python -m harness.tables`, the others of `python -m harness.bench flops`. Costs are in percent of
the unpruned model's, and order the rows.
"""

import sys

import pandas as pd


def joined(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and budget that both have: prefill of the language model, all stages, and the score."""
    names = scores["method"].str.extract(r"^(?P<method>\S+)(?: \((?P<params>.*)\))?$").fillna("")
    # The file of a prior costs nothing, and costs leave out what is the default.
    names["params"] = names["params"].replace({r"prior \w+": "", "budget_at mean": "", " ": "="}, regex=True)
    scores = pd.concat([names, scores[["budget", "avg", "low", "high"]]], axis=1)
    unpruned = costs[costs["method"] == "none"].iloc[0]
    stages = ["prefill_tflops", "total_tflops"]
    shares = 100 * costs[stages] / unpruned[stages].astype(float)
    budgets = ("keep=" + costs["budget"]).rename("budget")
    costs = pd.concat([costs[["method", "params"]].fillna(""), budgets, shares], axis=1).drop_duplicates()
    return costs.merge(scores, on=["method", "params", "budget"]).sort_values([*stages, "avg"])


def main() -> None:
    """Print a page with a table for each budget."""
    scores, *parts = (pd.read_csv(path, dtype={"budget": str}) for path in sys.argv[1:])
    costs = pd.concat(parts)
    rows, first = joined(scores, costs), costs.iloc[0]
    print(f"# What each method costs and scores on `{first['model']}`\n")
    print("FLOPs and scores in percent of the unpruned model's (`make results-costs`). FLOPs are those of a picture of")
    sizes = f"{first['visual_tokens']} tokens", f"{first['new_tokens']} new tokens"
    print(f"{sizes[0]}, for the prefill of the language model, and for all stages with {sizes[1]}.")
    for budget, block in rows.groupby("budget", sort=False):
        print(f"\n| {budget} | prefill | all stages | score |\n| --- | ---: | ---: | ---: |")
        for row in block.to_dict("records"):
            shares = " | ".join(f"{row[stage]:.1f} %" for stage in ("prefill_tflops", "total_tflops"))
            print(f"| {row['method']} {row['params']}".rstrip() + f" | {shares} | {row['avg']:.2f} |")


if __name__ == "__main__":
    main()

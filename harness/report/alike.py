"""How often runs answer as the unpruned model does, kept with the gallery's answers: run folders lose theirs."""

import pandas as pd

from harness.report.gallery import Sample


def keep(sample: Sample, frame: pd.DataFrame) -> None:
    """Add "agreement" to every setting: benchmark -> percent for each run, as `standing` gives it."""
    known = frame.dropna(subset="agreement").round({"agreement": 2})
    found = {run: dict(zip(of["benchmark"], of["agreement"], strict=True)) for run, of in known.groupby("hash")}
    for setting in sample["settings"]:
        setting["agreement"] = [found.get(run, {}) for run in setting["runs"]]


def filled(frame: pd.DataFrame, sample: Sample) -> pd.DataFrame:
    """`frame` with the agreement that the sample kept where the runs themselves have none."""
    kept = {
        (run, benchmark): percent
        for setting in sample["settings"]
        for run, each in zip(setting["runs"], setting["agreement"], strict=True)
        for benchmark, percent in each.items()
    }
    cells = zip(frame["hash"], frame["benchmark"], strict=True)
    return frame.assign(agreement=frame["agreement"].fillna(pd.Series([kept.get(cell) for cell in cells], frame.index)))

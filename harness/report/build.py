"""Build the page from run folders, within its size limit."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from harness.core.errors import UserError
from harness.core.files import write_atomic
from harness.report import context, gallery, html, images
from harness.report import figures as drawn
from harness.report.html import plural
from harness.report.prefill_times import files_of, read_times
from harness.results import plots
from harness.results.frames import read_scores
from harness.results.result import Result, collect
from harness.results.summary import full_summary, of_scores

MOST = 10_000_000  # bytes of the page
BESIDE = 300_000  # bytes of a picture in the folder next to the page


def build(cfg: DictConfig) -> dict[str, Any]:
    """Write the page, the plots, or both; return the object that the command prints last."""
    if cfg.scores is not None:
        frame = of_scores(read_scores(Path(str(cfg.scores))))
        files = _draw(cfg, drawn.draw(frame, None))
        return {"report": None, "runs": 0, "plots": len(files), "bytes": None, "questions": 0}
    runs = Path(str(cfg.runs))
    results = collect(runs)
    if not results:
        raise UserError(f"no finished run below runs={runs}: start with python -m harness")
    measured = files_of(cfg.prefill)
    times = read_times(measured) if measured else None
    frame, notes = full_summary(results)
    sets = drawn.draw(frame, times)
    written = len(_draw(cfg, sets))
    report = {"report": cfg.out, "runs": len(results), "plots": written, "bytes": None, "questions": 0}
    if cfg.out is None:
        return report
    out = Path(str(cfg.out))
    sample = _sample(cfg, results, frame)
    frame = gallery.filled(frame, sample)
    about = {**context.of_runs(cfg, results, frame, sets), "notes": notes}
    text = _with_pictures(cfg, out, results, frame, sample, about)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    asked = sum(len(setting["questions"]) for setting in sample["settings"])
    print(f"{out}: {plural(len(results), 'run')}, {plural(asked, 'question')}, {len(text.encode()) / 1e6:.1f} MB")
    return {**report, "bytes": len(text.encode()), "questions": asked}


def _draw(cfg: DictConfig, sets: Sequence[drawn.Set]) -> list[Path]:
    """Write the plots as files where that is asked for."""
    if cfg.plots is None:
        return []
    figures = {plot.name: plot.figure for made in sets for plot in made.plots}
    files = plots.save(figures, Path(str(cfg.plots)))
    print(f"{plural(len(files), 'file')} in {cfg.plots}")
    return files


def _sample(cfg: DictConfig, results: Sequence[Result], frame: pd.DataFrame) -> gallery.Sample:
    """The gallery's answers, from the runs or from the file that kept them."""
    if cfg.gallery == "none":
        return gallery.EMPTY
    sample = gallery.gather(results, None if cfg.gallery == "all" else int(cfg.questions))
    gallery.keep(sample, frame)
    file = None if cfg.sample is None else Path(str(cfg.sample))
    if file is not None and file.is_file():
        fresh = {setting["setting"] for setting in sample["settings"]}
        for key, kept in gallery.load(file, results).items():
            sample[key] += [entry for entry in kept if entry["setting"] not in fresh]
    if file is not None and sample["settings"] and cfg.gallery == "page":
        gallery.save(sample, file)
    return sample


def _with_pictures(
    cfg: DictConfig,
    out: Path,
    results: Sequence[Result],
    frame: pd.DataFrame,
    sample: gallery.Sample,
    about: dict[str, Any],
) -> str:
    """The page with as good pictures as its size leaves room for; without, how much room that is."""
    beside = out.with_name(f"{out.stem}_files") if cfg.gallery == "all" and sample["settings"] else None
    about |= context.of_gallery(cfg, frame, sample, beside, [])
    share = BESIDE
    if beside is None:
        room = MOST - len(html.render(about).encode()) - 200_000
        share = max(0, room) * 3 // 4 // max(1, sum(map(images.count, sample["settings"])))
        if share < 2000:
            raise UserError(
                f"the page would weigh more than {MOST / 1e6:g} MB: ask for fewer questions= or gallery=all"
            )
    missing = []
    if cfg.pictures:
        configs = {result.hash: result.about["config"] for result in results}
        for setting in sample["settings"]:
            missing += images.illustrate(setting, configs[setting["runs"][0]], _keep(beside, share))
    elif sample["settings"]:
        missing.append("pictures=false was given.")
    about |= context.of_gallery(cfg, frame, sample, beside, missing)
    text = html.render(about)
    if len(text.encode()) > MOST:
        raise UserError(f"the page weighs {len(text.encode()) / 1e6:.1f} MB: ask for fewer questions= or gallery=all")
    return text


def _keep(beside: Path | None, share: int) -> Callable[[Image.Image], str]:
    """Where a picture goes: into the page, or into the folder beside it, once."""

    def keep(picture: Image.Image) -> str:
        data = images.encoded(picture, share)
        if beside is None:
            return images.as_uri(data)
        file = beside / f"{hashlib.sha256(data).hexdigest()[:16]}.webp"
        beside.mkdir(parents=True, exist_ok=True)
        if not file.is_file():
            file.write_bytes(data)
        return f"{beside.name}/{file.name}"

    return keep

"""Build the page from run folders, within its size limit."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from omegaconf import DictConfig
from PIL import Image

from harness.core.console import say
from harness.core.errors import UserError
from harness.core.files import make_folder, write_atomic
from harness.report import context, figures, gallery, html, images
from harness.report.html import plural
from harness.report.prefill_times import files_of, read_times
from harness.results import plots
from harness.results.frames import read_scores
from harness.results.labels import Remark, settings
from harness.results.result import Result, collect, pool_seeds
from harness.results.summary import full_summary, of_scores

MOST = 10_000_000  # bytes of the page
MOST_IN_FOLDER = 300_000  # bytes of a picture in the folder next to the page


def build(cfg: DictConfig) -> dict[str, Any]:
    """Write the page, the plots, or both; return the object that the command prints last."""
    if cfg.scores is not None:
        frame = of_scores(read_scores(Path(str(cfg.scores))))
        files = _draw(cfg, figures.draw(frame, None))
        return {"report": None, "runs": 0, "plots": len(files), "bytes": None, "questions": 0}
    runs = Path(str(cfg.runs))
    finished = collect(runs)
    results = pool_seeds(finished)
    if not results:
        raise UserError(f"no finished run below runs={runs}: start with python -m harness")
    measured = files_of(cfg.prefill)
    times = read_times(measured) if measured else None
    frame, notes = full_summary(results)
    differences = {setting[:8]: text for setting, text in settings(results).items()}
    frame["differs"] = frame["setting"].map(differences).fillna("")
    sets = figures.draw(frame, times)
    written = len(_draw(cfg, sets))
    report = {"report": cfg.out, "runs": len(finished), "plots": written, "bytes": None, "questions": 0}
    if cfg.out is None:
        return report
    out = Path(str(cfg.out))
    sample = _sample(cfg, results, frame)
    frame = gallery.filled(frame, sample)
    remarks = [note for note in notes if isinstance(note, Remark)]
    warnings = [note for note in notes if not isinstance(note, Remark)]
    about = {**context.of_runs(cfg, len(finished), results, frame, sets), "warnings": warnings, "remarks": remarks}
    text = _with_pictures(cfg, out, results, frame, sample, about)
    make_folder(out.parent)
    write_atomic(out, text)
    asked = sum(len(setting["questions"]) for setting in sample["settings"])
    say(f"{out}: {plural(len(finished), 'run')}, {plural(asked, 'question')}, {len(text.encode()) / 1e6:.1f} MB")
    return {**report, "bytes": len(text.encode()), "questions": asked}


def _draw(cfg: DictConfig, sets: Sequence[figures.Set]) -> list[Path]:
    """Write the plots to the folder `plots`, if it is set."""
    if cfg.plots is None:
        return []
    drawings = {plot.name: plot.figure for plot_set in sets for plot in plot_set.plots}
    files = plots.save(drawings, Path(str(cfg.plots)))
    say(f"{plural(len(files), 'file')} in {cfg.plots}")
    return files


def _sample(cfg: DictConfig, results: Sequence[Result], frame: pd.DataFrame) -> gallery.Sample:
    """Return the gallery's answers, from the runs or from the file that keeps them."""
    if cfg.gallery == "none":
        return gallery.EMPTY
    sample = gallery.gather(results, None if cfg.gallery == "all" else int(cfg.questions))
    gallery.add_agreement(sample, frame)
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
    """Render the page; pictures are as large as the size limit of the page allows."""
    folder = out.with_name(f"{out.stem}_files") if cfg.gallery == "all" and sample["settings"] else None
    about |= context.of_gallery(cfg, frame, sample, folder, [])
    share = MOST_IN_FOLDER
    if folder is None:
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
            missing += images.illustrate(setting, configs[setting["runs"][0]], _keep(folder, share))
    elif sample["settings"]:
        missing.append("pictures=false")
    about |= context.of_gallery(cfg, frame, sample, folder, missing)
    text = html.render(about)
    if len(text.encode()) > MOST:
        raise UserError(f"the page weighs {len(text.encode()) / 1e6:.1f} MB: ask for fewer questions= or gallery=all")
    return text


def _keep(folder: Path | None, share: int) -> Callable[[Image.Image], str]:
    """Return a function that stores a picture in `folder`, or in the page, and returns its address."""

    def keep(picture: Image.Image) -> str:
        data = images.encoded(picture, share)
        if folder is None:
            return images.as_uri(data)
        file = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.webp"
        make_folder(folder)
        if not file.is_file():
            write_atomic(file, data)
        return quote(f"{folder.name}/{file.name}")

    return keep

"""One page to look at: python -m harness.report runs=results/runs out=report.html.

Tables with intervals, plots, a gallery of kept tokens, the overlap of selections and where every number is from, in one
HTML file that opens from disk. `plots=FOLDER` writes the plots as files too.
"""

from pathlib import Path

from omegaconf import DictConfig

from harness.core.command import command
from harness.core.console import print_json
from harness.core.errors import UserError
from harness.core.files import check_file, check_place
from harness.core.overrides import parse
from harness.core.rules import at_least, flag, one_of, require, text
from harness.report.prefill_times import files_of

GALLERIES = ("page", "all", "none")


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings that are wrong, before any run is read."""
    if cfg.runs is None:
        raise UserError("runs is null: pass the folder of the runs, as in runs=results/runs")
    require(cfg, {"gallery": one_of(GALLERIES), "questions": at_least(1), "pictures": flag(), "title": text()})
    if cfg.out is None and cfg.plots is None:
        raise UserError("nothing to write: pass out=report.html or plots=FOLDER")
    if cfg.prefill is not None and not all(file.is_file() for file in files_of(cfg.prefill) or [Path()]):
        raise UserError(f"no file at prefill={cfg.prefill}")
    if cfg.scores is not None and not (cfg.plots is not None and Path(str(cfg.scores)).is_file()):
        raise UserError(
            f"scores={cfg.scores} is a file of raw scores to plot: it has to exist, and plots=FOLDER to be given"
        )
    if cfg.scores is None:
        check_file(cfg.out, "out", may_make_folder=True)
    check_file(cfg["sample"], "sample", may_make_folder=True)
    if cfg.plots is not None:
        check_place(cfg.plots, "plots")


def refuse_replay(overrides: list[str]) -> list[str]:
    """UserError for the key of earlier versions that asked the gallery's questions again."""
    if any(override.key_or_group == "replay" for override in parse(overrides)):
        raise UserError("replay= is gone, since runs record picking order and importance: leave it out")
    return overrides


def main(cfg: DictConfig) -> None:
    """Write the page, the plots, or both, and end with one JSON line."""
    from harness.report.build import build

    print_json(build(cfg))


if __name__ == "__main__":
    command("report", main, (check,), refuse_replay)

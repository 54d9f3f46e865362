"""python -m harness.analyze ANALYSIS [key=value ...]; --help lists the analyses."""

import sys
from importlib import import_module

from harness.core.command import command, fail
from harness.core.config import conf
from harness.core.errors import did_you_mean
from harness.core.help import comments
from harness.evaluation.preflight import prepare

ANALYSES = ("pareto", "angles", "masks", "ablation", "heldout", "localisation", "breakdown", "bias", "redundancy")
OF_RUNS = ("ablation", "heldout", "localisation", "breakdown")  # of finished runs; the others load a model


def main() -> None:
    """Run the analysis that the first word names."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in ("-h", "--help"):
        for name in ANALYSES:
            print(f"python -m harness.analyze {name:<12} {comments(conf(f'analyze_{name}.yaml')).heading[1]}")
        print("Each takes key=value arguments and --help.")
    elif word in ANALYSES:
        del sys.argv[1]
        analysis = import_module(f"harness.analyze.{word}")
        command(f"analyze_{word}", getattr(analysis, word), analysis.CHECKS, None if word in OF_RUNS else prepare)
    else:
        fail(f"the first word names an analysis, got {word or 'none'}: {did_you_mean(word, ANALYSES)}")


if __name__ == "__main__":
    main()

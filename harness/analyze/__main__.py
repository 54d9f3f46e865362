"""python -m harness.analyze ANALYSIS [key=value ...]; --help lists the analyses."""

import sys
from importlib import import_module

from harness.core.command import command, fail
from harness.core.errors import did_you_mean
from harness.evaluation.preflight import prepare

ANALYSES = {
    "pareto": "importance retained against clustering of what is kept, over the parameters of methods",
    "angles": "the angles between the visual tokens of an image",
    "masks": "which tokens of chosen images each method keeps, as a picture",
    "ablation": "score over lambda, from the runs of a sweep",
    "heldout": "variants chosen by one half of the questions, judged by the other",
    "localisation": "accuracy over the share of the target that was kept, of runs that ask where",
    "breakdown": "scores of the parts of a benchmark, such as short, medium and long videos, from finished runs",
    "bias": "where in an image each method keeps tokens: histograms over rows and columns",
    "redundancy": "how similar the visual tokens are after each decoder layer",
}
OF_RUNS = ("ablation", "heldout", "localisation", "breakdown")  # of finished runs; the others load a model


def main() -> None:
    """Run the analysis that the first word names."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in ("-h", "--help"):
        for name, description in ANALYSES.items():
            print(f"python -m harness.analyze {name:<12} {description}")
        print("Each takes key=value arguments and --help.")
    elif word in ANALYSES:
        del sys.argv[1]
        analysis = import_module(f"harness.analyze.{word}")
        command(f"analyze_{word}", getattr(analysis, word), analysis.CHECKS, None if word in OF_RUNS else prepare)
    else:
        fail(f"the first word names an analysis, got {word or 'none'}: {did_you_mean(word, ANALYSES)}")


if __name__ == "__main__":
    main()

"""How often 95 % intervals contain the truth, in simulated worlds whose truth is known: python scripts/coverage.py.

A world has a number of pictures with some questions each. Two runs answer them, right or wrong; the answers about one
picture are alike (`latent`: the correlation of the normal numbers behind them), and so are those of both runs. Each row
of the table is one kind of world. Its columns are the coverage, in percent, of the interval of: the second run's score,
the difference of both scores, the second in percent of the first, and the mean of such percentages over nine tasks.
`better` is how often the truly better run is among the best, that is, not significantly worse than the other one, and
`worse` how often the other run is, too. Worlds with less than FEWEST pictures show why tables leave them untested.
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from harness.core import hook
from harness.core.console import table_lines
from harness.results.influence import Influence
from harness.results.stats import ALPHA, AVERAGE, FEWEST, Array, combine

TASKS = 9
ABOUT = ("pictures", "questions", "latent", "first", "second")
HEAD = (*ABOUT, "score", "difference", "percent", "average", "better", "worse")


@dataclass(frozen=True)
class World:
    """Questions of one task, and how often two runs are right."""

    pictures: int
    each: int  # questions of a picture
    latent: float  # correlation of the numbers behind the answers about one picture
    first: float  # share of right answers
    second: float
    runs: float  # correlation of the numbers behind the answers of both runs

    def answers(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw the answers [pictures * each] of both runs."""

        def paired(*shape: int) -> tuple[Array, Array]:
            one = rng.standard_normal(shape)
            return one, self.runs * one + math.sqrt(1 - self.runs**2) * rng.standard_normal(shape)

        of_pictures, of_questions = paired(self.pictures, 1), paired(self.pictures, self.each)
        shares = zip((self.first, self.second), of_pictures, of_questions, strict=True)
        weights = math.sqrt(self.latent), math.sqrt(1 - self.latent)
        a, b = ((weights[0] * p + weights[1] * q < stats.norm.ppf(share)).astype(float) for share, p, q in shares)
        return a.ravel(), b.ravel()


WORLDS = [
    World(1000, 1, 0, 0.7, 0.65, 0.9),
    World(240, 1, 0, 0.9, 0.85, 0.9),
    World(240, 1, 0, 0.95, 0.95, 0.99),
    World(240, 1, 0, 0.99, 0.98, 0.95),
    World(60, 1, 0, 0.98, 0.95, 0.95),
    World(2, 1, 0, 0.9, 0.8, 0.9),
    World(5, 1, 0, 0.9, 0.8, 0.9),
    World(10, 1, 0, 0.9, 0.8, 0.9),
    World(20, 1, 0, 0.98, 0.97, 0.9),
    World(20, 1, 0, 0.9, 0.8, 0.9),
    World(20, 1, 0, 0.5, 0.5, 0.9),
    World(500, 18, 0.2, 0.88, 0.85, 0.95),
    World(100, 18, 0.4, 0.9, 0.85, 0.9),
    World(28, 18, 0.2, 0.9, 0.85, 0.9),
    World(28, 18, 0.4, 0.99, 0.98, 0.9),
    World(2, 18, 0.4, 0.9, 0.85, 0.9),
    World(5, 18, 0.4, 0.9, 0.85, 0.9),
    World(10, 18, 0.4, 0.9, 0.85, 0.9),
    World(20, 18, 0.4, 0.9, 0.85, 0.9),
    World(120, 2, 0.8, 0.9, 0.85, 0.9),
]


def coverage(world: World, worlds: int, seed: int) -> list[float]:
    """Return the shares of worlds in which the four intervals contain the truth, and either run is among the best."""
    hits = np.zeros(6)
    counted = 0
    for draw in range(worlds):
        rng = np.random.default_rng([seed, draw])
        influences = {}
        for task in range(TASKS):
            names = [f"{task} {picture:05d}" for picture in range(world.pictures) for _ in range(world.each)]
            influences[f"{task}"] = [Influence.of_questions(values, names) for values in world.answers(rng)]
        noise = combine(influences, ["first", "second"], 0, {}, fewest=2)
        if noise.untested:
            continue  # a first run without a right answer
        counted += 1
        share = 100 * world.second / world.first
        intervals = [
            (world.second, noise.score_interval("0", "second")),
            (world.second - world.first, noise.scores["0"].difference(1, 0)[:2]),
            (share, noise.shares["0"].interval(1)),
            (share, noise.shares[AVERAGE].interval(1)),
        ]
        of_runs = noise.shares[AVERAGE].against_best() >= ALPHA
        better, worse = of_runs if world.first >= world.second else of_runs[::-1]
        hits += [*(low <= truth <= high for truth, (low, high) in intervals), better, worse]
    return (hits / counted).tolist()


def main() -> None:
    """Print the table, then the least and the greatest coverage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000, help="simulated worlds of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows, tested = [HEAD], []
    for world in WORLDS:
        shares = coverage(world, options.worlds, options.seed)
        if world.pictures >= FEWEST:
            tested.append(shares[:4])
        about = (world.pictures, world.pictures * world.each, world.latent, world.first, world.second)
        rows.append((*map(str, about), *(f"{100 * share:.1f}" for share in shares)))
    print("\n".join(table_lines(rows)))
    single, averages = np.array(tested)[:, :3], np.array(tested)[:, 3]
    error = 100 * math.sqrt(0.95 * 0.05 / options.worlds)
    print(f"worlds with at least {FEWEST} pictures:")
    print(f"coverage of single tasks: {100 * single.min():.1f} to {100 * single.max():.1f} %")
    print(f"coverage of averages: {100 * averages.min():.1f} to {100 * averages.max():.1f} %")
    print(f"95 % measured in {options.worlds} worlds has a standard error of {error:.1f} points")


if __name__ == "__main__":
    hook.install()
    main()

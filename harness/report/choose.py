"""Which questions a page shows, and how alike the selections of two runs are."""

from collections.abc import Mapping, Sequence

import numpy as np

from harness.report.answers import Answer, Question


def informative(right: np.ndarray, count: int) -> list[int]:
    """Columns of `right` [R, Q] at which runs part, so that the few that fit show as many differences as they can.

    One after the other, the question with the most pairs of runs, A right and B wrong, that no question before it
    showed; then those that split the runs most evenly. Ties go to the first. NaN: neither right nor wrong.
    """
    yes, no = (right == 1).astype(np.int64), (right == 0).astype(np.int64)
    even = yes.sum(0) * no.sum(0)
    open_pairs = np.ones((len(right), len(right)), np.int64)
    chosen: list[int] = []
    for _ in range(min(count, right.shape[1])):
        gain = np.einsum("aq,aq->q", yes, open_pairs @ no)
        rank = gain * (even.max(initial=0) + 1) + even
        rank[chosen] = -1
        best = int(rank.argmax())
        chosen.append(best)
        open_pairs *= 1 - np.outer(yes[:, best], no[:, best])
    return sorted(chosen)


def varied(texts: Sequence[Sequence[str]], count: int) -> list[int]:
    """The same for questions without scores: those with the most different answers; `texts` [Q][R]."""
    ranked = sorted(range(len(texts)), key=lambda q: (-len(set(texts[q])), q))
    return sorted(ranked[:count])


def overlap(runs: Sequence[Mapping[Question, Answer]]) -> tuple[np.ndarray, float | None, int]:
    """Mean Jaccard index [R, R] of the kept tokens, what two blind draws would share, and the number of questions.

    Over the questions of which every run kept some tokens and dropped others, and says which; NaN if there is none.
    """
    shared = sorted(set.intersection(*({q for q, a in run.items() if a.mask and 0 < a.k < a.n} for run in runs)))
    if not shared:
        return np.full((len(runs), len(runs)), np.nan), None, 0
    ends = np.cumsum([0, *(runs[0][question].n for question in shared)])[:-1]
    masks = [np.concatenate([run[question].kept() for question in shared]) for run in runs]
    mean = np.eye(len(runs))
    for a in range(len(runs)):
        for b in range(a):
            both = np.add.reduceat(masks[a] & masks[b], ends, dtype=np.int64)
            either = np.add.reduceat(masks[a] | masks[b], ends, dtype=np.int64)
            mean[a, b] = mean[b, a] = (both / either).mean()
    n = np.array([runs[0][question].n for question in shared])
    k = np.array([runs[0][question].k for question in shared])
    return mean, float((k / (2 * n - k)).mean()), len(shared)

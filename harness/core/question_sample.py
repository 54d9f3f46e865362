"""Which questions of a task are asked: all, a part (limit= and sample=), or single ones (questions=)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from harness.core.errors import UserError

ALL = "all questions"
ORDERS = ("first", "even", "random")
QUESTION = re.compile(r"(.+)/(\d+)")  # task/number, as tables, comparisons and logs number them


@dataclass(frozen=True)
class QuestionSample:
    """A choice of questions for every task of a run; the default is all of them.

    Args:
        limit: how many questions of each task; below 1, which share of them, rounded up as lmms-eval does.
        order: the first ones, ones at even distances, or random ones.
        seed: of random ones.
        single: task -> numbers of its questions, instead of `limit`.
    """

    limit: int | float | None = None
    order: str = "first"
    seed: int = 0
    single: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every question is asked."""
        return self.limit is None and not self.single

    @property
    def identity(self) -> dict[str, Any]:
        """What a run is known by: `limit`, and the rest where it is set, so that older runs keep their folders."""
        single = [f"{task}/{number}" for task, numbers in self.single.items() for number in numbers]
        return {
            "limit": self.limit,
            **({"sample": self.order} if self.order != "first" else {}),
            **({"sample_seed": self.seed} if self.order == "random" else {}),
            **({"questions": single} if single else {}),
        }

    def numbers(self, task: str, total: int) -> Sequence[int]:
        """Return the numbers of the questions to ask, of a task that has `total`, in its order."""
        if self.single:
            numbers = self.single[task]
            if numbers[-1] >= total:
                last = f"its last one is {task}/{total - 1}"
                raise UserError(f"questions: task {task} has no question {task}/{numbers[-1]}, {last}")
            return numbers
        if self.limit is None:
            return range(total)
        count = min(total, math.ceil(total * self.limit) if self.limit < 1 else int(self.limit))
        if self.order == "even":
            return [place * total // count for place in range(count)]
        if self.order == "random":
            return sorted(Random(f"{self.seed} {task}").sample(range(total), count))
        return range(count)


def in_words(identity: Mapping[str, Any]) -> str:
    """Describe the questions of a run by its `identity`."""
    if "questions" in identity:
        return f"the questions {', '.join(identity['questions'])}"
    if (limit := identity["limit"]) is None:
        return ALL
    count = f"{100 * limit:.4g} % of the questions" if limit < 1 else f"{limit} questions"
    order = identity.get("sample", "first")
    draw = {"first": "", "even": ", at even distances", "random": f", at random (seed {identity.get('sample_seed')})"}
    return f"{'the first ' * (order == 'first')}{count} of each task{draw[order]}"


def by_task(questions: Sequence[str]) -> dict[str, list[int]]:
    """Return task -> numbers, in ascending order, of questions given as task/number."""
    numbers: dict[str, list[int]] = {}
    for question in questions:
        match = QUESTION.fullmatch(str(question))
        if match is None:
            raise UserError(f"questions must be a list of TASK/NUMBER, as in [pocket_text/7], got {question}")
        task, number = match[1], int(match[2])
        if number in numbers.setdefault(task, []):
            raise UserError(f"questions names {task}/{number} twice: name it once")
        numbers[task].append(number)
    return {task: sorted(of_task) for task, of_task in numbers.items()}

"""Count what was tried of each kind of fault, and what held: `make robustness` prints the table of docs/robustness.md.

A test of these files counts once, or as often as it enters `tried`. What ended as it has to held: with the answer, or
with one line and its exit code.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings

# Else a tenth of the inputs: `make robustness` sets it.
THOROUGH = bool(os.environ.get("THOROUGH"))
Item = TypeVar("Item")

KINDS = {
    "finished runs": ["results/test_seal.py", "results/test_damaged_about.py", "robustness/test_damaged_runs.py"],
    "untrusted text": ["report/test_hostile_text.py"],
    "lines of JSON": ["commands/test_json.py", "results/test_line_ends.py", "robustness/test_damaged_journals.py"],
    "questions": ["models/test_bad_input.py", "models/test_context.py", "pruning/test_non_finite.py"],
    "pictures": ["models/test_pictures.py", "robustness/test_damaged_pictures.py"],
    "commands": ["commands/test_last_line.py", "evaluation/test_lmms_command.py", "robustness/test_any_arguments.py"],
    "checkpoints": ["models/test_generation.py", "robustness/test_damaged_checkpoints.py"],
    "locks": ["commands/test_locks.py"],
    "methods of others": ["methods/test_checks.py", "methods/test_scores.py", "methods/test_testing.py"],
    "prune blocks": [
        *("pruning/test_block.py", "models/test_wrappers.py"),
        *("pruning/test_kv_cache.py", "pruning/test_checkpointing.py"),
    ],
    "kills and full disks": ["evaluation/test_robust.py", "robustness/test_kills.py"],
}
_KIND_OF = {file: kind for kind, files in KINDS.items() for file in files}
_inputs: dict[str, Counter[str]] = {}  # of the tests of this process that draw inputs -> "tried" and "held"
TRIED: Counter[str] = Counter()
HELD: Counter[str] = Counter()


def inputs(count: int) -> settings:
    """Return the settings of a test that draws `count` inputs. Failing ones are not made smaller, which takes long."""
    return settings(
        deadline=None,
        max_examples=count if THOROUGH else count // 10,
        phases=(Phase.reuse, Phase.generate),
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def some_of(items: Sequence[Item]) -> Sequence[Item]:
    """Return all items, or a tenth of them and the last one."""
    return items if THOROUGH else [*items[:-1:10], items[-1]]


@contextmanager
def tried(request: pytest.FixtureRequest) -> Iterator[None]:
    """Count one input of a test; it held if the block raises nothing."""
    counts = _inputs.setdefault(request.node.nodeid, Counter())
    counts["tried"] += 1
    yield
    counts["held"] += 1


def pytest_itemcollected(item):
    """Give a test the marker of its file's kind."""
    if kind := _KIND_OF.get("/".join(item.path.parts[-2:])):
        item.add_marker(pytest.mark.kind(kind))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Write down the kind of a test, and how many inputs it tried, where the process that prints the table reads it."""
    report = yield
    kind = item.get_closest_marker("kind")
    if kind and report.when == "call" and not report.skipped:
        counts = _inputs.pop(item.nodeid, Counter(tried=1, held=int(report.passed)))
        report.user_properties.append(("kind", (kind.args[0], counts["tried"], counts["held"])))
    return report


def pytest_runtest_logreport(report):
    """Add up the reports of all test processes."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name == "kind":
                kind, tries, held = value
                TRIED[kind] += tries
                HELD[kind] += held


def pytest_terminal_summary(terminalreporter):
    """Print a row for each kind."""
    if not TRIED:
        return
    terminalreporter.section("kinds of faults")
    rows = [("kind", "tried", "held"), ("---", "---:", "---:")]
    rows += [(kind, f"{TRIED[kind]:,}", f"{HELD[kind]:,}") for kind in sorted(TRIED)]
    rows += [("all", f"{TRIED.total():,}", f"{HELD.total():,}")]
    for row in rows:
        terminalreporter.write_line(f"| {' | '.join(row)} |")

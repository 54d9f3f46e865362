"""Property tests: hypothesis draws the arguments of a test."""

from collections.abc import Callable, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = range(10_000)
SHARE = st.floats(0, 1, exclude_max=True)
VARIANTS = ["official", "paper"]


def randomized(examples: int, **arguments: Sequence | st.SearchStrategy) -> Callable:
    """Run a test `examples` times, each argument drawn from a sequence or a strategy."""
    strategies = {
        name: values if isinstance(values, st.SearchStrategy) else st.sampled_from(values)
        for name, values in arguments.items()
    }
    return lambda test: settings(deadline=None, max_examples=examples)(given(**strategies)(test))

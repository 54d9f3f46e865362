"""Check the contract of a pruning method: `check_contract(MyPruner())` in a test says what is broken, where, and how
to mend it.

Each of CHECKS takes a method and raises AssertionError, or the ValueError of `Method.select`. The built-in methods pass
the same checks. docs/add-a-method.md shows how to use them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from methods.base import Method, Selection, Tokens, in_progress
from methods.observe import Operations
from methods.samples import FEATURES, GRIDS, SCORES, make_tokens, repeated, survivors, tensors_of
from methods.selecting import Place, SelectionError, at, line_of
from methods.tokens import DeclaredTokens, num_tokens

__all__ = ["CHECKS", "FEATURES", "SCORES", "Advice", "ContractAdvice", "advice", "check_contract", "make_tokens"]

SEED = 20260213  # of a generator that no other one happens to equal
ALONE = "take every random number from `generator`, and keep nothing between calls"


class ContractAdvice(UserWarning):
    """What makes a method slow on a GPU, and breaks nothing."""


class Advice(NamedTuple):
    """One piece of advice: what the method does and what to do instead, and where."""

    what: str
    place: Place | None


def check_contract(method: Method, by_value: bool = False) -> None:
    """Run every check on `method`, in seconds, on the CPU: an error for what is broken, a warning for what is slow.

    With `by_value`, check also that ties go to the lowest index: for methods without random numbers and positions.
    """
    if not isinstance(method, Method):
        remedy = f": write {method.__name__}()" if isinstance(method, type) else ""
        raise TypeError(f"check_contract expects an instance of a subclass of Method, not {method!r}{remedy}")
    for check in (*CHECKS, *([the_first_of_equals_goes_first] if by_value else [])):
        check(method)
    for what, place in advice(method):
        warnings.warn_explicit(f"{method.name} {what}", ContractAdvice, *(place or (__file__, 1)))


def inputs_are_left_alone(method: Method) -> None:
    """Check that a selection does not write into its input tensors."""
    tokens, fresh = make_tokens(20, seed=3), make_tokens(20, seed=3)
    with Operations(method, inputs=tensors_of(tokens)) as seen:
        method.select(tokens, 7)
    places = seen.places("written")
    same = not places and all(map(torch.equal, tensors_of(tokens), tensors_of(fresh)))
    _expect(method, same, "it writes into its input, which others read: change a clone()", *places[:1])


def randomness_comes_from_the_generator_alone(method: Method) -> None:
    """Check that neither the global generator nor earlier selections change a selection."""
    tokens, kept = make_tokens(40), []
    with torch.random.fork_rng(devices=[]):
        for seed in (1, 2):
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(SEED)
            with Operations(method, generator=generator) as seen:
                kept.append(method.select(tokens, 13, generator).kept)
            places = seen.places("drawn")
            _expect(method, not places, "it draws without its generator: pass generator=generator", *places[:1])
    _expect(method, torch.equal(*kept), f"the same generator gave two selections: {ALONE}")


def nothing_is_kept_between_calls(method: Method) -> None:
    """Check that a selection does not depend on the ones before it."""
    used, fresh = dataclasses.replace(method), dataclasses.replace(method)
    for seed in (1, 2, 3):
        earlier, later = make_tokens(40, seed=seed), make_tokens(40, seed=seed + 10)
        used.select(earlier, 13)
        same = torch.equal(used.select(later, 13).kept, fresh.select(later, 13).kept)
        _expect(method, same, f"an earlier selection changes a later one: {ALONE}")
        fresh = dataclasses.replace(method)


def exactly_k_of_any_finite_input(method: Method) -> None:
    """Check that any finite input gives K distinct ascending indices, and the same ones again."""
    for features in FEATURES:
        for scores in SCORES:
            for seed, grids in enumerate(GRIDS):
                tokens = make_tokens(num_tokens(grids), 8, seed, features, scores, grids=grids)
                for k in (1, 9, len(tokens.features) - 1):
                    _checked_selection(method, tokens, k, f"{features} features and {scores} scores")


def no_nan_is_ranked(method: Method) -> None:
    """Check that no finite input makes scores that hold NaN, which a sort puts first."""
    for features in FEATURES:
        for scores in SCORES:
            with Operations(method) as seen:
                method.select(make_tokens(12, 8, 0, features, scores, grids=[(1, 3, 4)]), 5)
            what = f"it ranks scores that hold NaN, of {features} features and {scores} scores"
            remedy = "avoid 0/0, and rank with methods.scores.top, which refuses NaN in every run"
            _expect(method, not seen.places("nan"), f"{what}: {remedy}", *seen.places("nan")[:1])


def several_samples_are_as_one_by_one(method: Method) -> None:
    """Check that samples of different sizes, selected in one batch, keep what each keeps alone."""
    sizes, ks = (40, 6, 23, 577), (13, 9, 5, 144)
    samples = [make_tokens(n, seed=n) for n in sizes]
    together = method.select_batch(samples, ks, [torch.Generator().manual_seed(n) for n in sizes])
    for tokens, n, k, got in zip(samples, sizes, ks, together, strict=True):
        alone = method.select(tokens, k, torch.Generator().manual_seed(n))
        pairs = [(alone.kept, got.kept), (alone.order, got.order), (alone.owner, got.owner)]
        pairs += list(zip(alone.mix or [None], got.mix or [None], strict=False))
        for a, b in pairs:
            same = a is b is None or (a is not None and b is not None and torch.equal(a, b))
            what = f"a sample of {n} tokens keeps other ones in a batch with samples of other sizes"
            _expect(method, same, f"{what}: choose from each sample as if it were alone")


def the_schedule_fits_any_model(method: Method) -> None:
    """Check that the cuts ascend, that tokens only become fewer, and that each cut works on what the last one left.

    A budget that layer 0 alone exceeds, as in a model of 4 layers, may be refused with SelectionError.
    """
    for layers in (4, 28, 32):
        for n, k in ((2, 1), (35, 9), (577, 64), (577, 576)):
            try:
                cuts = method.cuts(n, k, layers)
            except SelectionError:
                if n + layers - 1 <= k * layers:
                    raise
                continue
            if layers == 28 and n == 35:
                tokens = make_tokens(n)
                for cut in cuts:
                    tokens = dataclasses.replace(tokens, at_input=cut.layer < 0)
                    tokens = survivors(tokens, _checked_selection(method, tokens, cut.k, f"cut {tokens.cut}"))


def edges_of_the_budget(method: Method) -> None:
    """Check budgets of one token, of all but one, and of all, which must not need any signal."""
    for n in (2, 5, 577):
        for k in (1, n - 1):
            _checked_selection(method, make_tokens(n), k, f"{n} tokens")
    bare = Tokens(torch.randn(6, 4), [(1, 1, 6)])
    _expect(method, method.select(bare, 9).kept.tolist() == list(range(6)), "a budget above N must keep all")


def half_precision_equals_its_float32_copy(method: Method) -> None:
    """Check that the method computes in float32 or wider, unless it is declared `in_model_dtype`."""
    if method.in_model_dtype:
        return
    for dtype in (torch.bfloat16, torch.float16):
        half = make_tokens(64, 32, dtype=dtype)
        full = dataclasses.replace(half, features=half.features.float())
        a, b = (method.select(tokens, 16).kept for tokens in (half, full))
        what = f"{dtype} features select other tokens than their float32 copy"
        _expect(method, torch.equal(a, b), f"{what}: begin with tokens.features.float()")


def the_first_of_equals_goes_first(method: Method) -> None:
    """Check that of identical tokens a later one is not kept without those before it."""
    for seed in range(4):
        source = torch.randint(0, 8, (24,), generator=torch.Generator().manual_seed(seed))
        tokens = repeated(make_tokens(24, seed=seed, scores=SCORES[seed % 3]), source)
        for k in (1, 5, 11, 20):
            kept = torch.zeros(24, dtype=torch.bool)
            kept[method.select(tokens, k).kept] = True
            for original in source.unique():
                equal = kept[source == original].tolist()
                what = "of equal tokens it keeps a later one first: rank with methods.scores.top"
                _expect(method, equal == sorted(equal, reverse=True), what)


CHECKS: Sequence[Callable[[Method], None]] = (
    inputs_are_left_alone,
    randomness_comes_from_the_generator_alone,
    nothing_is_kept_between_calls,
    exactly_k_of_any_finite_input,
    no_nan_is_ranked,
    several_samples_are_as_one_by_one,
    the_schedule_fits_any_model,
    edges_of_the_budget,
    half_precision_equals_its_float32_copy,
)


def advice(method: Method) -> list[Advice]:
    """Return where a method waits for the device: numbers it reads back, and copies or sizes that each pick needs."""
    tokens, counts = DeclaredTokens.of(make_tokens(40), method.needs), []
    for k in (10, 30):
        with Operations(method) as seen, in_progress(method, tokens.features.device):
            method._select(tokens, k, torch.Generator().manual_seed(0))
        counts.append(seen.counts)
    few, many = counts
    kinds = {
        "read": "reads a number from the device (item, bool, int, float of a tensor): compute with the tensor",
        "sized": "waits for the device at each pick (nonzero, boolean masks, unique): use torch.where or index_fill",
        "copied": "waits for the device at each pick (tolist, numpy, cpu): keep the tensor on its device",
    }
    slow = [key for key in many if key[0] == "read" or (key[0] in kinds and many[key] > few[key] + 2)]
    return [Advice(kinds[kind], place) for kind, place in slow]


def _expect(method: Method, holds: bool, what: str, place: Place | None = None) -> None:
    if not holds:
        raise AssertionError(f"{method.name} broke its contract: {what}{at(place or line_of(method))}")


def _checked_selection(method: Method, tokens: Tokens, k: int, what: str) -> Selection:
    selection = method.select(tokens, k)  # which checks the indices itself
    kept = selection.kept.tolist()
    count = k if method.exact_k else len(kept)
    _expect(method, len(kept) == count and kept == sorted(set(kept)), f"not {k} distinct ascending indices of {what}")
    _expect(method, kept == method.select(tokens, k).kept.tolist(), f"two selections of {what} differ: {ALONE}")
    return selection

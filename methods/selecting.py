"""Selections from end to end: what comes is checked, the method chooses, and what it chose is checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from methods import checks
from methods.tokens import Selection, Tokens

if TYPE_CHECKING:
    from methods.base import Method

Given = tuple[
    Tokens, int, torch.Generator | None
]  # a sample, how many tokens to keep of it, and where chance comes from


def selections(method: Method, given: Iterable[Given], together: bool) -> list[Selection]:
    """Return a selection for each of the samples, which the method sees `together` or as they come.

    As they come no two are there at once: the state of a decoder layer is large.
    """
    if together:
        return _selections(method, list(given))
    return [_selections(method, [one])[0] for one in given]


def _selections(method: Method, given: Sequence[Given]) -> list[Selection]:
    sizes = [checks.tokens(method.name, tokens) for tokens, _, _ in given]
    ks = [checks.count(method.name, k, n) for (_, k, _), n in zip(given, sizes, strict=True)]
    device = given[0][0].features.device if given else torch.device("cpu")
    found = [Selection(kept=torch.arange(n, device=device)) for n in sizes]
    cut = [i for i, (k, n) in enumerate(zip(ks, sizes, strict=True)) if k < n]
    for i in cut:
        checks.signals(method.name, method.needs, given[i][0], sizes[i])
    if cut:
        samples, chosen = [given[i][0] for i in cut], [ks[i] for i in cut]
        generators = [given[i][2] or torch.Generator().manual_seed(0) for i in cut]
        # Autocast would take the similarities down to half precision behind the method's back.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            made = method._select_batch(samples, chosen, generators)
        for i, selection in zip(cut, made, strict=True):
            checks.selection(method.name, selection, sizes[i], ks[i])
            found[i] = selection
    return found

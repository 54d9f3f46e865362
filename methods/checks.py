"""Checks that `Method` makes before and after a selection; every failure is an error of one line."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from methods.tokens import Selection, Signal, Tokens, num_tokens

if TYPE_CHECKING:
    from methods.base import Method

# Methods compute in float32 or wider, where a larger value could become infinite.
LARGEST = torch.finfo(torch.float32).max
PLAIN_TYPES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
REMEDY = {
    "importance": "give the model a trained scorer (scorer=<folder>)",
    "text": "give the sample a question",
}


class SelectionError(ValueError):
    """The input or the output of a method breaks the contract; commands show the message as one line."""


def parameters(name: str, method: Method) -> None:
    """Raise ValueError for a parameter of the dataclass `method` that does not fit its annotation."""
    for field in fields(method):
        if not field.init:
            continue  # set later, by the method itself
        value, kind = getattr(method, field.name), hint(type(method), field.name)
        if get_origin(kind) is Literal:
            expected, fits = "one of " + ", ".join(map(str, get_args(kind))), value in get_args(kind)
        elif kind in PLAIN_TYPES:
            expected, fits = PLAIN_TYPES[kind], _is_plain(value, kind)
        else:
            continue
        if not fits:
            raise ValueError(f"{name}: {field.name} must be {expected}, not {value!r}")


def hint(method: type[Method], field: str) -> Any:
    """Return the annotation of one field; None where only a type checker can read it (`if TYPE_CHECKING: import`)."""
    owner = next(cls for cls in method.__mro__ if field in inspect.get_annotations(cls))
    alone = SimpleNamespace(__annotations__={field: inspect.get_annotations(owner)[field]})
    try:
        return get_type_hints(alone, vars(sys.modules[owner.__module__]))[field]
    except (NameError, AttributeError, TypeError, SyntaxError, KeyError):
        return None


def _is_plain(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def tokens(name: str, sample: Tokens) -> int:
    """Return N, after checking that the grids cover exactly the feature rows."""
    features = sample.features
    if features.dim() != 2:
        raise SelectionError(f"{name}: features must be [N, D], not {list(features.shape)}")
    n = len(features)
    covered = num_tokens(sample.grids)
    if any(len(grid) != 3 for grid in sample.grids) or covered != n:
        raise SelectionError(
            f"{name}: grids {list(sample.grids)} cover {covered} tokens, but there are {n} feature rows"
        )
    return n


def signals(name: str, needs: Iterable[Signal], sample: Tokens, n: int) -> None:
    """Raise SelectionError for a missing signal, and for a tensor that is not finite or has the wrong length."""
    for signal in sorted(needs):
        if getattr(sample, signal.value) is None:
            remedy = REMEDY.get(signal.value, "choose a model family that supplies it, or another method")
            raise SelectionError(f"{name} needs the signal '{signal.value}', which is missing: {remedy}")
    for label, tensor, per_token in _tensors(sample):
        if per_token and (tensor.dim() == 0 or len(tensor) != n):
            raise SelectionError(
                f"{name}: {label} must have one entry for each of {n} tokens, not {list(tensor.shape)}"
            )
        _finite(name, label, tensor)
    if sample.importance is not None and sample.importance.dim() != 1:
        raise SelectionError(f"{name}: importance must be [N], not {list(sample.importance.shape)}")
    if sample.llm is not None and sample.llm.visual_idx.shape != (n,):
        raise SelectionError(f"{name}: llm.visual_idx must be [{n}], not {list(sample.llm.visual_idx.shape)}")


def _tensors(sample: Tokens) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield (label, tensor, whether it has one row per visual token) for every tensor of the sample."""
    yield "features", sample.features, True
    if sample.importance is not None:
        yield "importance", sample.importance, True
    for role, scores in (sample.vit_attention or {}).items():
        yield f"vit_attention[{role}]", scores, True
    if sample.vit_keys is not None:
        yield "vit_keys", sample.vit_keys, True
    if sample.text is not None:
        yield "text", sample.text, False
    if sample.llm is not None:
        for part in ("q", "k", "hidden"):
            yield f"llm.{part}", getattr(sample.llm, part), False


def _finite(name: str, label: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise SelectionError(f"{name}: {label} must be floating point, not {tensor.dtype}")
    if not tensor.numel():
        return
    # One reduction without a temporary of the tensor's size; a comparison with NaN is false.
    if not bool(torch.linalg.vector_norm(tensor.detach(), ord=math.inf) <= LARGEST):
        bad = int((~(tensor.detach().abs() <= LARGEST)).sum())
        raise SelectionError(f"{name}: {label} has {bad} of {tensor.numel()} values that are NaN or beyond float32")


def count(name: str, k: Any, n: int) -> int:
    """Return the number of tokens to keep as an int; it is at least 1 unless there are no tokens."""
    try:
        number = operator.index(k)
    except TypeError:
        raise SelectionError(f"{name}: k must be an integer, not {k!r}") from None
    if number < min(n, 1):
        raise SelectionError(f"{name}: k must be at least 1, not {number}")
    return number


def selection(name: str, chosen: Any, n: int, k: int) -> None:
    """Raise SelectionError unless `chosen` has `k` distinct ascending indices; check its order and owners, too."""
    if not isinstance(chosen, Selection):
        raise SelectionError(
            f"{name} broke its contract: _select must return a Selection, not a {type(chosen).__name__}"
        )
    kept = _indices(name, "kept", chosen.kept, k, n)
    if not bool((kept.diff() > 0).all()):
        distinct = kept.unique().numel()
        fault = "not ascending" if distinct == k else f"only {distinct} distinct ones of {k}"
        raise SelectionError(f"{name} broke its contract: kept indices are {fault}")
    if chosen.order is not None and not torch.equal(_indices(name, "order", chosen.order, k, n).sort().values, kept):
        raise SelectionError(f"{name} broke its contract: order and kept hold different indices")
    if chosen.owner is not None:
        _indices(name, "owner", chosen.owner, n, k)


def _indices(name: str, label: str, idx: Any, length: int, limit: int) -> Tensor:
    if not isinstance(idx, Tensor) or idx.dtype != torch.int64 or idx.shape != (length,):
        got = f"{list(idx.shape)} of {idx.dtype}" if isinstance(idx, Tensor) else f"a {type(idx).__name__}"
        raise SelectionError(f"{name} broke its contract: {label} must be {length} int64 indices, not {got}")
    if not bool(((idx >= 0) & (idx < limit)).all()):
        raise SelectionError(f"{name} broke its contract: {label} holds an index outside 0..{limit - 1}")
    return idx

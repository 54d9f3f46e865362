"""Checks that `Method` makes before and after a selection; every failure is an error of one line."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import fields
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from methods.selecting import Selecting, SelectionError
from methods.tokens import Cut, Mix, Selection, Signal, Tokens, num_tokens

if TYPE_CHECKING:
    from methods.base import Method

# Methods compute in float32 or wider, where a larger value could become infinite.
LARGEST = torch.finfo(torch.float32).max
PLAIN_TYPES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}
SIGNATURES = {
    "_select": ("self", "tokens", "k", "generator"),
    "_select_batch": ("self", "samples", "ks", "generators"),
}
REMEDY = {
    "importance": "give the model a trained scorer (scorer=<folder>)",
    "text": "give the sample a question",
}


def declaration(method: type[Method]) -> None:
    """Raise ValueError for a class whose parameters or signals are not declared as methods declare them."""
    for cls in method.__mro__:
        if hasattr(cls, "__dataclass_fields__") and "__dataclass_fields__" not in vars(cls):
            for field, kind in inspect.get_annotations(cls).items():
                if not str(kind).removeprefix("typing.").startswith("ClassVar"):
                    remedy = "put @dataclass(kw_only=True) above the class"
                    raise ValueError(f"{cls.__name__}.{field} is annotated, which makes a parameter of it: {remedy}")
    if not isinstance(method.needs, property):
        needs(method.__name__, method.needs)
    if type(method.version) is not int or method.version < 0:
        raise ValueError(f"{method.__name__}.version must be a whole number, not {method.version!r}: write version = 1")
    for name, expected in SIGNATURES.items():
        signature = inspect.signature(getattr(method, name))
        try:
            signature.bind(*expected)
        except TypeError:
            remedy = f"it is called with ({', '.join(expected)})"
            raise ValueError(f"{method.__name__}.{name} cannot take {signature}: {remedy}") from None


def needs(name: str, value: Any) -> None:
    """Raise ValueError unless `value`, the `needs` of a method called `name`, is a set of signals."""
    if isinstance(value, Set) and all(isinstance(signal, Signal) for signal in value):
        return
    wanted = [value] if isinstance(value, str) else [*value] if isinstance(value, Iterable) else []
    signals = ", ".join(f"Signal.{Signal(word).name}" for word in wanted if word in tuple(Signal))
    choice = ", ".join(f"Signal.{signal.name}" for signal in Signal)
    remedy = f"write needs = frozenset({{{signals}}})" if signals else f"there are {choice}"
    raise ValueError(f"{name}.needs must be a set of Signal, not {value!r}: {remedy}")


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
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def schedule(name: str, cuts: Any, n: int, layers: int) -> tuple[Cut, ...]:
    """Return those cuts of a schedule for `n` tokens that drop something; ValueError if they do not fit `layers`."""
    if not isinstance(cuts, Sequence) or not all(isinstance(cut, Cut) for cut in cuts):
        raise ValueError(f"{name}.schedule must return a sequence of Cut(layer, k), not {cuts!r}")
    places = [operator.index(cut.layer) for cut in cuts]
    counts = [n, *(operator.index(cut.k) for cut in cuts)]
    if places != sorted(set(places)) or any(not -1 <= place <= layers - 2 for place in places):
        last = f"with {layers} decoder layers, {layers - 2} is the last with one behind it"
        raise ValueError(f"{name}.schedule cuts after layers {places}: they must ascend from -1, the input; {last}")
    if counts != sorted(counts, reverse=True) or counts[-1] < 1:
        raise ValueError(f"{name}.schedule keeps {counts[1:]} of {n} tokens: counts must not rise, nor fall below 1")
    dropping = zip(places, counts, counts[1:], strict=False)
    return tuple(Cut(place, after) for place, before, after in dropping if after < before)


def tokens(name: str, sample: Tokens) -> int:
    """Return N, after checking that the grids cover exactly the feature rows, or the places where these came from."""
    features = sample.features
    if features.dim() != 2:
        raise SelectionError(f"{name}: features must be [N, D], not {list(features.shape)}")
    n = len(features)
    covered = num_tokens(sample.grids)
    if sample.tiles is not None and sample.tiles.shape != (covered,):
        shape = list(sample.tiles.shape)
        raise SelectionError(f"{name}: tiles must be [{covered}], one crop for each token of the grids, not {shape}")
    origin = sample.origin
    if origin is not None and origin.shape == (n,) and n <= covered and all(len(grid) == 3 for grid in sample.grids):
        return n
    if any(len(grid) != 3 for grid in sample.grids) or covered != n:
        raise SelectionError(
            f"{name}: grids {list(sample.grids)} cover {covered} tokens, but there are {n} feature rows"
        )
    return n


def signals(name: str, declared: Iterable[Signal], sample: Tokens, n: int) -> None:
    """Raise SelectionError for a missing signal, and for a tensor that is not finite or has the wrong length."""
    needs(name, declared)  # an instance may have its own
    for signal in sorted(declared):
        if getattr(sample, signal.value) is None and not (signal == Signal.LLM and sample.at_input):
            remedy = REMEDY.get(signal.value, "choose a model family that supplies it, or another method")
            raise SelectionError(f"{name} needs the signal '{signal.value}', which is missing: {remedy}")
    for label, tensor, per_token in _tensors(sample):
        if per_token and (tensor.dim() == 0 or len(tensor) != n):
            raise SelectionError(
                f"{name}: {label} must have one entry for each of {n} tokens, not {list(tensor.shape)}"
            )
        _finite(name, label, tensor)
    importance, llm, text = (vars(sample)[name] for name in ("importance", "llm", "text"))  # no look at a hidden one
    if importance is not None and importance.dim() != 1:
        raise SelectionError(f"{name}: importance must be [N], not {list(importance.shape)}")
    width = sample.features.shape[1]
    if text is not None and text.shape[1:] != (width,):
        raise SelectionError(f"{name}: text must be [T, {width}] like the features, not {list(text.shape)}")
    if llm is not None and llm.visual_idx.shape != (n,):
        raise SelectionError(f"{name}: llm.visual_idx must be [{n}], not {list(llm.visual_idx.shape)}")


def _tensors(sample: Tokens) -> Iterator[tuple[str, Tensor, bool]]:
    """Yield (label, tensor, whether it has one row per visual token) for every tensor of the sample."""
    present = {name: value for name, value in vars(sample).items() if value is not None}
    for name in ("features", "importance", "vit_keys", "vit_features", "text", "text_after"):
        if name in present:
            yield name, present[name], name not in ("text", "text_after")
    for role, scores in present.get("vit_attention", {}).items():
        yield f"vit_attention[{role}]", scores, True
    if "llm" in present:
        for part in ("q", "k", "hidden"):
            yield f"llm.{part}", getattr(present["llm"], part), False


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


def number_of_selections(pending: Selecting, chosen: Any, count: int) -> None:
    """Raise SelectionError unless `chosen` has an entry for each of `count` samples."""
    if not isinstance(chosen, Sequence) or len(chosen) != count:
        got = f"{len(chosen)}" if isinstance(chosen, Sequence) else f"a {type(chosen).__name__}"
        raise pending.error(f"_select_batch must return a list of {count} selections, not {got}: one for each sample")


def selection(pending: Selecting, chosen: Any, n: int, k: int, device: torch.device) -> None:
    """Refuse a result that is not `k` distinct ascending indices on `device`; check its order and merges, too.

    A method whose `exact_k` is False may keep another number. What depends on the values of indices is left to
    `Selecting.settle`.
    """
    if not isinstance(chosen, Selection):
        remedy = "return Selection.of(indices)"
        raise pending.error(f"_select must return a Selection, not a {type(chosen).__name__}: {remedy}")
    if not pending.method.exact_k and isinstance(chosen.kept, Tensor) and 1 <= chosen.kept.numel() <= n:
        k = chosen.kept.numel()
    check = partial(_indices, pending, device=device)
    kept = check("kept", chosen.kept, k, n)

    def fault() -> str:
        distinct = kept.unique().numel()
        if distinct == k:
            return "kept indices are not ascending: return Selection.of(indices), which sorts them"
        return f"kept indices are only {distinct} distinct ones of {k}: exclude what is picked from later picks"

    pending.refuse((kept.diff() <= 0).any(), fault)
    if chosen.order is not None:
        order = check("order", chosen.order, k, n).sort().values
        pending.refuse((order != kept).any(), lambda: "order and kept hold different indices: use Selection.of(order)")
    if chosen.owner is not None and chosen.mix is not None:
        raise pending.error("it merges by owner and by mix: return one of them")
    if chosen.owner is not None:
        check("owner", chosen.owner, n, k)
    if chosen.mix is not None:
        _mix(pending, chosen.mix, check, n, k)


def _mix(pending: Selecting, mix: Any, check: Callable[[str, Any, int, int], Tensor], n: int, k: int) -> None:
    if not isinstance(mix, Mix) or not all(isinstance(part, Tensor) for part in mix):
        raise pending.error(f"mix must be a Mix of three tensors [E], not a {type(mix).__name__}")
    entries = len(mix.row)
    check("mix.row", mix.row, entries, k)
    check("mix.source", mix.source, entries, n)
    if mix.weight.shape != (entries,) or not mix.weight.is_floating_point() or mix.weight.device != mix.row.device:
        got = f"{list(mix.weight.shape)} of {mix.weight.dtype} on {mix.weight.device}"
        raise pending.error(f"mix.weight must be {entries} floating-point numbers on {mix.row.device}, not {got}")
    pending.refuse(~mix.weight.isfinite().all(), lambda: "mix.weight holds NaN or infinity: look for 0/0")


def _indices(pending: Selecting, label: str, idx: Any, length: int, limit: int, device: torch.device) -> Tensor:
    expected = f"{label} must be {length} int64 indices"
    if not isinstance(idx, Tensor):
        raise pending.error(f"{expected}, not a {type(idx).__name__}: return a tensor on {device}")
    if idx.dtype != torch.int64:
        raise pending.error(f"{expected}, not {list(idx.shape)} of {idx.dtype}: convert positions with .long()")
    if idx.shape != (length,):
        remedies = {"owner": "name a row of kept for each token", "mix.source": "name one for each row"}
        remedy = remedies.get(label, "return exactly k of them")
        raise pending.error(f"{expected}, not {list(idx.shape)}: {remedy}")
    if idx.device != device:
        remedy = "create it with device=tokens.features.device"
        raise pending.error(f"{label} must be on {device} like the features, not on {idx.device}: {remedy}")
    what = f"{label} holds an index outside 0..{limit - 1}"
    remedy = "they count the tokens of the sample from 0"
    remedy = {"owner": "owners are rows of kept", "mix.row": "these are rows of kept"}.get(label, remedy)
    pending.refuse(((idx < 0) | (idx >= limit)).any(), lambda: f"{what}: {remedy}")
    return idx

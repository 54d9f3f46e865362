"""Check the contract of a pruning method: `check_contract(MyPruner())` in a test says what is broken.

Each of CHECKS takes a method and raises AssertionError, or the ValueError of `Method.select`. The built-in methods pass
the same checks. docs/add-a-method.md shows how to use them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import LayerState, Method, Selection, Tokens
from methods.checks import LARGEST
from methods.tokens import num_tokens

FEATURES = ("normal", "duplicates", "equal", "zero", "zero_rows", "opposite", "huge", "tiny")
SCORES = ("normal", "equal", "few_levels", "huge", "outlier")
GRIDS = ([(1, 5, 7)], [(1, 3, 4), (1, 2, 2)], [(3, 2, 5)])  # an image, two of them, a video


def check_contract(method: Method, by_value: bool = False) -> None:
    """Run every check on `method`, in seconds, on the CPU.

    With `by_value`, check also that ties go to the lowest index: for methods without random numbers and positions.
    """
    for check in (*CHECKS, *([the_first_of_equals_goes_first] if by_value else [])):
        check(method)


def exactly_k_of_any_finite_input(method: Method) -> None:
    """Check that any finite input gives K distinct ascending indices, and the same ones again."""
    for features in FEATURES:
        for scores in SCORES:
            for seed, grids in enumerate(GRIDS):
                tokens = make_tokens(num_tokens(grids), 8, seed, features, scores, grids=grids)
                for k in (1, 9, len(tokens.features) - 1):
                    _checked_selection(method, tokens, k, f"{features} features and {scores} scores")


def edges_of_the_budget(method: Method) -> None:
    """Check budgets of one token, of all but one, and of all, which must not need any signal."""
    for n in (2, 5, 577):
        for k in (1, n - 1):
            _checked_selection(method, make_tokens(n), k, f"{n} tokens")
    bare = Tokens(torch.randn(6, 4), [(1, 1, 6)])
    _expect(method, method.select(bare, 9).kept.tolist() == list(range(6)), "a budget above N must keep all")


def half_precision_equals_its_float32_copy(method: Method) -> None:
    """Check that the method computes in float32 or wider."""
    for dtype in (torch.bfloat16, torch.float16):
        half = make_tokens(64, 32, dtype=dtype)
        full = dataclasses.replace(half, features=half.features.float())
        a, b = (method.select(tokens, 16).kept for tokens in (half, full))
        _expect(method, torch.equal(a, b), f"{dtype} features select other tokens than their float32 copy")


def randomness_comes_from_the_generator_alone(method: Method) -> None:
    """Check that neither the global generator nor earlier selections change a selection."""
    tokens, kept = make_tokens(40), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        kept.append(method.select(tokens, 13, torch.Generator().manual_seed(0)).kept)
    _expect(method, torch.equal(*kept), "the same generator gave two selections")


def no_pick_waits_for_the_device(method: Method) -> None:
    """Check that no number is read back, and that no pick copies to the host or has a size that depends on values."""
    tokens, total = make_tokens(40), []
    for k in (10, 30):
        with Copies() as copies, Waits() as waits:
            method._select(tokens, k, torch.Generator().manual_seed(0))
        _expect(method, not waits.reads, "it reads a number from the device (item, bool, int, float of a tensor)")
        total.append(waits.sized + copies.count)
    kinds = "tolist, numpy, cpu, nonzero, boolean masks, unique"
    _expect(method, total[1] <= total[0] + 2, f"it waits for the device at each pick ({kinds})")


def several_samples_are_as_one_by_one(method: Method) -> None:
    """Check that samples of different sizes, selected in one batch, keep what each keeps alone."""
    sizes, ks = (40, 6, 23, 577), (13, 9, 5, 144)
    samples = [make_tokens(n, seed=n) for n in sizes]
    together = method.select_batch(samples, ks, [torch.Generator().manual_seed(n) for n in sizes])
    for tokens, n, k, got in zip(samples, sizes, ks, together, strict=True):
        alone = method.select(tokens, k, torch.Generator().manual_seed(n))
        for a, b in ((alone.kept, got.kept), (alone.order, got.order), (alone.owner, got.owner)):
            same = a is b is None or (a is not None and b is not None and torch.equal(a, b))
            _expect(method, same, f"a sample of {n} tokens keeps other ones in a batch with samples of other sizes")


def inputs_are_left_alone(method: Method) -> None:
    """Check that a selection does not write into its input tensors."""
    tokens, fresh = make_tokens(20, seed=3), make_tokens(20, seed=3)
    method.select(tokens, 7)
    same = zip(_tensors(tokens), _tensors(fresh), strict=True)
    _expect(method, all(torch.equal(a, b) for a, b in same), "it writes into its input")


def the_first_of_equals_goes_first(method: Method) -> None:
    """Check that of identical tokens a later one is not kept without those before it."""
    for seed in range(4):
        source = torch.randint(0, 8, (24,), generator=torch.Generator().manual_seed(seed))
        tokens = _repeated(make_tokens(24, seed=seed, scores=SCORES[seed % 3]), source)
        for k in (1, 5, 11, 20):
            kept = torch.zeros(24, dtype=torch.bool)
            kept[method.select(tokens, k).kept] = True
            for original in source.unique():
                equal = kept[source == original].tolist()
                _expect(method, equal == sorted(equal, reverse=True), "of equal tokens it keeps a later one first")


CHECKS: Sequence[Callable[[Method], None]] = (
    inputs_are_left_alone,
    exactly_k_of_any_finite_input,
    several_samples_are_as_one_by_one,
    edges_of_the_budget,
    half_precision_equals_its_float32_copy,
    randomness_comes_from_the_generator_alone,
    no_pick_waits_for_the_device,
)


def make_tokens(
    n: int,
    d: int = 8,
    seed: int = 0,
    features: str = "normal",
    scores: str = "normal",
    dtype: torch.dtype = torch.float32,
    grids: Sequence[tuple[int, int, int]] = (),
) -> Tokens:
    """Make a sample with every signal; `features` is one of FEATURES and `scores` one of SCORES."""
    generator = torch.Generator().manual_seed(seed)
    sequence = n + 5
    return Tokens(
        features=_features(features, n, d, generator).to(dtype),
        grids=grids or [(1, 1, n)],
        importance=_scores(scores, n, generator),
        vit_attention={role: _scores(scores, n, generator).abs() for role in ("last", "middle")},
        vit_keys=_features(features, n, d, generator),
        llm=LayerState(
            q=torch.randn(4, sequence, 8, generator=generator),
            k=torch.randn(2, sequence, 8, generator=generator),
            hidden=torch.randn(sequence, d, generator=generator),
            visual_idx=torch.arange(2, 2 + n),
        ),
        text=torch.randn(3, d, generator=generator),
    )


def _repeated(tokens: Tokens, source: Tensor) -> Tokens:
    """Return the sample whose visual token i is token source[i] of `tokens`, in every signal."""

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[source]

    assert tokens.llm is not None
    order = torch.arange(len(tokens.llm.hidden))
    order[tokens.llm.visual_idx] = tokens.llm.visual_idx[source]
    llm = dataclasses.replace(
        tokens.llm, q=tokens.llm.q[:, order], k=tokens.llm.k[:, order], hidden=tokens.llm.hidden[order]
    )
    return dataclasses.replace(
        tokens,
        features=tokens.features[source],
        importance=rows(tokens.importance),
        vit_attention={role: scores[source] for role, scores in (tokens.vit_attention or {}).items()},
        vit_keys=rows(tokens.vit_keys),
        llm=llm,
    )


class Waits(TorchDispatchMode):
    """Count operations that wait for the device: reading a number, and results whose size depends on values."""

    aten = torch.ops.aten
    SIZED = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive)

    def __init__(self) -> None:
        super().__init__()
        self.reads = self.sized = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one call and pass it on."""
        masks = args[1] if func.overloadpacket in (self.aten.index, self.aten.index_put_) else ()
        self.reads += func.overloadpacket is self.aten._local_scalar_dense
        self.sized += func.overloadpacket in self.SIZED or any(m is not None and m.dtype == torch.bool for m in masks)
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Count copies of whole tensors to the host, which on the CPU are no operations that `Waits` could see."""

    NAMES = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one call and pass it on."""
        self.count += func in self.NAMES
        return func(*args, **(kwargs or {}))


def _expect(method: Method, holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"{method.name} broke its contract: {what}")


def _checked_selection(method: Method, tokens: Tokens, k: int, what: str) -> Selection:
    selection = method.select(tokens, k)  # which checks the indices itself
    kept = selection.kept.tolist()
    _expect(method, len(kept) == k and kept == sorted(set(kept)), f"not {k} distinct ascending indices of {what}")
    _expect(method, kept == method.select(tokens, k).kept.tolist(), f"two selections of {what} differ")
    return selection


def _tensors(tokens: Tokens) -> list[Tensor]:
    layer = [] if tokens.llm is None else [tokens.llm.q, tokens.llm.k, tokens.llm.hidden]
    signals = [tokens.features, tokens.importance, tokens.vit_keys, tokens.text, *layer]
    return [tensor for tensor in (*signals, *(tokens.vit_attention or {}).values()) if tensor is not None]


def _features(kind: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator)
    if kind == "duplicates":
        x = x[torch.randint(0, max(n // 3, 1), (n,), generator=generator)]
    elif kind == "equal":
        x = x[:1].expand(n, d).clone()
    elif kind == "zero":
        x = torch.zeros(n, d)
    elif kind == "zero_rows":
        x[::2] = 0
    elif kind == "opposite":
        x[1::2] = -x[: n // 2 * 2 : 2]
    elif kind == "huge":
        x = (x * 1e38).clamp(-LARGEST, LARGEST)
    elif kind == "tiny":
        x = x * 1e-38
    return x


def _scores(kind: str, n: int, generator: torch.Generator) -> Tensor:
    w = torch.randn(n, generator=generator)
    if kind == "equal":
        w = torch.full((n,), 0.3)
    elif kind == "few_levels":
        w = w.round()
    elif kind == "huge":
        w = torch.where(w > 0, LARGEST, -LARGEST)
    elif kind == "outlier":
        w[n // 2] = 1e30
    return w

"""Watch the operations of a selection: what waits for the device, ranks NaN, draws at random or writes, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from methods.base import Method
from methods.selecting import Place, line_of

aten = torch.ops.aten
SIZED_BY_VALUES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive)
RANKING = (aten.sort, aten.argsort, aten.topk, aten.kthvalue, aten.argmax, aten.argmin)
RANKING_ALONG = (aten.max.dim, aten.min.dim)
COPYING = (Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu)


class Operations(TorchDispatchMode):
    """Count what an author should know of, by kind and by line of the method's own code.

        "read"    a number is read back from the device: item, bool, int or float of a tensor
        "sized"   the size of a result depends on values, so the host waits for it
        "copied"  a tensor is copied to the host
        "drawn"   a random number comes from another source than `generator`
        "nan"     scores that hold NaN are ranked
        "written" one of `inputs` is written to

    Args:
        method: the method that runs.
        inputs: tensors that it must leave alone.
        generator: the source of random numbers that it should use.
    """

    def __init__(self, method: Method, inputs: Iterable[Tensor] = (), generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, Place | None]] = Counter()
        self._method = method
        self._inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs if tensor.numel()}
        self._generator = generator
        self._copies = _Copies(self)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Watch no longer."""
        super().__exit__(*error)
        self._copies.__exit__(*error)

    def total(self, kind: str) -> int:
        """Return how often `kind` occurred."""
        return sum(count for (name, _), count in self.counts.items() if name == kind)

    def places(self, kind: str) -> list[Place | None]:
        """Return the lines at which `kind` occurred, in order of occurrence."""
        return [place for name, place in self.counts if name == kind]

    def note(self, kind: str) -> None:
        """Count `kind` at the running line."""
        self.counts[kind, line_of(self._method)] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one operation and execute it."""
        for kind in self._kinds(func, args, kwargs or {}):
            self.note(kind)
        return func(*args, **(kwargs or {}))

    def _kinds(self, func: Any, args: Any, kwargs: Any) -> Iterator[str]:
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense:
            yield "read"
        masks = args[1] if packet in (aten.index, aten.index_put_) else ()
        if packet in SIZED_BY_VALUES or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            yield "sized"
        if torch.Tag.nondeterministic_seeded in func.tags and not any(map(self._is_generator, kwargs.values())):
            yield "drawn"
        if (packet in RANKING or func in RANKING_ALONG) and _has_nan(args[0]):
            yield "nan"
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        changed = (a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        if any(self._is_input(named.get(name)) for name in changed):
            yield "written"

    def _is_input(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._inputs

    def _is_generator(self, value: Any) -> bool:
        """Return whether an argument is the generator, of which operations get copies that share its state."""
        given = self._generator
        return isinstance(value, torch.Generator) and given is not None and given.get_state().equal(value.get_state())


class _Copies(TorchFunctionMode):
    """Note copies of whole tensors to the host, which on the CPU are no operations."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at one function and call it."""
        if func in COPYING:
            self._operations.note("copied")
        return func(*args, **(kwargs or {}))


def _has_nan(scores: Tensor) -> bool:
    return scores.is_floating_point() and bool(scores.isnan().any())

"""Fake devices: tensors that report a device and, as on real devices, cannot be mixed with tensors of others.

They compute on the CPU. "cpu:1" and "cpu:2" stand for two GPUs, since torch needs no driver for them.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
TAKES_INDICES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class Placed(torch.Tensor):
    """A tensor that reports to be on `device`."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, device):
        size, stride = held.size(), held.stride()
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, size, strides=stride, storage_offset=held.storage_offset(), dtype=held.dtype, device=device
        )
        tensor.held = held
        return tensor

    def __repr__(self):
        return f"Placed({self.held}, {self.device})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = tree_flatten((args, kwargs))[0]
        tensors = [item for item in leaves if isinstance(item, torch.Tensor)]
        first = tensors[0] if tensors else None
        mixed = tensors[:1] if function in TAKES_INDICES | MOVES else [t for t in tensors if t.ndim]
        places = {_place(tensor) for tensor in mixed} or {_place(tensor) for tensor in tensors}
        scalars = {_place(tensor) for tensor in tensors if not tensor.ndim} - {torch.device("cpu")}
        if function not in TAKES_INDICES | MOVES:
            places |= scalars
        if len(places) > 1:
            raise RuntimeError(f"{function} of tensors on {', '.join(sorted(map(str, places)))}")
        if function in TAKES_INDICES:
            here = _place(first)
            others = {_place(tensor) for tensor in tensors[1:] if tensor.ndim} - {here, torch.device("cpu")}
            if others:
                raise RuntimeError(f"{function} on {here} by indices on {others}")
        (place,) = places or {torch.device("cpu")}
        if kwargs.get("device") is not None:
            place = torch.device(kwargs["device"])
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None) if not kwargs.get("pin_memory") else None
        holders = {id(t.held): t for t in tensors if isinstance(t, Placed)}
        out = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        if torch.Tag.inplace_view in function.tags:
            with no_dispatch():  # squeeze_ and similar functions change the shape of the wrapper
                function(*args, **kwargs)

        def wrap(item):
            if not isinstance(item, torch.Tensor):
                return item
            if id(item) in holders:
                return holders[id(item)]
            return Placed(item, place) if place.index else item

        return tree_map(wrap, out)


def _held(item):
    return item.held if isinstance(item, Placed) else item


def _place(tensor):
    return tensor.device


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Placed)]
        if tensors or (device is not None and torch.device(device).index):
            return Placed.__torch_dispatch__(function, types, args, kwargs)
        return function(*args, **kwargs)


class _Making(TorchFunctionMode):
    """Replace `torch.tensor` and `new_tensor`, which read the memory of tensors in a list and know only one CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.new_tensor and isinstance(args[0], Placed):
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if function is not torch.tensor:
            return function(*args, **(kwargs or {}))
        data = tree_map(lambda item: item.tolist() if isinstance(item, Placed) else item, args)
        options = dict(kwargs or {})
        place = options.pop("device", None)
        tensor = torch.tensor(*data, **options)
        return tensor if place is None else tensor.to(place)


@contextmanager
def pretended_devices():
    """Let torch make tensors on "cpu:1" and other fake devices within the block."""
    # Otherwise Module.to keeps the old parameter with new memory: it reports "cpu:1" but is not a Placed.
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Making(), _Pretending():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)

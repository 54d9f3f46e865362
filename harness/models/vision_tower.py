"""Reading the vision tower while it runs: attention received and keys, through hooks on one or two of its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.models.attention import received
from harness.models.calls import Arguments, Call, CallSite, HookError
from harness.models.hooks import Handles, submodule
from methods.base import AttentionSpec, Method, Signal


@dataclass(frozen=True, eq=False)
class VisionSignals:
    """What was read of N visual tokens, in the order in which they enter the LLM."""

    attention: Mapping[str, Tensor]  # {role: [N]}
    keys: Tensor | None  # [N, d]

    def at(self, index: Tensor) -> VisionSignals:
        """Take the tokens `index`."""
        rows = {role: scores[index.to(scores.device)] for role, scores in self.attention.items()}
        return VisionSignals(rows, None if self.keys is None else self.keys[index.to(self.keys.device)])

    def fields(self, device: torch.device) -> dict[str, Any]:
        """Return those fields of `Tokens` that this fills."""
        attention = {role: scores.to(device) for role, scores in self.attention.items()}
        return {"vit_attention": attention or None, "vit_keys": None if self.keys is None else self.keys.to(device)}

    @classmethod
    def joined(cls, parts: Sequence[VisionSignals]) -> VisionSignals:
        """Put the tokens of several passes one behind the other."""
        attention = {role: torch.cat([part.attention[role] for part in parts]) for role in parts[0].attention}
        keys = [part.keys for part in parts if part.keys is not None]
        return cls(attention, torch.cat(keys) if keys else None)


class VisionTower(ABC):
    """What a family has to know of its vision tower so that it can be read.

    The rows of a layer are those of the images (or steps of videos) of a pass, one behind the other, flat.
    """

    path: ClassVar[str]
    arguments: ClassVar[Arguments]  # of the tower that its methods read
    attention_arguments: ClassVar[Arguments] = Arguments.of("")  # of a layer's attention
    has_cls: ClassVar[bool]  # the first row of every image is CLS
    # HiPrune's layer, counted from 0: its authors' ("official"), and what became of it in arXiv 2602.13315 ("paper").
    middle: ClassVar[Mapping[str, int]]
    middle_of: ClassVar[int]  # the depth of the tower that these are of; another has its middle at the same share

    @property
    @abstractmethod
    def depth(self) -> int:
        """The number of layers."""

    @property
    def last(self) -> int:
        """The layer whose output the features are, 0-based."""
        return self.depth - 1

    def layer(self, role: str, numbering: str) -> int:
        """Return the 0-based layer that plays `role` ("last", "middle") in the numbering "official" or "paper"."""
        return self.last if role == "last" else self.middle[numbering] * self.depth // self.middle_of

    @abstractmethod
    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return the names of a layer's attention module and of the projections whose outputs hold q and k."""

    @abstractmethod
    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d], positions applied, from the arguments of the attention and the projections."""

    @abstractmethod
    def units(self, call: Call) -> list[int]:
        """Return the rows, CLS included, of each image or step of a video; `call` are the arguments of the tower."""

    @abstractmethod
    def merged(self, patches: Tensor, call: Call) -> Tensor:
        """Average `patches` [F, ...], without CLS, into the tokens [N, ...] that leave the tower, in their order."""

    def group(self) -> int:
        """Return how many patches are merged into one token."""
        return 1


@dataclass(frozen=True)
class Reading:
    """What a method reads of the vision tower."""

    received: AttentionSpec | None
    keys: bool

    @classmethod
    def of(cls, method: Method) -> Reading | None:
        """Return what `method` needs, or None if that is nothing."""
        received = method.attention_spec if Signal.VIT_ATTENTION in method.needs else None
        keys = Signal.VIT_KEYS in method.needs
        return cls(received, keys) if received or keys else None


class VisionReader:
    """The hooks for one `Reading`; `take` gives what the last pass through the tower had."""

    def __init__(self, tower: VisionTower, reading: Reading) -> None:
        self._tower = tower
        self._wanted = reading.received or AttentionSpec()
        self._keys = reading.keys
        self._roles: dict[int, list[str]] = {}
        for role in self._wanted.roles if reading.received else ():
            self._roles.setdefault(tower.layer(role, self._wanted.numbering), []).append(role)
        self._key_layer = tower.layer("last", self._wanted.numbering)
        if self._keys:
            self._roles.setdefault(self._key_layer, [])
        self._call: Call | None = None
        self._open: dict[int, tuple[nn.Module, Call, list[Tensor]]] = {}
        self._attention: dict[str, Tensor] = {}
        self._read: set[int] = set()
        self._last_keys: Tensor | None = None

    def attach(self, model: nn.Module, handles: Handles) -> None:
        """Hook the tower and the layers to read."""
        tower = self._tower
        handles.before(CallSite(submodule(model, tower.path), tower.path, tower.arguments), self._enter)
        for layer in self._roles:
            path, projections = tower.paths(layer)
            attention = submodule(model, path)
            site = CallSite(attention, path, tower.attention_arguments)
            handles.before(site, partial(self._enter_attention, layer, attention))
            for projection in projections:
                handles.output(submodule(model, projection), partial(self._project, layer, len(projections)))

    def take(self) -> VisionSignals:
        """Return what the pass that just ended had."""
        unread = sorted(set(self._roles) - self._read)
        if unread:
            name = f"layer {unread[0]} of '{self._tower.path}'"
            raise HookError(f"{name} ran without its projections, so that its attention cannot be read")
        signals = VisionSignals(self._attention, self._last_keys)
        self.forget()
        return signals

    def forget(self) -> None:
        """Drop what the last pass left."""
        self._call, self._open, self._attention, self._read, self._last_keys = None, {}, {}, set(), None

    def _enter(self, call: Call) -> None:
        self.forget()
        self._call = call

    def _enter_attention(self, layer: int, attention: nn.Module, call: Call) -> None:
        self._open[layer] = (attention, call, [])

    def _project(self, layer: int, count: int, output: Tensor) -> None:
        attention, call, projected = self._open[layer]
        projected.append(output.detach())
        if len(projected) == count:
            # Read at once, so that no q and k outlive their layer.
            del self._open[layer]
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                q, k = self._tower.qk(attention, call, projected)
                self._read_layer(layer, q, k, float(getattr(attention, "scaling", q.shape[-1] ** -0.5)))

    def _read_layer(self, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        tower, cls, call = self._tower, int(self._tower.has_cls), self._call
        if call is None:
            raise HookError(f"layer {layer} of '{tower.path}' ran outside a pass through the tower")
        units = tower.units(call)
        if self._roles[layer]:
            parts = zip(q.split(units, dim=1), k.split(units, dim=1), strict=True)
            patches = torch.cat([received(*part, scale, self._wanted, tower.has_cls) for part in parts])
            scores = tower.merged(patches, call) * tower.group()
            self._attention |= dict.fromkeys(self._roles[layer], scores)
        if self._keys and layer == self._key_layer:
            means = torch.cat([part[cls:] for part in k.float().mean(0).split(units)])
            self._last_keys = tower.merged(means, call)
        self._read.add(layer)


def dealt(kinds: Tensor, read: Mapping[int, VisionSignals]) -> list[VisionSignals]:
    """Deal out what was read, by kind (1 image, 2 video), to the prompts whose placeholders are `kinds` [P, S]."""
    where = kinds > 0
    codes, start = kinds[where], 0
    index = torch.zeros_like(codes, dtype=torch.int64)
    for code, count in ((code, _length(signals)) for code, signals in read.items()):
        mine = (codes == code).nonzero().squeeze(1)
        if len(mine) != count:
            break
        index[mine] = torch.arange(start, start + count, device=index.device)
        start += count
    if start != len(codes):
        raise ValueError(
            f"of {len(codes)} visual tokens {start} were encoded by the vision tower inside the prune block: pass "
            "pixels, not embeddings, to a method that reads the tower"
        )
    together = VisionSignals.joined(list(read.values()))
    return [together.at(part) for part in index.split(where.sum(1).tolist())]


def _length(signals: VisionSignals) -> int:
    return len(next(iter(signals.attention.values())) if signals.keys is None else signals.keys)

"""Read attention, keys and states of the vision tower while it runs, with hooks on one or two of its layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.models.attention import attention_received
from harness.models.calls import Arguments, Call, CallSite, HookError
from harness.models.hooks import Handles, submodule
from methods.base import AttentionSpec, Method, Signal
from methods.kernels.model_dtype import is_half


def refuse_old_names(cls: type, renamed: Mapping[str, str]) -> None:
    """Raise TypeError if a class defines a method under a name that is no longer called."""
    for old, new in renamed.items():
        if old in cls.__dict__:
            raise TypeError(f"{cls.__name__}.{old} would not be called: rename it to {new}")


@dataclass(frozen=True, eq=False)
class VisionSignals:
    """Signals of N visual tokens, in the order in which they enter the language model."""

    attention: Mapping[str, Tensor]  # {role: [N]}
    keys: Tensor | None  # [N, d]
    features: Tensor | None  # [N, C]
    has_cls: bool  # of the tower

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def at(self, index: Tensor) -> VisionSignals:
        """Return the signals of the tokens `index`."""
        return self.mapped(lambda rows: rows[index.to(rows.device)])

    def fields(self, device: torch.device) -> dict[str, Any]:
        """Return the signals as fields of `Tokens`."""
        moved = self.mapped(lambda rows: rows.to(device))
        signals = {"vit_attention": moved.attention or None, "vit_keys": moved.keys, "vit_features": moved.features}
        return {**signals, "has_cls": self.has_cls}

    @classmethod
    def concatenated(cls, parts: Sequence[VisionSignals]) -> VisionSignals:
        """Concatenate the tokens of several passes."""
        tensors = zip(*(part._tensors() for part in parts), strict=True)
        return parts[0].mapped(lambda rows: torch.cat(next(tensors)))

    def _tensors(self) -> list[Tensor]:
        return [*self.attention.values(), *(rows for rows in (self.keys, self.features) if rows is not None)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> VisionSignals:
        """Return these signals with every tensor changed, in the order of `_tensors`."""
        attention = {role: change(scores) for role, scores in self.attention.items()}
        keys, features = (None if rows is None else change(rows) for rows in (self.keys, self.features))
        return VisionSignals(attention, keys, features, self.has_cls)


class VisionTower(ABC):
    """Description of a family's vision tower, for reading signals from it.

    The rows of a layer are those of all images, or time steps of videos, of a pass, concatenated.
    """

    path: ClassVar[str]
    arguments: ClassVar[Arguments]  # of the tower, if the methods below read them
    attention_arguments: ClassVar[Arguments] = Arguments.of("")  # of a layer's attention, likewise
    has_cls: ClassVar[bool]  # the first row of every image is CLS
    # HiPrune's layer, 0-based: "official" is its authors' choice, "paper" that of arXiv 2602.13315.
    middle: ClassVar[Mapping[str, int]]
    middle_of: ClassVar[int]  # depth of the tower for which `middle` was chosen; it is scaled to other depths

    def __init_subclass__(cls) -> None:
        refuse_old_names(cls, {"units": "segments", "merged": "merge", "group": "patches_per_token"})

    @property
    @abstractmethod
    def depth(self) -> int:
        """The number of layers."""

    @property
    def last(self) -> int:
        """The layer whose output the features are, 0-based."""
        return self.depth - 1

    def layer(self, role: str, numbering: str) -> int:
        """Return the 0-based layer for `role` ("last", "after", "middle") in the numbering "official" or "paper".

        Where the features are the output of the last layer of all, that layer is also the one "after" them.
        """
        if role in ("last", "after"):
            return self.last if role == "last" else min(self.last + 1, self.depth - 1)
        return self.middle[numbering] * self.depth // self.middle_of

    @abstractmethod
    def paths(self, layer: int) -> tuple[str, Sequence[str]]:
        """Return the names of a layer's attention module and of the projections whose outputs hold q and k."""

    def block(self, layer: int) -> str:
        """Return the name of a layer, whose output is states [T, C] or [images, T, C]."""
        return self.paths(layer)[0].rpartition(".")[0]

    @abstractmethod
    def qk(self, attention: nn.Module, call: Call, projected: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return q and k [H, T, d], positions applied; `projected` are the outputs of the projections of `paths`."""

    @abstractmethod
    def segments(self, call: Call) -> list[int]:
        """Return the number of rows, with CLS, of each image or time step; `call` holds the arguments of the tower."""

    @abstractmethod
    def merge(self, patches: Tensor, call: Call) -> Tensor:
        """Average `patches` [F, ...], without CLS, to tokens [N, ...] in the order of the tower's output."""

    def patches_per_token(self) -> int:
        """Return the number of patches that are merged into one token."""
        return 1


@dataclass(frozen=True)
class Reading:
    """The signals that a method reads from the vision tower."""

    received: AttentionSpec | None
    keys: bool
    features: bool

    @classmethod
    def of(cls, method: Method) -> Reading | None:
        """Return the signals that `method` needs, or None if there are none."""
        received = method.attention_spec if Signal.VIT_ATTENTION in method.needs else None
        keys, features = Signal.VIT_KEYS in method.needs, Signal.VIT_FEATURES in method.needs
        return cls(received, keys, features) if received or keys or features else None

    @property
    def spec(self) -> AttentionSpec:
        """How q and k are read."""
        return self.received or AttentionSpec()

    def key_layer(self, tower: VisionTower) -> int | None:
        """Return the layer whose keys are read, if any."""
        return tower.layer(self.spec.roles[0], self.spec.numbering) if self.keys else None

    def layers(self, tower: VisionTower) -> dict[int, list[str]]:
        """Return the layers whose q and k are read, with the roles of those whose attention is."""
        roles: dict[int, list[str]] = {}
        for role in self.spec.roles if self.received else ():
            roles.setdefault(tower.layer(role, self.spec.numbering), []).append(role)
        if (layer := self.key_layer(tower)) is not None:
            roles.setdefault(layer, [])
        return roles


class VisionReader:
    """Hooks that read the signals of a `Reading`; `take` returns those of the last pass through the tower."""

    def __init__(self, tower: VisionTower, reading: Reading) -> None:
        self._tower = tower
        self._spec, self._reads_features = reading.spec, reading.features
        self._roles, self._key_layer = reading.layers(tower), reading.key_layer(tower)
        self._call: Call | None = None
        self._open: dict[int, tuple[nn.Module, Call, dict[int, Tensor]]] = {}
        self._attention: dict[str, Tensor] = {}
        self._read: set[int] = set()
        self._read_keys: Tensor | None = None
        self._features: Tensor | None = None

    def attach(self, model: nn.Module, handles: Handles) -> None:
        """Hook the tower and the layers to read."""
        tower = self._tower
        handles.before(CallSite(submodule(model, tower.path), tower.path, tower.arguments), self._enter)
        for layer in self._roles:
            path, projections = tower.paths(layer)
            attention = submodule(model, path)
            site = CallSite(attention, path, tower.attention_arguments)
            handles.before(site, partial(self._enter_attention, layer, attention))
            for number, projection in enumerate(projections):
                handles.on_output(submodule(model, projection), partial(self._project, layer, number, len(projections)))
        if self._reads_features:
            handles.on_output(submodule(model, tower.block(tower.last)), self._leave_last)

    def take(self) -> VisionSignals:
        """Return the signals of the pass that just ended."""
        unread = sorted(set(self._roles) - self._read)
        if unread:
            name = f"layer {unread[0]} of '{self._tower.path}'"
            raise HookError(f"{name} ran without its projections, so that its attention cannot be read")
        if self._reads_features and self._features is None:
            raise HookError(f"layer {self._tower.last} of '{self._tower.path}' did not run, so that it cannot be read")
        signals = VisionSignals(self._attention, self._read_keys, self._features, self._tower.has_cls)
        self.forget()
        return signals

    def forget(self) -> None:
        """Drop the state of the last pass."""
        self._call, self._open, self._attention, self._read = None, {}, {}, set()
        self._read_keys = self._features = None

    def _enter(self, call: Call) -> None:
        self.forget()
        self._call = call

    def _enter_attention(self, layer: int, attention: nn.Module, call: Call) -> None:
        if self._call is not None:  # else gradient checkpointing repeats the layer in the backward pass
            self._open[layer] = (attention, call, {})

    def _project(self, layer: int, number: int, count: int, output: Tensor) -> None:
        """Note what projection `number` of `count` gave; libraries call them in any order."""
        if layer not in self._open:
            return
        attention, call, outputs = self._open[layer]
        outputs[number] = output.detach()
        if len(outputs) == count:
            # Reading here frees q and k with their layer.
            del self._open[layer]
            with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                q, k = self._tower.qk(attention, call, [outputs[number] for number in range(count)])
                scale = float(getattr(attention, "scaling", q.shape[-1] ** -0.5))
                if self._spec.heads == "joined":
                    q, k = (part.transpose(0, 1).flatten(1).unsqueeze(0) for part in (q, k))
                    scale = q.shape[-1] ** -0.5
                self._read_layer(layer, q, k, scale)

    def _leave_last(self, output: Any) -> None:
        if self._call is not None:
            states = output[0] if isinstance(output, tuple) else output  # in older versions
            self._features = self._merged(states.detach().flatten(0, -2).float())

    def _merged(self, rows: Tensor) -> Tensor:
        """Average the `rows` [T, ...] of a pass, CLS left out, to tokens [N, ...]."""
        assert self._call is not None
        cls, segments = int(self._tower.has_cls), self._tower.segments(self._call)
        return self._tower.merge(torch.cat([part[cls:] for part in rows.split(segments)]), self._call)

    def _read_layer(self, layer: int, q: Tensor, k: Tensor, scale: float) -> None:
        assert self._call is not None  # the layer is open only within a pass through the tower
        if self._roles[layer]:
            scores = _wide(self._received(q, k, scale))
            self._attention |= dict.fromkeys(self._roles[layer], scores)
        if layer == self._key_layer:
            rounded = self._spec.in_model_dtype and is_half(k)
            # The comparison averages heads last.
            keys = self._merged(k.transpose(0, 1)).mean(1) if rounded else self._merged(k.float().mean(0))
            self._read_keys = _wide(keys)
        self._read.add(layer)

    def _received(self, q: Tensor, k: Tensor, scale: float) -> Tensor:
        """Return the attention [N] that tokens receive from q and k [H, T, d] of a pass."""
        tower, call, spec = self._tower, self._call, self._spec
        assert call is not None
        segments, cls, group = tower.segments(call), int(tower.has_cls), tower.patches_per_token()
        keys = k.split(segments, dim=1)
        if keys_are_tokens := spec.keys == "tokens" and group > 1:
            sizes = [(segment - cls) // group for segment in segments]
            means = self._merged(_wide(k).transpose(0, 1)).transpose(0, 1).split(sizes, dim=1)
            keys = [torch.cat([_wide(rows[:, :cls]), mean], 1) for rows, mean in zip(keys, means, strict=True)]
        pairs = zip(q.split(segments, dim=1), keys, strict=True)
        received = torch.cat([attention_received(*pair, scale, spec, tower.has_cls) for pair in pairs])
        return received if keys_are_tokens else tower.merge(received, call) * group


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if is_half(tensor) else tensor


def split_signals(kinds: Tensor, read: Mapping[int, VisionSignals]) -> list[VisionSignals]:
    """Split signals, by kind (1 image, 2 video), among the prompts with placeholders `kinds` [P, S]."""
    visual = kinds > 0
    codes, start = kinds[visual], 0
    index = torch.zeros_like(codes, dtype=torch.int64)
    for code, count in ((code, len(part)) for code, part in read.items()):
        places = (codes == code).nonzero().squeeze(1)
        if len(places) != count:
            break
        index[places] = torch.arange(start, start + count, device=index.device)
        start += count
    if start != len(codes):
        raise ValueError(
            f"of {len(codes)} visual tokens {start} were encoded by the vision tower inside the prune block: pass "
            "pixels, not embeddings, to a method that reads the tower"
        )
    signals = VisionSignals.concatenated(list(read.values()))
    return [signals.at(part) for part in index.split(visual.sum(1).tolist())]

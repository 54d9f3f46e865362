"""What answers depend on; with the tasks, which `run_plan` adds, it is the identity of a run.

Weights, data and parameters count by content. Our code counts by declared versions, so that a comment or a new name
does not cost a sweep: `Method.version` with `revision`, `Adapter.version`, `PREPROCESSING`, `CUT` and
`task_overrides.SCORING`. The golden test (tests/pruning/test_golden.py) says which of them has to rise. Code that
declares no version counts by its source text.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import methods
from harness.core.config import RunConfig
from harness.core.errors import UserError, one_line
from harness.core.files import digest, from_json, json_line
from harness.evaluation import task_overrides
from harness.evaluation.pruner import Pruner
from harness.models import adapter_class, checkpoint, quantised
from harness.models.adapter import Adapter
from harness.models.loading import device_of
from harness.models.model_folder import ModelFolder
from harness.results.labels import flat
from methods.base import LATER, Method

PREPROCESSING = 2  # raise it when messages become other model inputs, or answers are decoded in another way
CUT = 1  # raise it when the same kept tokens give other logits or answers

# Packages whose minor version is part of the identity; the full version is recorded.
PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "lmms-eval", "qwen-vl-utils", "pillow")
VIDEO_READERS = ("torchcodec", "decord", "av")  # qwen-vl-utils takes what is installed
ENVIRONMENT = ("MODEL_SEQ_LEN", "FORCE_QWENVL_VIDEO_READER")  # read by qwen-vl-utils
HARNESS = Path(__file__).parents[1]
METHODS = Path(methods.__file__).parent
ANSWERING = ("prune.py", "models/**/*.py", "pruning/*.py", "evaluation/*.py")


class Identity:
    """What the answer to a question depends on, as JSON; `run_plan` adds the tasks and names the run folder by both."""

    def __init__(self, run: RunConfig, folder: ModelFolder):
        self.run = run
        self.folder = folder

    @cached_property
    def model(self) -> dict[str, Any]:
        """Weights by content, and how they are loaded and given inputs."""
        config = self.run.model
        gpus = range(torch.cuda.device_count()) if config.device_map else [device_of(config)]
        kinds = {torch.cuda.get_device_name(gpu) for gpu in gpus if gpu != "cpu"}
        settings = ("dtype", "attn", "min_pixels", "max_pixels", "max_frames", "batch_size", "unpack", "device_map")
        return {
            "weights": checkpoint.weights_fingerprint(self.folder.path),
            # In half precision a greedy answer depends on the type of GPU.
            "device": ", ".join(sorted(kinds)) or "cpu",
            **{key: getattr(config, key) for key in settings},
            **config.frame_rate,
            "versions": model_versions(self.folder.config.model_type),
            "packages": {name: minor(release) for name, release in self.packages.items()},
            "environment": environment(),
        }

    @property
    def packages(self) -> dict[str, str | None]:
        """The installed versions of what can change an answer of this model."""
        return packages(self.run.model.attn, quantised.packages_of(self.folder.quantisation))

    def answers(self, pruner: Pruner) -> dict[str, Any]:
        """Return what an answer depends on, given the question."""
        method = pruner.method
        return {
            "model": self.model,
            "method": {"name": method.name, "version": method_version(method), "params": _params(method)},
            "budget": {"keep": pruner.budget.keep, "tokens": pruner.budget.tokens, **pruner.budget.setting},
            "scorer": checkpoint.fingerprint(pruner.scorer) if pruner.scorer else None,
            "seed": pruner.seed,
            "positions": pruner.positions,
            **({} if pruner.newlines is None else {"newlines": pruner.newlines}),  # of families that have some
        }


def model_versions(family: str | None) -> dict[str, Any]:
    """Return the declared versions of everything except the method."""
    adapter = adapter_class(family)
    return {
        "family": family,
        "adapter": _declared(adapter) or _code(_sources(adapter, Adapter)),
        "preprocessing": PREPROCESSING,
        "cut": CUT,
    }


def method_version(method: Method) -> int | str:
    """Return the declared version of a method, with its revision; without one, a digest of its source and its bases'.

    Bases are the classes up to the first that declares a version, and the shared modules of `methods`.
    """
    kind = type(method)
    if declared := _declared(kind):
        return declared + method.revision
    versions = {cls.name: v for cls in kind.__mro__ if issubclass(cls, Method) and (v := _declared(cls))}
    own = [path for path in _sources(kind, Method) if not path.is_relative_to(METHODS)]
    return digest([versions, _code([*own, *_shared()])])[:16]


def packages(attn: str, quantising: Iterable[str] = ()) -> dict[str, str | None]:
    """Return the installed versions of the packages that can change an answer; None for one that is not there.

    `quantising` are those of quantised weights.
    """
    flash = ("flash-attn",) if attn == "flash_attention_2" else ()
    return {name: _version(name) for name in (*PACKAGES, *VIDEO_READERS, *flash, *quantising)}


def environment() -> dict[str, str | None]:
    """Return the environment variables that libraries read."""
    return {name: os.environ.get(name) for name in ENVIRONMENT}


def minor(release: str | None) -> str | None:
    """Return "5.23" of "5.23.1"."""
    return release if release is None else ".".join(release.split("+")[0].split(".")[:2])


def sources(method: Method) -> dict[str, str]:
    """Return digests of the source text that answers come from: provenance, and no part of the identity."""
    between = sorted(path for pattern in ANSWERING for path in HARNESS.glob(pattern))
    return {"harness": _code(between), "method": _code([*_sources(type(method), Method), *_shared()])}


def changes(about: Mapping[str, Any]) -> list[str]:
    """Return why today's code and packages would not reuse a run with this run.json; nothing if they would.

    Weights, data and the kind of GPU are not checked.
    """
    try:
        was, config = about["identity"], about["config"]
        quantising = set(was["model"]["packages"]) & quantised.KNOWN
        now = {
            "versions": model_versions(was["model"]["versions"]["family"]),
            "packages": {name: minor(v) for name, v in packages(was["model"]["attn"], sorted(quantising)).items()},
            "environment": environment(),
        }
        before = flat({**{key: was["model"][key] for key in now}, "method": was["method"]["version"]})
        today = flat({**now, "method": method_version(methods.load(**config["method"]))})
        if was["tasks"]["scoring"] is not None:
            before["scoring"], today["scoring"] = was["tasks"]["scoring"], task_overrides.SCORING
        before["reasoning tags"] = was["tasks"].get("reasoning_tags")
        pretrained, include = config["model"]["pretrained"], config["tasks"]["include"]
        today["reasoning tags"] = task_overrides.reasoning_tags(pretrained, include, was["tasks"]["names"])
    except KeyError as error:
        return [f"its run.json lacks {error}"]
    except (TypeError, AttributeError) as error:  # a list or a number where settings should be
        return [f"its run.json is damaged ({one_line(error)})"]
    except ValueError as error:
        return [one_line(error)]
    return [
        f"{_in_words(key)} was {before.get(key)}, is {today.get(key)}"
        for key in dict.fromkeys([*before, *today])
        if before.get(key) != today.get(key)
    ]


def _in_words(key: str) -> str:
    """Name a part of an identity: "version of the method", "torch", "$MODEL_SEQ_LEN"."""
    kind, _, name = key.rpartition(".")
    if kind == "versions" or key in ("method", "scoring"):
        return f"version of the {name}"
    return f"${name}" if kind == "environment" else name


def _params(method: Method) -> dict[str, Any]:
    """Return a method's parameters as JSON gives them back, files by digest."""
    params = {}
    for field in fields(method):
        name, value = field.name, getattr(method, field.name)
        if not field.init or (field.metadata.get(LATER) and value == field.default):
            continue
        value = method.file_metadata[name]["digest"] if name in method.file_metadata else value
        try:
            params[name] = from_json(json_line(value))
        except (TypeError, ValueError) as error:
            kind = type(value).__name__
            plain = "numbers, text, true, false, null, or lists and mappings of them"
            reason = "parameters are part of a run's identity"
            message = f"{method.name}: parameter {name} must be made of {plain}, got {kind}: {reason}"
            raise UserError(message) from error
    return params


def _declared(cls: type) -> int:
    """Return the version that a class declares itself, 0 if none: an inherited one says nothing about its own code."""
    declared = cls.__dict__.get("version", 0)
    if is_dataclass(cls) and "version" in (field.name for field in fields(cls)):
        raise UserError(f"{cls.__name__}.version says which results are the same; it cannot be a parameter: rename it")
    if type(declared) is not int or declared < 0:
        raise UserError(f"{cls.__name__}.version must be a whole number (1, 2, ...), not {declared!r}")
    return declared


def _sources(cls: type, base: type) -> list[Path]:
    """Return the files of a class and of the classes that it is derived from, up to `base`."""
    classes = [parent for parent in cls.__mro__ if parent.__module__ not in (base.__module__, "builtins", "abc")]
    return [Path(inspect.getsourcefile(parent) or "") for parent in classes]


def _shared() -> Iterator[Path]:
    """Yield the files of `methods` that belong to no single method; the registry decides no answer."""
    single = {address.partition(":")[0].rpartition(".")[2] for address in methods.BUILT_IN.values()} | {"__init__"}
    yield from sorted(path for path in METHODS.rglob("*.py") if path.parent != METHODS or path.stem not in single)


def _code(files: Iterable[Path]) -> str:
    return digest([path.read_text(encoding="utf-8") for path in files])[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

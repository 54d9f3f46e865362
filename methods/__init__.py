"""Pruning methods, one file each, and the registry that loads them by name.

    methods.load("idpruner", lam=0.7)        # one of names()
    methods.load("path/to/mine.py:Mine")     # a private file

A package adds methods through the entry-point group `harness.methods`. Importing this package does not import torch.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from methods.base import Method

ENTRY_POINTS = "harness.methods"
PRIVATE = "private_method_"  # begins the names of modules of private files
BUILT_IN = {
    "none": "methods.none:KeepAll",
    "random": "methods.random:Random",
    "uniform": "methods.uniform:Uniform",
    "avg_pool": "methods.avg_pool:AvgPool",
    "resize": "methods.resize:Resize",
    # importance
    "greedy": "methods.greedy:Greedy",
    "visionselector": "methods.visionselector:VisionSelector",
    "fastervlm": "methods.fastervlm:FasterVLM",
    "fastv": "methods.fastv:FastV",
    "pyramiddrop": "methods.pyramiddrop:PyramidDrop",
    "sparsevlm": "methods.sparsevlm:SparseVLM",
    "prumerge": "methods.prumerge:PruMerge",
    "prumerge_plus": "methods.prumerge:PruMergePlus",
    "hiprune": "methods.hiprune:HiPrune",
    # diversity
    "fps": "methods.fps:FPS",
    "divprune": "methods.divprune:DivPrune",
    "dart": "methods.dart:DART",
    "vlmpruner": "methods.vlmpruner:VLMPruner",
    "tome": "methods.tome:ToMe",
    # both
    "idpruner": "methods.idpruner:IDPruner",
    "hybrid": "methods.hybrid:Hybrid",
    "dpp": "methods.dpp:DPP",
    "visionzip": "methods.visionzip:VisionZip",
    "vispruner": "methods.vispruner:VisPruner",
    "scope": "methods.scope:SCOPE",
    "cdpruner": "methods.cdpruner:CDPruner",
    "d2pruner": "methods.d2pruner:D2Pruner",
    "id_selection": "methods.id_selection:IDSelection",
    "qmmr": "methods.qmmr:QMMR",
    "holov": "methods.holov:HoloV",
    "mmtok": "methods.mmtok:MMTok",
    "prunesid": "methods.prunesid:PruneSID",
    # over time
    "evs": "methods.evs:EVS",
    "vidcom2": "methods.vidcom2:VidCom2",
    "dycoke": "methods.dycoke:DyCoke",
    "fastvid": "methods.fastvid:FastVID",
    "holitom": "methods.holitom:HoliTom",
    "flashvid": "methods.flashvid:FlashVID",
    "prunevid": "methods.prunevid:PruneVid",
}
# Published methods that cannot be written from what is public: name -> why.
UNAVAILABLE = {
    "adatp": "its code is not public, and arXiv 2505.20100 leaves out its thresholds, cut layers and quotas",
}


def names() -> list[str]:
    """List every method that can be loaded by name: the built-in ones, then those of installed packages."""
    return [*BUILT_IN, *sorted({point.name for point in _entry_points()} - set(BUILT_IN))]


def get(name: str) -> type[Method]:
    """Return the class of a built-in method, of an installed package's, or of `path/to/file.py:Class`."""
    file, _, attribute = str(name).rpartition(":")
    if not file.endswith(".py"):
        file, _, attribute = _address(name).partition(":")

    from methods import checks  # imports torch, so a mistyped name is refused first
    from methods.base import Method

    module = _module_at(Path(file)) if file.endswith(".py") else _module(file)
    target = getattr(module, attribute, None)
    if not (isinstance(target, type) and issubclass(target, Method)):
        raise ValueError(f"method '{name}': '{file}' has no subclass of methods.base.Method called '{attribute}'")
    checks.declaration(target)
    return target


def load(name: str, **params: Any) -> Method:
    """Return an instance of the method `name` with the given parameters."""
    method = get(name)
    valid = [field.name for field in fields(method) if field.init]
    for key in params:
        if key not in valid:
            listed = f"its parameters are {', '.join(valid)}" if valid else "it has none"
            if key in vars(method):
                listed += f"; to make one of the attribute {key}, annotate it ({key}: float = ...)"
            raise ValueError(f"{method.name} has no parameter '{key}'{_did_you_mean(key, valid)}; {listed}")
    made = method(**params)

    from methods import checks  # imports torch, so a mistyped name is refused first

    checks.needs(made.name, made.needs)  # an instance may have its own
    return made


def _address(name: str) -> str:
    """Return "module:Class" of the method called `name`."""
    addresses = {f"{point.module}:{point.attr}" for point in _entry_points() if point.name == str(name)}
    addresses |= {BUILT_IN[name]} if name in BUILT_IN else set()
    if len(addresses) > 1:
        raise ValueError(f"method '{name}' is provided more than once: {', '.join(sorted(addresses))}")
    if not addresses and name in UNAVAILABLE:
        raise ValueError(f"method '{name}' is not available: {UNAVAILABLE[name]}")
    if not addresses:
        hint = "; a private file is given as path/to/file.py:Class" if ".py" in str(name) else ""
        raise ValueError(f"unknown method '{name}'{_did_you_mean(name, names())}; there are {', '.join(names())}{hint}")
    return addresses.pop()


def _entry_points() -> metadata.EntryPoints:
    """Return the methods of installed packages; the folders of `sys.path` are searched again once they change."""
    places = map(os.path.abspath, sys.path)
    return _entry_points_in(tuple((place, os.stat(place).st_mtime_ns) for place in places if os.path.isdir(place)))


@cache
def _entry_points_in(folders: tuple[tuple[str, int], ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=ENTRY_POINTS)


def _did_you_mean(name: str, choices: list[str]) -> str:
    matches = get_close_matches(str(name).lower().replace("-", ""), choices, n=1, cutoff=0.5)
    return f", did you mean '{matches[0]}'?" if matches else ""


def _module(name: str) -> ModuleType:
    with _as_value_error(f"method module '{name}' cannot be imported"):
        return import_module(name)


def _module_at(path: Path) -> ModuleType:
    """Execute a private method file. Every call reads the file again, so that edits take effect."""
    path = Path(os.path.realpath(os.path.expanduser(path)))
    if not path.is_file():
        raise ValueError(f"method file '{path}' does not exist")
    # Dataclasses look up their module by name, so two files with the same stem need different names.
    module = ModuleType(f"{PRIVATE}{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with _as_value_error(f"method file '{path}' does not run"):
            # An import loader would run stale bytecode after an edit of equal length within the same second.
            exec(compile(path.read_bytes(), path, "exec"), vars(module))
    except ValueError:
        del sys.modules[module.__name__]
        raise
    return module


@contextmanager
def _as_value_error(what: str) -> Iterator[None]:
    """Turn any exception of another author's code, and its wish to exit, into a ValueError of one line."""
    try:
        yield
    except (Exception, SystemExit) as error:  # an author's code raises anything
        raise ValueError(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error

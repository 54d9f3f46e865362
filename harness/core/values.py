"""What holds for every setting: text is UTF-8 and not empty, numbers are finite, `~` stands for a home folder."""

import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from harness.core.errors import UserError, did_you_mean
from harness.core.files import expanded

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    NoneType: "null",
}
MOST = 2**63 - 1  # no library takes a larger whole number


def checked(cfg: DictConfig) -> DictConfig:
    """Return a configuration with home folders written out; UserError names a value that nothing can work with."""
    for key, value in list(_leaves(OmegaConf.to_container(cfg, resolve=False))):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key} must be a finite number, got {value}")
        if isinstance(value, int) and abs(value) > MOST:
            raise UserError(f"{key} must be at most 2^63 - 1, got a number of {value.bit_length()} bits")
        if isinstance(value, str):
            check_text(key, value)
            if not value.strip():  # as a folder, it would be the current one
                raise UserError(f"{key} is an empty text, expected a value: pass one, or null for none")
            if value.startswith("~"):
                OmegaConf.update(cfg, key, str(expanded(value)))
    return cfg


def check_text(what: str, text: str) -> None:
    """Raise UserError for bytes that are no UTF-8, which Python passes as surrogates, and for a NUL."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{what} must be text in UTF-8 without NUL, got {text[:80]!r}")


def in_words(error: OmegaConfBaseException) -> str:
    """Return what a setting must be and what it is, where OmegaConf names its own classes."""
    kinds = get_type_hints(error.object_type) if is_dataclass(error.object_type) else {}
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and kinds:
        return f"unknown key {error.full_key}: {did_you_mean(str(error.key), kinds)}"
    if isinstance(error, ValidationError) and (kind := kinds.get(str(error.key))):
        parts = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        words = " or ".join(KINDS.get(part, "a list or mapping") for part in parts)
        return f"{error.full_key} must be {words}, got {'null' if error.value is None else error.value}"
    message = str(error).partition("\n    full_key:")[0]
    return f"{error.full_key}: {message}" if error.full_key else message


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key of every value that is no mapping and no list, and the value."""
    if not isinstance(tree, dict | list):
        yield key, tree
        return
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{key}.{name}".removeprefix("."))

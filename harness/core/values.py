"""What holds for every setting: text is UTF-8 and not empty, numbers are finite, `~` stands for a home folder."""

import math
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.core.errors import UserError
from harness.core.files import expanded

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


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key of every value that is no mapping and no list, and the value."""
    if not isinstance(tree, dict | list):
        yield key, tree
        return
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, f"{key}.{name}".removeprefix("."))

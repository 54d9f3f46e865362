"""Parse Hydra's `key=value` arguments and compose configurations from them, with one-line errors."""

import atexit
import os
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.config import conf
from harness.core.errors import UserError, did_you_mean

VERSION_BASE = "1.3"


class UnknownKeyError(UserError):
    """A key that a configuration lacks; `owner` is the choice of a group that lacks it, as "method=idpruner"."""

    def __init__(self, key: str, cfg: DictConfig) -> None:
        self.key = key
        group, _, name = key.partition(".")
        has_owner = name and isinstance(cfg.get(group), DictConfig) and "name" in cfg[group]
        self.owner = f"{group}={cfg[group].name}" if has_owner else ""
        keys = _flat_keys(cfg[group], f"{group}.") if self.owner else _flat_keys(cfg)
        what = f"{self.owner} has no {name}" if self.owner else f"unknown key {key}"
        super().__init__(f"{what}: {did_you_mean(key, keys)}")


def register_resolvers() -> None:
    """Register the interpolations of conf/: the default budget, the name of a folder, and a temporary folder."""
    OmegaConf.register_new_resolver("budget", _default_share, replace=True)
    OmegaConf.register_new_resolver("basename", lambda path: Path(os.path.abspath(path)).name, replace=True)
    OmegaConf.register_new_resolver("scratch", _scratch, replace=True, use_cache=True)


def _default_share(tokens: int | None, per_tile: int | None, method: str, share: float) -> float | None:
    """Return `share`, or None where a number of tokens is given, or for the unpruned model."""
    return share if tokens is per_tile is None and method != "none" else None


def parse(overrides: list[str]) -> list[Override]:
    """Parse `key=value` arguments; UserError names one that cannot be parsed or swept."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError) as error:  # also for a long number, for many brackets
            why = "write home folders out, as in runs=$HOME/runs" if "=~" in text else first_paragraph(error)
            if re.fullmatch(r"[^=~]*", text):
                why = "expected key=value, as in keep=0.25"
            raise UserError(f"cannot read the argument {text[:300]}: {why.split(' See ')[0][:300]}") from error
        if override.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
            raise UserError(f"cannot sweep {text}: list the values, as in {override.key_or_group}=one,another")
        parsed.append(override)
    return parsed


def compose(config_name: str, overrides: list[str], **options: bool) -> DictConfig:
    """Compose the configuration of one job; UnknownKeyError for a key it lacks. `options` go to Hydra's compose."""
    register_resolvers()
    initialized = GlobalHydra.instance().is_initialized()  # in a command that Hydra runs, with the same folder
    try:
        with nullcontext() if initialized else hydra.initialize_config_dir(str(conf()), version_base=VERSION_BASE):
            return hydra.compose(config_name, overrides, **options)
    except (HydraException, OmegaConfBaseException) as error:
        key = getattr(error.__cause__, "full_key", None)
        if overrides and key and "not in struct" in str(error.__cause__):
            others = [text for text in overrides if not text.startswith(f"{key}=")]
            if others == overrides:  # it lies in a mapping, as in tasks.metrics={key: value}
                others = [text for text in overrides if not (key.startswith(text.partition("=")[0]) and "{" in text)]
            if others != overrides:
                raise UnknownKeyError(key, compose(config_name, others)) from error
        if group := re.match(r"Could not override '([^']+)'\. No match in the defaults list", str(error)):
            others = [text for text in overrides if text.partition("=")[0] != group[1]]
            if len(others) < len(overrides):  # a folder of conf/ that holds no choice of this command
                raise UnknownKeyError(group[1], compose(config_name, others)) from error
        cause = f" ({first_paragraph(error.__cause__)})" if error.__cause__ else ""
        raise UserError(first_paragraph(error) + cause) from error


def first_paragraph(error: BaseException) -> str:
    """Return a Hydra error message without the search path and hints that follow its first paragraph."""
    text = str(error).partition("\n    full_key:")[0]  # OmegaConf's names of its own classes follow
    paragraph = re.split(r"\n\s*\n|\nConfig search path", text.strip())[0]
    return " ".join(paragraph.split()) or type(error).__name__


def _flat_keys(cfg: Any, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key in cfg:
        keys.append(f"{prefix}{key}")
        if not OmegaConf.is_interpolation(cfg, key) and isinstance(cfg._get_node(key), DictConfig):
            keys += _flat_keys(cfg._get_node(key), f"{prefix}{key}.")
    return keys


def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="harness-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder

"""A checkpoint's folder and its config.json; importing this module needs neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import as_user_error
from harness.core.files import from_json
from harness.models import adapter_class, quantised, register_family

if TYPE_CHECKING:
    from harness.models.adapter import Adapter


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint on disk. Its config.json is read once, on first access; weights are not read."""

    path: Path

    @cached_property
    def config(self) -> Any:
        """The model's configuration, a transformers object; UserError if it cannot be read."""
        return config_in(self.path)

    @cached_property
    def quantisation(self) -> dict[str, Any] | None:
        """How the weights are quantised, as in config.json; None for plain ones."""
        return quantised.settings_in(from_json((self.path / "config.json").read_bytes()))

    @cached_property
    def adapter(self) -> type[Adapter]:
        """The adapter class of the model's family; ValueError if there is none."""
        return adapter_class(self.config.model_type, f"the model in {self.path}")


def config_in(folder: Path) -> Any:
    """Read the configuration of the model in `folder`."""
    with as_user_error(Exception, f"cannot read {folder / 'config.json'}"):
        register_family(folder)
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, trust_remote_code=False)

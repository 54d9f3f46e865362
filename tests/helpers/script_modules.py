"""The files of scripts/ as modules, which are no package."""

import importlib.util
from types import ModuleType

from doc_guides import ROOT


def script(name: str) -> ModuleType:
    """Load scripts/NAME.py anew."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""Checkpoints whose weights are quantised: what this machine cannot load is refused before weights are fetched or read.

transformers loads them, with a package for each kind; layers keep their names, so adapters hook them as plain ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, one_line

KEY = "quantization_config"  # of config.json
# Packages that compute with the weights, by `quant_method`
PACKAGES = {
    "awq": ("gptqmodel", "autoawq"),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fp8": ("kernels",),
    "gptq": ("gptqmodel", "optimum", "auto-gptq"),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
}
KNOWN = {package for packages in PACKAGES.values() for package in packages}
REMEDY = "or pass plain weights as model.pretrained=, which bfloat16 halves"


def settings_in(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return how the weights of a model are quantised, from its config.json; None for plain weights.

    UserError if that is no object, or does not say by what method.
    """
    nested = config.get("text_config")
    settings = config.get(KEY) or (nested.get(KEY) if isinstance(nested, dict) else None)
    if settings is None:
        return None
    if not isinstance(settings, dict) or not isinstance(settings.get("quant_method"), str):
        raise UserError(f"config.json has a {KEY} without a quant_method: expected an object that names one")
    return settings


def name_of(settings: Mapping[str, Any]) -> str:
    """Return a name for messages: bitsandbytes int8, bitsandbytes nf4, awq, gptq."""
    method = str(settings["quant_method"])
    if method != "bitsandbytes":
        return method
    return f"{method} {'int8' if settings.get('load_in_8bit') else settings.get('bnb_4bit_quant_type', 'fp4')}"


def packages_of(settings: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the packages whose version can change an answer of such weights; none for plain ones."""
    return () if settings is None else PACKAGES.get(str(settings["quant_method"]), ())


def check(config: Mapping[str, Any], folder: Path, dtype: str) -> None:
    """Raise UserError if this machine cannot load the quantised weights in `folder`; transformers decides.

    It is imported for quantised weights only: that takes seconds.
    """
    settings = settings_in(config)
    if settings is None:
        return
    what = f"the weights in {folder} are quantised ({name_of(settings)})"
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        if not AutoHfQuantizer.supports_quant_method(settings):
            raise UserError(f"{what}, which this transformers does not know: install a newer one, {REMEDY}")
        AutoHfQuantizer.from_config(dict(settings), pre_quantized=True).validate_environment(
            device_map=None, weights_only=True
        )
    except UserError:
        raise
    except Exception as error:  # each kind raises its own: ImportError, RuntimeError, ValueError, TypeError
        raise UserError(f"{what}, which cannot be loaded here: {one_line(error)[:300]}; {REMEDY}") from error
    check_dtype(config.get("dtype") or config.get("torch_dtype") or dtype, folder, dtype)


def check_dtype(stored: Any, folder: Path, dtype: str) -> None:
    """Raise UserError if the weights that are not quantised have another dtype than asked for: they keep it."""
    if (name := str(stored).removeprefix("torch.")) != dtype:
        plain = f"the weights in {folder} that are not quantised are {name}, and stay so"
        raise UserError(f"{plain}: pass model.dtype={name}, not {dtype}")

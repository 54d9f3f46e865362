"""A tiny model per family, and every method with its variants, for contracts over all of them."""

from functools import cache, partial
from typing import get_args, get_type_hints

import pytest
import torch
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor
from tiny_llava_onevision import tiny_llava_onevision, tiny_llava_onevision_processor
from tiny_llavaov15 import llavaov15_processor, tiny_llavaov15
from tiny_models import DINOV2, SIGLIP, tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_qwen2 import tiny_qwen2, tiny_qwen2_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import methods

# In float64, where the rounding of kernels does not change the choice of tokens.
BUILDERS = {
    "qwen2_5_vl": (lambda: tiny_qwen(torch.float64, layers=4, depth=4), tiny_processor),
    "llava": (lambda: tiny_llava(torch.float64, layers=4, depth=4), tiny_llava_processor),
    "llavaonevision1_5": (lambda: tiny_llavaov15(dtype=torch.float64, layers=4, depth=4), llavaov15_processor),
    "qwen2_vl": (lambda: tiny_qwen2(torch.float64), tiny_qwen2_processor),
    "qwen3_vl": (lambda: tiny_qwen3(torch.float64), tiny_qwen3_processor),
    "llava_next": (lambda: tiny_llava_next(torch.float64), tiny_llava_next_processor),
    "llava_onevision": (lambda: tiny_llava_onevision(torch.float64), tiny_llava_onevision_processor),
    "internvl": (lambda: tiny_internvl(torch.float64), tiny_internvl_processor),
}
# LLaVA with other towers than CLIP: family-tower
OTHER_TOWERS = {
    f"llava-{tower}": (
        partial(tiny_llava, torch.float64, layers=4, depth=4, tower=tower),
        partial(tiny_llava_processor, tower),
    )
    for tower in (SIGLIP, DINOV2)
}
# Families whose positions count the tokens, and those whose videos of a batch must have equally many frames
COUNTING = {"llava", "llava_next", "llava_onevision", "llavaonevision1_5", "internvl"}
EQUALLY_LONG = {"llava_onevision", "internvl"}


@cache
def tiny(family, dtype=torch.float64):
    """Return a tiny model of BUILDERS or OTHER_TOWERS and its processor, shared in a process: do not change them."""
    build, process = (BUILDERS | OTHER_TOWERS)[family]
    return build().to(dtype), process()


def variants():
    """Yield every method that drops tokens, with each of its variants."""
    for name in sorted(set(methods.BUILT_IN) - {"none", "resize"}):
        hint = get_type_hints(methods.get(name)).get("variant")
        for params in [{"variant": variant} for variant in get_args(hint)] or [{}]:
            yield pytest.param(name, params, id="-".join([name, *params.values()]))


def exactly_k(name):
    """Return the parameters with which a method needs no prior, and the last of its cuts leaves K tokens.

    Of two cuts, the first one leaves 5/3 K.
    """
    params = {"prior": "none", "budget_at": "end", "inner_keep": 0.6}
    return {key: value for key, value in params.items() if key in get_type_hints(methods.get(name))}

"""Refuse generation settings of a checkpoint or a task that do not work after a pruned prefill."""

from collections.abc import Mapping
from typing import Any

from harness.core.errors import UserError

GROWING = ("dynamic", "dynamic_full", "offloaded", "quantized")  # caches that begin with the rows that were kept
# Fields of a generation config; other values than these ask for contrastive search, assistants, groups of beams, ...
HARMLESS: dict[str, tuple[Any, ...]] = {
    "cache_implementation": GROWING,
    **dict.fromkeys(("num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("penalty_alpha", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"), (0,)),
    **dict.fromkeys(("assistant_model", "constraints", "custom_generate", "dola_layers", "force_words_ids"), ()),
}


def check(settings: Mapping[str, Any], what: str) -> None:
    """Raise UserError if the settings of `what`, a file or a task, ask for what our runs do not do, pruned or not."""
    asked = {key: settings[key] for key in HARMLESS if settings.get(key) not in (None, False, *HARMLESS[key])}
    if asked:
        listed = ", ".join(f"{key}={value}" for key, value in asked.items())
        known = "greedy search, sampling and beam search with a cache that grows"
        raise UserError(f"{what} asks for {listed}, expected {known}: remove {' and '.join(asked)} there")

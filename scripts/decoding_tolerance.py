"""Measure how far decoding through the KV cache and a prefill differ, for correct and for wrong decoding.

`python scripts/decoding_tolerance.py` (some minutes on two cores) prints the table of docs/versions.md, from which the
tolerances of harness/pruning/decoding_proof.py were chosen. Tiny random models of every family and both embedded models
answer a batch of two prompts of different lengths. The numbers are the largest and the smallest relative deviation of a
row of logits. There are two faults. Either decoding steps continue as if nothing had been cut, as they did when a
renamed argument went past the hooks. Or one kept token is replaced by another one.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

from reference_prune import inputs_of
from tiny_families import BUILDERS
from transformers import AutoModelForImageTextToText, AutoProcessor

import harness
from harness.core import hook
from harness.models import adapter_for
from harness.pocket import LLAVA_WEIGHTS, WEIGHTS
from harness.pruning import decoding_proof, session
from methods.base import Selection

METHODS = ("random", "visionzip", "fastv")  # one that drops, one that merges, one that cuts inside the language model
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SAMPLES = ["one image", "small image"]
UNCUT, OTHER = "as if nothing was cut", "one token is another"


def models(dtype: torch.dtype) -> Iterator[tuple[str, Any, Any]]:
    """Yield each model's name, the model, and a batch for it."""
    for family, (build, process) in BUILDERS.items():
        yield f"random {family}", build().to(dtype), inputs_of(process(), SAMPLES)
    for name, folder in {"pocket": WEIGHTS, "pocket_llava": LLAVA_WEIGHTS}.items():
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        yield name, model, inputs_of(AutoProcessor.from_pretrained(folder), SAMPLES)


@contextmanager
def with_another_token(pruning: harness.Pruning) -> Iterator[None]:
    """Replay with the last kept token of each prompt replaced by one that was dropped."""
    right = pruning._asked
    pruning._asked = {
        layer: (sizes, [_another(selection, n) for selection, (n, _) in zip(selections, sizes, strict=True)])
        for layer, (sizes, selections) in right.items()
    }
    try:
        with pruning.replaying():
            yield
    finally:
        pruning._asked = right


def _another(selection: Selection, n: int) -> Selection:
    kept = selection.kept.tolist()
    dropped = next(index for index in reversed(range(n)) if index not in kept)
    return Selection(torch.tensor(sorted([*kept[:-1], dropped])))


def measure(model: Any, inputs: Any, name: str, fault: str | None) -> float:
    """Return the deviation of decoding with a method at a quarter of the tokens."""
    adapter = adapter_for(model)
    compact = adapter.decoder.one_dimensional and name != "fastv"  # elsewhere counting positions as if uncut is correct
    unseen = {"_continue": mock.Mock(return_value=None), "_refuse_step_without_decoder": mock.Mock()}
    as_if_uncut = mock.patch.multiple(session.Session, **unseen)
    without_limit = mock.patch.dict(decoding_proof.TOLERANCE, dict.fromkeys(decoding_proof.TOLERANCE, float("inf")))
    with (
        torch.no_grad(),
        harness.prune(model, name, keep=0.25, positions="compact" if compact else "keep") as pruning,
        as_if_uncut if fault == UNCUT else nullcontext(),
        without_limit,
    ):
        replaying = pruning.replaying if fault != OTHER else lambda: with_another_token(pruning)
        return decoding_proof.prove(model, inputs, replaying, adapter.placeholders).largest


def main() -> None:
    """Print a row per dtype: the extremes, and the model and method of each."""
    print("| dtype | right, largest | " + " | ".join(f"{fault}, smallest" for fault in (UNCUT, OTHER)), end="")
    print(f" | {UNCUT}, trained models | tolerance |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for dtype in DTYPES:
        seen: dict[str | None, list[tuple[float, str]]] = {None: [], UNCUT: [], OTHER: []}
        for label, model, inputs in models(dtype):
            for name in METHODS:
                for fault, values in seen.items():
                    if (name, fault) != ("fastv", UNCUT):  # raises an error: the shapes do not fit
                        values.append((measure(model, inputs, name, fault), f"{label}, {name}"))
        trained = min(value for value in seen[UNCUT] if value[1].startswith("pocket"))
        cells = [max(seen[None]), min(seen[UNCUT]), min(seen[OTHER]), trained]
        row = " | ".join(f"{value:.1e} ({where})" for value, where in cells)
        print(f"| {str(dtype).removeprefix('torch.')} | {row} | {decoding_proof.TOLERANCE[dtype]:g} |", flush=True)


if __name__ == "__main__":
    hook.install()
    main()

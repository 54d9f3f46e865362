"""Prune the visual tokens of a transformers model within a `with` block.

model = Qwen2_5_VLForConditionalGeneration.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
inputs = processor(text=[prompt], images=[image], return_tensors="pt")
with harness.prune(model, "idpruner", keep=0.25, scorer="path/to/selector", lam=0.5) as pruning:
    print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64)), pruning.records)
"""

# The package exports the function of this name, so this module must stay importable without torch.
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.pruning.handle import Kept, Pruning
from methods.budget import Budget

__all__ = ["Kept", "Pruning", "prune"]

if TYPE_CHECKING:
    from torch import nn

    from harness.pruning.block import Block
    from harness.pruning.vision_cache import VisionCache
    from methods.base import Method


def prune(
    model: nn.Module,
    method: str | Method,
    *,
    keep: float | None = None,
    tokens: int | None = None,
    per_tile: int | None = None,
    scorer: str | Path | nn.Module | None = None,
    seed: int = 0,
    positions: str = "keep",
    newlines: str | None = None,
    shared: VisionCache | None = None,
    **params: Any,
) -> Block:
    """Prune the visual tokens of every prompt that enters `model` within the block; afterwards the model is as before.

    `with harness.prune(...) as pruning:` yields the handle, a `Pruning`. A block is entered once, and a model is in one
    block at a time. Passes of several threads have to take turns. A copy of the model has to be made outside.

    Tokens are cut in front of the language model, or after decoder layer j by a method whose stage is "layer:j". A KV
    cache that was filled in the block stays pruned. It is refused outside this or another block (of the same j), since
    the model itself assumes that all its layers are complete. A cache from outside is refused in the block. Prompts of
    a batch may keep different numbers of tokens; then a plain forward returns padded rows. The padding is on the right
    if it was there in the input, else on the left, also if the input had none. Of its S tokens without padding, sample
    i has S - `records[i].n` + `records[i].k` rows, less the newline rows that were dropped.

    Args:
        model: a model of a supported family, as transformers loads it, not compiled. A PEFT model and
            DistributedDataParallel are unwrapped.
        method: name from `methods.names()`, `path/to/file.py:Class`, or an instance.
        keep: share of each sample's visual tokens to keep, in (0, 1].
        tokens: number of visual tokens to keep of each sample; give this or `keep` or `per_tile`.
        per_tile: number of visual tokens to keep of each crop of an image, which the method selects from by itself. In
            families that cut no tiles, each image and each time step of a video is one crop. If padding leaves a
            crop with fewer tokens, the difference is kept from other crops.
        scorer: for methods that need importance: a module `[N, D] -> [N]`, or the folder or file of a released
            scorer; by default the one that is next to the model's weights.
        seed: seed of methods that draw at random.
        positions: "keep" (default): kept tokens have the position ids of the full prompt. "compact": the L tokens that
            enter the language model are numbered 0..L-1, and decoding continues from L. The published code for
            LLaVA-1.5 does so, since it cuts before positions exist. This needs a family with 1-D positions and a method
            that cuts in front of the language model.
        shared: cache of this model's passes through the vision tower, to share them between blocks.
        params: parameters of the method, if it is given by name.
    """
    from harness.models import adapter_for
    from harness.pruning.block import Block

    adapter = adapter_for(model)
    budget = Budget(keep=keep, tokens=tokens, per_tile=per_tile)
    chosen = _method(method, params)
    adapter.check(chosen, adapter.model.config)
    adapter.check_positions(positions, chosen)
    newlines = adapter.check_newlines(newlines)
    if chosen.stage == "pixels":
        what = f"{chosen.name} makes images smaller before the model gets them; prune() cannot do that"
        raise ValueError(f"{what}: run python -m harness method={chosen.name}, or resize the images yourself")
    score = None if budget.keep == 1 else adapter.scorer_for(chosen, scorer)
    return Block(adapter, Pruning(chosen, budget, score, seed, positions, newlines), shared)


def _method(method: str | Method, params: dict[str, Any]) -> Method:
    import methods
    from methods.base import Method

    if isinstance(method, str):
        return methods.load(method, **params)
    if not isinstance(method, Method):
        remedy = f"write {method.__name__}()" if isinstance(method, type) else f"there are {', '.join(methods.names())}"
        raise ValueError(f"method must be a name or an instance of a subclass of Method, not {method!r}: {remedy}")
    if params:
        raise ValueError(f"{method.name} is already an instance: set {', '.join(params)} on it, not in prune()")
    return method

"""Train a pocket model in four stages, each of which writes checkpoints and continues from its last one.

1. vision: the tower names what lies at each 28-px token. Targets are words, scored against their rows of the language
   model's own (random) embedding table, so that a visual token becomes the sum of the words that describe it.
2. tokens: the same by squared error, so that a word that is not there leaves nothing in the token.
3. language: the tower is frozen, its tokens computed once; the decoder, started as look-ups
   (`recipe.attention_init`), learns to answer, many questions a picture.
4. export: the weights that ship, for which `python -m harness.train` then learns a scorer.

`pocket_clip` has the last two stages only: its tower is that of `pocket`. Seeds are fixed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from harness.pocket.recipe.clip import LlavaPocket
from harness.pocket.recipe.decoder import train_language
from harness.pocket.recipe.learner import Pocket
from harness.pocket.recipe.tower import train_tokens, train_vision
from harness.pocket.recipe.video import ClipPocket

STAGES = ("vision", "tokens", "language", "export")


def export(pocket: Pocket) -> None:
    """Save model and processor where `model=pocket` loads them, in float16 to halve the size."""
    pocket.load("tokens")
    pocket.settle_tokens()
    pocket.load("language")
    pocket.model.set_attn_implementation("sdpa")
    pocket.model.half().save_pretrained(pocket.weights)
    pocket.processor.save_pretrained(pocket.weights)


def main() -> None:
    """Run the stages that are not finished."""
    models: dict[str, type[Pocket]] = {"pocket": Pocket, "pocket_llava": LlavaPocket, "pocket_clip": ClipPocket}
    parser = argparse.ArgumentParser("python -m harness.pocket.train", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", choices=tuple(models), default="pocket")
    parser.add_argument("--work", type=Path, help="checkpoints go here; default results/runs/<model>-training")
    parser.add_argument("--stage", choices=STAGES, help="one stage only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vision-steps", type=int, default=3000)
    parser.add_argument("--token-steps", type=int, default=400)
    parser.add_argument("--language-steps", type=int, default=5000)
    parser.add_argument("--pictures", type=int, default=16_000, help="scenes encoded for the language stage")
    args = parser.parse_args()
    stages: tuple[str, ...] = STAGES[2:] if args.model == "pocket_clip" else STAGES
    if args.stage not in (None, *stages):
        parser.error(f"{args.model} has no stage {args.stage}: its tower is that of pocket")
    stages = stages if args.stage is None else (args.stage,)
    pocket = models[args.model](args.work or Path(f"results/runs/{args.model}-training"), args.device)
    if "vision" in stages:
        train_vision(pocket, args.vision_steps)
    if "tokens" in stages:
        train_tokens(pocket, args.token_steps)
    if "language" in stages:
        train_language(pocket, args.language_steps, args.pictures)
    if "export" in stages:
        export(pocket)

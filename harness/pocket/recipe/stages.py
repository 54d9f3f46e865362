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

MODELS: dict[str, type[Pocket]] = {"pocket": Pocket, "pocket_llava": LlavaPocket, "pocket_clip": ClipPocket}


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
    parser = argparse.ArgumentParser("python -m harness.pocket.train", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="pocket")
    parser.add_argument("--work", type=Path, help="checkpoints go here; default results/runs/<model>-training")
    parser.add_argument("--stage", choices=("vision", "tokens", "language", "export"), help="one stage only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vision-steps", type=int, default=3000)
    parser.add_argument("--token-steps", type=int, default=400)
    parser.add_argument("--language-steps", type=int, default=5000)
    parser.add_argument("--pictures", type=int, default=16_000, help="scenes encoded for the language stage")
    args = parser.parse_args()
    pocket = MODELS[args.model](args.work or Path(f"results/runs/{args.model}-training"), args.device)
    if args.stage in ("vision", "tokens") and isinstance(pocket, ClipPocket):
        parser.error(f"{args.model} has no stage {args.stage}: its tower is that of pocket")
    if args.stage in (None, "vision") and not isinstance(pocket, ClipPocket):
        train_vision(pocket, args.vision_steps)
    if args.stage in (None, "tokens") and not isinstance(pocket, ClipPocket):
        train_tokens(pocket, args.token_steps)
    if args.stage in (None, "language"):
        train_language(pocket, args.language_steps, args.pictures)
    if args.stage in (None, "export"):
        export(pocket)

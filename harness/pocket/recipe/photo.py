"""Train `pocket_photo`: a projector and a language model on the features of a frozen, pre-trained DINOv2.

1. scenes: draw pictures and compute their features in the tower, once.
2. projector: it names what each token shows (`photo_projector`).
3. language: the language model, whose heads begin as look-ups (`photo_heads`), learns to answer.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from harness.models.checkpoint import TOWER
from harness.pocket import PHOTO_WEIGHTS
from harness.pocket.photo.scenes import BACKGROUND, GRID, TEST, TRAIN
from harness.pocket.recipe.batches import IGNORE, Encoded, pack, use_grouped_attention
from harness.pocket.recipe.checkpointing import Stage
from harness.pocket.recipe.photo_bank import PART, PROBE_SEED, TRAIN_SEED, Bank, make_bank
from harness.pocket.recipe.photo_export import write
from harness.pocket.recipe.photo_heads import prime
from harness.pocket.recipe.photo_projector import Projector, probe_tokens, project, train_projector
from harness.pocket.recipe.photo_space import NAMED, OTHERS, WIDTH, embeddings
from harness.pocket.recipe.photo_tower import CONFIG, tower_state
from harness.pocket.recipe.vocab import build_tokenizer
from harness.pocket.scenes import Question

LAYERS, READING = 6, 2  # layers of the language model, and the first that reads the picture
HEADS, HIDDEN = 4, 512
TASK_WEIGHT = {"counting": 1.5, "beside": 1.5, "reading": 1.5, "color": 1.5}
SHARE = {"yes": 0.5, "no": 0.5, "one": 0.15}  # of the questions with an answer that is frequent
MOST = 10  # questions of a picture in a batch
THINNED = 72  # tokens of a picture in the first part of the training: all that show something, some background


def photo_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer: every word of a question or an answer is one token."""
    return build_tokenizer(tuple(dict.fromkeys([*NAMED, *OTHERS])))


def build_decoder(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a language model of Qwen2's architecture with the heads of `photo_heads`."""
    token: Any = tokenizer.convert_tokens_to_ids
    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 1e10},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=token("<|im_end|>"),
            pad_token_id=token("<|endoftext|>"),
        )
    )
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(embeddings({t: token(t) for t in tokenizer.get_vocab()}, len(tokenizer)))
    table.requires_grad_(False)  # visual tokens are sums of these directions, which therefore must not change
    prime(model.model, READING)
    return model


def batch_of(
    rows: Sequence[tuple[Tensor, list[Question], Tensor | None]],
    tokenizer: PreTrainedTokenizerFast,
    embed: nn.Embedding,
    weight: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """Return pictures [256, D] with their questions, and the tokens kept of each, as input of the language model."""
    encoded = [(Encoded(tokens.float(), (1, GRID, GRID), [], kept=kept), asked) for tokens, asked, kept in rows]
    return pack(encoded, tokenizer, embed, weight, flat=True)


def answers(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [n, vocabulary], labels [n] and weights [n] of all answer tokens."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(
            inputs_embeds=batch["inputs_embeds"],
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        ).last_hidden_state
        labels = batch["labels"][:, 1:]
        asked = labels != IGNORE
        logits = model.lm_head(hidden[:, :-1][asked])
    return logits.float(), labels[asked], batch["weights"][:, 1:][asked]


def train_language(
    tokens: Tensor, bank: Bank, probe: Tensor, probe_bank: Bank, work: Path, steps: int, batch: int = 16
) -> Any:
    """Train the language model with cross-entropy on the answers."""
    tokenizer = photo_tokenizer()
    model = build_decoder(tokenizer)
    use_grouped_attention(model.model)
    model.config._attn_implementation = "packed_plain"
    stage = Stage("language", work, {"decoder": model.model}, steps, 2e-3)
    empty = torch.from_numpy(bank.labels["shows"]) == BACKGROUND
    for step in stage.run():
        rng = np.random.default_rng([41, step])
        rows = []
        for i in rng.integers(len(bank), size=batch):
            asked = [bank.questions[i][j] for j in rng.permutation(len(bank.questions[i]))]
            asked = [q for q in asked if rng.random() < SHARE.get(q.answer, 1.0)][:MOST]
            kept = None
            if step < 0.6 * steps:
                kept = ((~empty[i]).float() + torch.rand(GRID * GRID)).topk(THINNED).indices.sort().values
            rows.append((tokens[i], asked, kept))
        logits, labels, weights = answers(model, batch_of(rows, tokenizer, model.get_input_embeddings(), TASK_WEIGHT))
        loss = F.cross_entropy(logits, labels, reduction="none") @ weights / weights.sum()
        stage.step(loss)
        if step % 200 == 0 or step + 1 == steps:
            probed = show(evaluate(model, tokenizer, probe, probe_bank, range(150)))
            tqdm.write(f"language {step} loss {float(loss.detach()):.3f} {probed}")
    return model


@torch.no_grad()
def evaluate(
    model: Any, tokenizer: PreTrainedTokenizerFast, tokens: Tensor, bank: Bank, which: range
) -> dict[str, float]:
    """Return the accuracy by task, that of counting as the mean over the right answers."""
    right: dict[str, dict[str, list[bool]]] = {}
    for start in range(which.start, which.stop, 25):
        part = range(start, min(start + 25, which.stop))
        rows = [(tokens[i], bank.questions[i], None) for i in part]
        logits, labels, _ = answers(model, batch_of(rows, tokenizer, model.get_input_embeddings()))
        correct = (logits.argmax(1) == labels)[::2].tolist()  # every second label ends an answer
        asked = [question for _, questions, _ in rows for question in questions]
        for question, is_right in zip(asked, correct, strict=True):
            group = question.answer if question.task == "counting" else ""
            right.setdefault(question.task, {}).setdefault(group, []).append(is_right)
    return {task: float(np.mean([np.mean(part) for part in groups.values()])) for task, groups in right.items()}


def show(accuracy: dict[str, float]) -> str:
    """Return accuracies in percent as one line."""
    return " ".join(f"{task} {100 * value:.0f}" for task, value in sorted(accuracy.items()))


def main() -> None:
    """Take the steps that are not done, and write the folder that ships."""
    parser = argparse.ArgumentParser(
        "python -m harness.pocket.recipe.photo", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--work", type=Path, default=Path("results/runs/pocket_photo-training"))
    parser.add_argument("--tower", type=Path, default=PHOTO_WEIGHTS / TOWER, help="what photo_tower has made")
    parser.add_argument("--out", type=Path, default=PHOTO_WEIGHTS, help="the folder that ships")
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--projector-steps", type=int, default=15_000)
    parser.add_argument("--language-steps", type=int, default=3_500)
    args = parser.parse_args()
    tower = Dinov2Model.from_pretrained(
        None, config=Dinov2Config.from_dict(CONFIG), state_dict=tower_state(args.tower)
    ).eval()
    bank = make_bank(tower, args.work, TRAIN, TRAIN_SEED, range(args.scenes // PART))
    probe = make_bank(tower, args.work, TEST, PROBE_SEED, range(1))
    projector, file = Projector(), args.work / "projector.pt"
    if not file.exists():
        torch.save(train_projector(bank, args.projector_steps).state_dict(), file)
    projector.load_state_dict(torch.load(file, weights_only=True))
    tokens, asked = project(projector, bank), project(projector, probe)
    print("tokens that name what they show:", show(probe_tokens(asked, probe)))
    model = train_language(tokens, bank, asked, probe, args.work, args.language_steps)
    tokenizer = photo_tokenizer()
    print("answers:", show(evaluate(model, tokenizer, asked, probe, range(len(probe)))))
    write(args.out, model, projector, tokenizer, args.tower)


if __name__ == "__main__":
    main()

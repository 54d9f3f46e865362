"""Train the decoder on the visual tokens of the frozen tower."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from harness.pocket.draw import PROBE_SEED, TRAIN_SEED, scene_at
from harness.pocket.recipe.batches import IGNORE, Encoded
from harness.pocket.recipe.checkpointing import Stage
from harness.pocket.recipe.learner import Pocket
from harness.pocket.scenes import Question

TASK_WEIGHT = {"counting": 4.0, "times": 2.0, "places": 2.0}  # the hardest tasks, with few or short questions


@torch.no_grad()
def encode_bank(pocket: Pocket, seed: int, size: int) -> list[Encoded]:
    """Encode scenes of all kinds once and keep them in a file, since the tower is frozen."""
    file = pocket.work / f"bank-{seed}-{size}.pt"
    if file.exists():
        rows = torch.load(file, weights_only=True)
        return [Encoded(x, grid, [Question(*q) for q in asked]) for x, grid, asked in rows]
    kinds = pocket.spread(pocket.shares)
    items: list[Encoded] = []
    for start in tqdm(range(0, size, 32), desc="encode", mininterval=5):
        scenes = [scene_at(kinds[i % len(kinds)], seed, i) for i in range(start, min(start + 32, size))]
        for scene, tokens in zip(scenes, pocket.encode_once(scenes), strict=True):
            items.append(Encoded(tokens.half().cpu().clone(), pocket.grid(scene), scene.questions))
    torch.save([(i.features, i.grid, [(q.task, q.text, q.answer) for q in i.questions]) for i in items], file)
    return items


def forward(pocket: Pocket, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the loss on answer tokens, and which of them are right [answer tokens]."""
    with pocket.autocast:
        hidden = pocket.decoder(
            inputs_embeds=batch["inputs_embeds"],
            position_ids=batch["position_ids"],
            attention_mask=batch["attention_mask"],
            use_cache=False,
        ).last_hidden_state
        labels = batch["labels"][:, 1:]
        asked = labels != IGNORE
        logits = pocket.model.lm_head(hidden[:, :-1][asked])
    weights = batch["weights"][:, 1:][asked]
    loss = F.cross_entropy(logits.float(), labels[asked], reduction="none") @ weights / weights.sum()
    return loss, logits.argmax(-1) == labels[asked]


def sample(
    pocket: Pocket, bank: list[Encoded], rng: np.random.Generator, batch: int, most: int = 6
) -> list[tuple[Encoded, list[Question]]]:
    """Draw a batch of images of similar size, for little padding, with up to `most` questions each."""
    drawn = sorted(rng.integers(len(bank), size=4 * batch), key=lambda i: len(bank[i].features))
    start = batch * int(rng.integers(4))
    rows = []
    for i in drawn[start : start + batch]:
        item = pocket.vary(bank[i], rng)
        order = rng.permutation(len(item.questions))[:most]
        rows.append((item, [item.questions[j] for j in order]))
    return rows


def train_language(pocket: Pocket, steps: int, size: int, batch: int = 16) -> None:
    """Train with cross-entropy on the answer tokens; the tower is frozen."""
    pocket.load("tokens")
    pocket.settle_tokens()
    pocket.begin_decoder()
    pocket.vision.requires_grad_(False)
    # Visual tokens are sums of word embeddings, which therefore must not change.
    pocket.model.get_input_embeddings().requires_grad_(False)
    decoder = torch.nn.ModuleDict({"decoder": pocket.decoder})
    stage = Stage("language", pocket.work, {"decoder": decoder}, steps, 1e-3)
    bank = encode_bank(pocket, TRAIN_SEED + 10, size)
    probe = encode_bank(pocket, PROBE_SEED + 10, pocket.probes)
    for step in stage.run():
        rng = np.random.default_rng([11, step])
        loss, _ = forward(pocket, pocket.pack(sample(pocket, bank, rng, batch), TASK_WEIGHT))
        stage.step(loss)
        if step % 250 == 0 or step + 1 == steps:
            tqdm.write(f"language {step} loss {float(loss):.3f} {probe_language(pocket, probe)}")


@torch.no_grad()
def probe_language(pocket: Pocket, bank: list[Encoded]) -> str:
    """Return the accuracy by task: all answer tokens right under teacher forcing."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(bank), 32):
        rows = [(pocket.asked(item), item.questions[:4]) for item in bank[start : start + 32] if item.questions]
        batch = pocket.pack(rows)
        _, correct = forward(pocket, batch)
        lengths = [
            (q.task, len(pocket.tokenizer(q.answer)["input_ids"]) + 1) for _, questions in rows for q in questions
        ]
        for (task, _), part in zip(lengths, correct.split([n for _, n in lengths]), strict=True):
            right.setdefault(task, []).append(bool(part.all()))
    return " ".join(f"{task} {np.mean(values):.2f}" for task, values in sorted(right.items()))

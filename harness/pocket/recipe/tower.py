"""Train the vision tower on dense targets: the words at each visual token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from harness.pocket.draw import PROBE_SEED, TRAIN_SEED, scene_at
from harness.pocket.recipe.checkpointing import Stage
from harness.pocket.recipe.learner import Pocket

POLISH_SHARE = {"objects": 5, "counting": 2, "text": 3, "document": 3, "chart": 3, "video": 1, "easyvqa": 2}
WHOLE_FROM = 0.85  # share of the steps after which padding, where an architecture has it, takes part
DENSE_SHARE = {"objects": 3, "counting": 1, "text": 5, "document": 4, "chart": 3, "easyvqa": 1}
LABEL_GROUPS = {"color": slice(0, 8), "shape": slice(8, 16), "key": slice(16, 26), "char": slice(26, 44)}
LABEL_GROUPS |= {"pos": slice(44, 49), "object": slice(49, 50), "rank": slice(51, 53)}  # of `label_words`


def train_vision(pocket: Pocket, steps: int, batch: int = 20) -> None:
    """Train to predict the label words at each visual token, with binary cross-entropy over the words."""
    bias = torch.nn.ParameterDict({"bias": torch.full((len(pocket.labels),), -4.0, device=pocket.device)})
    table = pocket.model.get_input_embeddings().weight[pocket.label_rows].detach()
    stage = Stage("vision", pocket.work, {"vision": pocket.vision, "bias": bias}, steps, 2e-3)
    kinds = pocket.spread(DENSE_SHARE)
    weight = torch.tensor(4.0, device=pocket.device)
    for step in stage.run():
        rng = np.random.default_rng([7, step])
        scenes = [scene_at(kinds[rng.integers(len(kinds))], TRAIN_SEED, step * batch + i) for i in range(batch)]
        whole = step >= WHOLE_FROM * steps
        target = pocket.targets(scenes, whole).to(pocket.device)
        logits = 10 * torch.cat(pocket.encode(scenes, whole)) @ table.T + bias["bias"]
        loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="sum") / len(target)
        loss = loss + pocket.whole_picture(target, scenes, whole)
        stage.step(loss)
        if step % 200 == 0 or step + 1 == steps:
            tqdm.write(f"vision {step} loss {float(loss):.3f} {probe_vision(pocket, table, bias['bias'], whole)}")


@torch.no_grad()
def least_squares(pocket: Pocket, size: int = 800) -> None:
    """Set the last linear layer of the tower by least squares: 1 for words that are present, 0 for absent words.

    After cross-entropy, absent words have any coordinate below zero, which adds up to more noise than signal.
    """
    kinds = [*pocket.kinds, "easyvqa"]
    holder, name = pocket.last_map
    last: Any = getattr(holder, name)
    setattr(holder, name, torch.nn.Identity())
    inner, target = [], []
    for start in range(0, size, 20):
        scenes = [scene_at(kinds[i % len(kinds)], TRAIN_SEED, i) for i in range(start, start + 20)]
        inner += pocket.encode(scenes)
        target.append(pocket.targets(scenes))
    setattr(holder, name, last)
    x = F.pad(torch.cat(inner), (0, 1), value=1.0).double()
    gram = x.T @ x
    ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.double, device=gram.device)
    solution = torch.linalg.solve(gram + ridge, x.T @ torch.cat(target).to(x)).float()  # [hidden + 1, words]
    words = pocket.model.get_input_embeddings().weight[pocket.label_rows]
    last.weight.copy_(words.T @ solution[:-1].T)
    last.bias.copy_(words.T @ solution[-1])


def train_tokens(pocket: Pocket, steps: int, batch: int = 20) -> None:
    """Refine with squared error, so that the coordinate of every word is near 0 or 1."""
    pocket.load("vision")
    least_squares(pocket)
    stage = Stage("tokens", pocket.work, {"vision": pocket.vision}, steps, 5e-4)
    table = pocket.model.get_input_embeddings().weight[pocket.label_rows].detach()
    kinds = pocket.spread(POLISH_SHARE)
    for step in stage.run():
        rng = np.random.default_rng([17, step])
        drawn = [kinds[rng.integers(len(kinds))] for _ in range(batch)]
        scenes = [scene_at(kind, TRAIN_SEED, 10**6 + step * batch + i) for i, kind in enumerate(drawn)]
        target = pocket.targets(scenes).to(pocket.device)
        error = torch.cat(pocket.encode(scenes)) @ table.T - target
        loss = ((1 + 2 * target) * error**2).sum() / len(target)
        stage.step(loss)
        if step % 100 == 0 or step + 1 == steps:
            tqdm.write(f"tokens {step} loss {float(loss.detach()):.4f} {probe_tokens(pocket, table)}")


@torch.no_grad()
def probe_tokens(pocket: Pocket, table: Tensor) -> str:
    """Return mean and deviation of present words and deviation of absent words, on unseen scenes."""
    scenes = [scene_at(kind, PROBE_SEED, i) for kind in pocket.kinds for i in range(24)]
    target = pocket.targets(scenes).bool()
    coordinates = (torch.cat(pocket.encode(scenes)) @ table.T).cpu()
    parts = {name: (coordinates[:, part], target[:, part]) for name, part in LABEL_GROUPS.items()}
    return " ".join(f"{n} {f[t].mean():.2f}±{f[t].std():.2f}/{f[~t].std():.3f}" for n, (f, t) in parts.items())


@torch.no_grad()
def probe_vision(pocket: Pocket, table: Tensor, bias: Tensor, whole: bool) -> str:
    """Return recall and precision of the label words by kind of word, on unseen scenes."""
    groups = LABEL_GROUPS
    hit, all_, false = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
    for kind in pocket.kinds:
        scenes = [scene_at(kind, PROBE_SEED, i) for i in range(24)]
        target = pocket.targets(scenes, whole).bool()
        logits = 10 * torch.cat(pocket.encode(scenes, whole)) @ table.T + bias
        predicted = logits.cpu() > 1.4  # logit of 0.8, which compensates for the weight of 4
        for name, part in groups.items():
            hit[name] += float((predicted & target)[:, part].sum())
            false[name] += float((predicted & ~target)[:, part].sum())
            all_[name] += float(target[:, part].sum())
    return " ".join(f"{n} {hit[n] / max(1, all_[n]):.2f}/{hit[n] / max(1, hit[n] + false[n]):.2f}" for n in groups)

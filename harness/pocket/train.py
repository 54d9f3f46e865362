"""Train the pocket model from nothing: `python -m harness.pocket.train [--work DIR] [--stage vision|language|scorer]`.

1. vision: the tower names what lies at each 28-px token. Targets are words, scored against the rows of the language
   model's own (still random) embedding table, so that a visual token starts as the sum of the words that describe it.
2. language: the tower is frozen, its tokens are computed once; the decoder learns to answer, many questions a picture.
3. scorer: the model is frozen; a VisionSelector scorer learns which tokens the answers need (arXiv 2510.16598).

Seeds are fixed, every stage writes checkpoints and goes on from the last one.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from harness.difftopk import diff_top_k
from harness.models.scorer import VisionSelectorScorer, save_scorer
from harness.pocket import WEIGHTS
from harness.pocket.easyvqa import easyvqa_scene, n_train_images
from harness.pocket.model import SCORER_HIDDEN, WIDTH, build_model
from harness.pocket.packed import IGNORE, Encoded, pack, patchify, use_grouped_attention, use_packed_attention
from harness.pocket.scenes import KINDS, Question, Scene, dense_targets
from harness.pocket.vocab import (
    CHARACTERS,
    COLORS,
    KEYS,
    POSITIONS,
    ROLES,
    SHAPES,
    build_processor,
    label_words,
    token_of,
)

TRAIN_SEED, PROBE_SEED = 1, 2  # the suite itself is drawn from seed 3 (harness.pocket.data)
MERGE = 2
NAMED_GAIN = 0.6  # brings the words in a visual token to about the length of the words in a question
MATCH_GAIN, COPY_GAIN = (
    0.75,
    0.15,
)  # a match weighs about e^8 times a miss
SOFT_SHARE = 0.2  # soft count of DiffTopK in training, as published
BANK_SHARE = {"objects": 5, "counting": 4, "text": 2, "document": 2, "chart": 3, "video": 3, "easyvqa": 2}
DENSE_SHARE = {"objects": 3, "counting": 1, "text": 5, "document": 4, "chart": 3, "easyvqa": 1}


def scene_at(kind: str, seed: int, index: int) -> Scene:
    """The scene of a kind at an index of a seed's endless sequence; easy-VQA gives its own training images."""
    if kind == "easyvqa":
        return easyvqa_scene("train", index % n_train_images())
    return KINDS[kind](np.random.default_rng([seed, list(KINDS).index(kind), index]))


def _kinds(share: dict[str, int]) -> list[str]:
    return [kind for kind, times in share.items() for _ in range(times)]


def _schedule(step: int, steps: int, peak: float, warm: int = 100) -> float:
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


class Stage:
    """Optimizer, checkpoint and schedule of one stage; `run` yields the steps that are left."""

    def __init__(self, name: str, work: Path, modules: dict[str, torch.nn.Module], steps: int, peak: float) -> None:
        self.file, self.modules, self.steps, self.peak = work / f"{name}.pt", modules, steps, peak
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.parameters = list(dict.fromkeys(parameters))
        self.optimizer = torch.optim.AdamW(self.parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
        self.start = 0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state[key])
            self.optimizer.load_state_dict(state["optimizer"])
            self.start = state["step"]

    def run(self, every: int = 200) -> Iterator[int]:
        """Steps from the last checkpoint to the end, saving as they go."""
        with tqdm(total=self.steps, initial=self.start, desc=self.file.stem, mininterval=5) as bar:
            for step in range(self.start, self.steps):
                for group in self.optimizer.param_groups:
                    group["lr"] = _schedule(step, self.steps, self.peak)
                torch.manual_seed(step)
                yield step
                bar.update()
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    self.save(step + 1)

    def step(self, loss: Tensor) -> None:
        """One clipped update."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def save(self, step: int) -> None:
        """Write the checkpoint whole or not at all."""
        state = {key: module.state_dict() for key, module in self.modules.items()}
        temporary = self.file.with_suffix(".tmp")
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "step": step}, temporary)
        os.replace(temporary, self.file)


class Trainer:
    """The model under training and what all stages share."""

    def __init__(self, work: Path, device: str) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.device = work, torch.device(device)
        self.processor = build_processor()
        self.tokenizer = self.processor.tokenizer
        model: Any = build_model(self.tokenizer)
        self.model: Any = model.to(self.device)
        embedding = self.model.get_input_embeddings()
        # Rows of about unit norm: a visual token, the sum of a few of them, then lives on the scale of words.
        torch.nn.init.normal_(embedding.weight, std=embedding.weight.shape[1] ** -0.5)
        self.vision = self.model.model.visual
        use_packed_attention(self.vision)
        use_grouped_attention(self.model.model.language_model)
        self.labels = {word: i for i, word in enumerate(label_words())}
        rows = [self.tokenizer.convert_tokens_to_ids(token_of(word)) for word in self.labels]
        assert len({*rows, self.tokenizer.unk_token_id}) == len(rows) + 1, "a label word is not one token of its own"
        self.label_rows = torch.tensor(rows, device=self.device)
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16)

    def encode(self, scenes: list[Scene]) -> list[Tensor]:
        """Visual tokens of each scene, [N_i, D] float32."""
        patches, grids = zip(*[patchify(s.frames) for s in scenes], strict=True)
        with self.autocast:
            tokens = self.vision(
                torch.cat(patches).to(self.device), grid_thw=torch.tensor(grids, device=self.device)
            ).pooler_output
        return list(tokens.float().split([t * h * w // MERGE**2 for t, h, w in grids]))

    # ------------------------------------------------------------------------------------------------- 1. vision

    def train_vision(self, steps: int, batch: int = 20) -> None:
        """Dense naming: for each visual token, which label words lie there (binary cross-entropy over the words)."""
        bias = torch.nn.ParameterDict({"bias": torch.full((len(self.labels),), -4.0, device=self.device)})
        table = self.model.get_input_embeddings().weight[self.label_rows].detach()
        stage = Stage("vision", self.work, {"vision": self.vision, "bias": bias}, steps, 2e-3)
        kinds = _kinds(DENSE_SHARE)
        weight = torch.tensor(4.0, device=self.device)
        for step in stage.run():
            rng = np.random.default_rng([7, step])
            scenes = [scene_at(kinds[rng.integers(len(kinds))], TRAIN_SEED, step * batch + i) for i in range(batch)]
            target = torch.from_numpy(np.concatenate([dense_targets(s, self.labels) for s in scenes])).to(self.device)
            logits = 10 * torch.cat(self.encode(scenes)) @ table.T + bias["bias"]
            loss = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight, reduction="sum") / len(target)
            stage.step(loss)
            if step % 200 == 0 or step + 1 == steps:
                tqdm.write(f"vision {step} loss {float(loss):.3f} {self.probe_vision(table, bias['bias'])}")

    @torch.no_grad()
    def purify_tokens(self) -> None:
        """Leave of a visual token what names it, exactly, by editing the last linear map of the tower.

        The loss only sees products with the label words. What else the tower writes (a common offset ten times as long
        as any word, and directions that no word has) would drown the words after the decoder's first normalisation.
        """
        table = self.model.get_input_embeddings().weight
        words, _ = torch.linalg.qr(table[self.label_rows].T)  # [D, words] orthonormal
        scenes = [scene_at(kind, PROBE_SEED, i) for kind in KINDS for i in range(24)]
        offset = torch.cat(self.encode(scenes)).mean(0)
        last = self.vision.merger.mlp[2]
        project = NAMED_GAIN * words @ words.T
        last.weight.copy_(project @ last.weight)
        last.bias.copy_(project @ (last.bias - offset) + table[self.tokenizer.convert_tokens_to_ids("<|image_pad|>")])

    @torch.no_grad()
    def prime_matching(self) -> None:
        """Start the lower decoder layers as look-ups: a word attends to its like and takes over what else is there.

        Keys and queries read off the same label words, in the slow half of the rotary dimensions, where distance hardly
        matters; values carry label words back to their own embeddings. From a stock start, thousands of steps pass
        before any head compares a question with the picture. All of it stays trainable.
        """
        table = self.model.get_input_embeddings().weight
        vectors = table[self.label_rows]  # [words, D]
        read = torch.linalg.pinv(vectors).T  # [words, D]: coordinates of a token in label words
        named = self.labels
        matched = [[*COLORS, *SHAPES], [*KEYS, *POSITIONS, "text"]]  # by the two key-value heads, 16 words each
        carried = [[*COLORS, *SHAPES, *ROLES], [*CHARACTERS, *COLORS, *POSITIONS]]  # at most 32 words each
        for layer in self.model.model.language_model.layers[:3]:
            attention = layer.self_attn
            width, groups = attention.head_dim, attention.num_key_value_groups
            slow = [*range(width // 4, width // 2), *range(3 * width // 4, width)]
            for head, (match, carry) in enumerate(zip(matched, carried, strict=True)):
                start = head * width
                rows = [named[word] for word in carry]
                attention.k_proj.weight[[start + i for i in slow]] = MATCH_GAIN * read[[named[w] for w in match]]
                attention.v_proj.weight[start : start + len(rows)] = COPY_GAIN * read[rows]
                for query in range(head * groups, (head + 1) * groups):
                    first = query * width
                    attention.q_proj.weight[[first + i for i in slow]] = MATCH_GAIN * read[[named[w] for w in match]]
                    attention.o_proj.weight[:, first : first + len(rows)] = vectors[rows].T / groups

    @torch.no_grad()
    def probe_vision(self, table: Tensor, bias: Tensor) -> str:
        """Share of label words found (recall at precision of threshold 0), by kind of word, on unseen scenes."""
        groups = {"color": slice(0, 8), "shape": slice(8, 16), "key": slice(16, 26), "char": slice(26, 44)}
        groups |= {"pos": slice(44, 49), "object": slice(49, 50), "rank": slice(51, 53)}
        hit, all_, false = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
        for kind in KINDS:
            scenes = [scene_at(kind, PROBE_SEED, i) for i in range(24)]
            target = torch.from_numpy(np.concatenate([dense_targets(s, self.labels) for s in scenes])).bool()
            found = (
                10 * torch.cat(self.encode(scenes)) @ table.T + bias
            ).cpu() > 1.4  # logit of 0.8: undoes the weight
            for name, part in groups.items():
                hit[name] += float((found & target)[:, part].sum())
                false[name] += float((found & ~target)[:, part].sum())
                all_[name] += float(target[:, part].sum())
        return " ".join(f"{n} {hit[n] / max(1, all_[n]):.2f}/{hit[n] / max(1, hit[n] + false[n]):.2f}" for n in groups)

    # ----------------------------------------------------------------------------------------------- 2. language

    @torch.no_grad()
    def bank(self, seed: int, size: int) -> list[Encoded]:
        """Encoded scenes of all kinds, made once: the tower is frozen from here on."""
        kinds = _kinds(BANK_SHARE)
        items: list[Encoded] = []
        for start in tqdm(range(0, size, 32), desc="encode", mininterval=5):
            scenes = [scene_at(kinds[i % len(kinds)], seed, i) for i in range(start, min(start + 32, size))]
            for scene, tokens in zip(scenes, self.encode(scenes), strict=True):
                width, height = scene.frames[0].size
                grid = (max(1, len(scene.frames) // 2), height // 28, width // 28)
                items.append(Encoded(tokens.half().cpu(), grid, scene.questions))
        return items

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss on answer tokens and whether each was right, [answer tokens]."""
        with self.autocast:
            hidden = self.model.model.language_model(
                inputs_embeds=batch["inputs_embeds"],
                position_ids=batch["position_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).last_hidden_state
            labels = batch["labels"][:, 1:]
            asked = labels != IGNORE
            logits = self.model.lm_head(hidden[:, :-1][asked])
        return F.cross_entropy(logits.float(), labels[asked]), (logits.argmax(-1) == labels[asked])

    def sample(
        self, bank: list[Encoded], rng: np.random.Generator, batch: int, most: int = 6
    ) -> list[tuple[Encoded, list[Question]]]:
        """A batch of pictures of like size, for little padding, with up to `most` of their questions each."""
        drawn = sorted(rng.integers(len(bank), size=4 * batch), key=lambda i: len(bank[i].features))
        start = batch * int(rng.integers(4))
        rows = []
        for i in drawn[start : start + batch]:
            item = bank[i]
            item.interval = int(rng.integers(1, 4))
            order = rng.permutation(len(item.questions))[:most]
            rows.append((item, [item.questions[j] for j in order]))
        return rows

    def train_language(self, steps: int, size: int, batch: int = 16) -> None:
        """Answers: cross-entropy on the answer tokens, tower frozen."""
        self.load("vision")
        self.purify_tokens()
        self.prime_matching()
        self.vision.requires_grad_(False)
        embed = self.model.get_input_embeddings()
        embed.requires_grad_(False)  # or the words would drift from the visual tokens that are made of them
        decoder = torch.nn.ModuleDict({"decoder": self.model.model.language_model})
        stage = Stage("language", self.work, {"decoder": decoder}, steps, 1e-3)
        bank = self.bank(TRAIN_SEED + 10, size)
        probe = self.bank(PROBE_SEED + 10, 420)
        for step in stage.run():
            rng = np.random.default_rng([11, step])
            loss, _ = self.forward(pack(self.sample(bank, rng, batch), self.tokenizer, embed))
            stage.step(loss)
            if step % 250 == 0 or step + 1 == steps:
                tqdm.write(f"language {step} loss {float(loss):.3f} {self.probe_language(probe)}")

    @torch.no_grad()
    def probe_language(self, bank: list[Encoded]) -> str:
        """Share of questions whose every answer token is right under teacher forcing, by task."""
        right: dict[str, list[bool]] = {}
        embed = self.model.get_input_embeddings()
        for start in range(0, len(bank), 32):
            rows = [(item, item.questions[:4]) for item in bank[start : start + 32] if item.questions]
            batch = pack(rows, self.tokenizer, embed)
            _, correct = self.forward(batch)
            lengths = [
                (q.task, len(self.tokenizer(q.answer)["input_ids"]) + 1) for _, questions in rows for q in questions
            ]
            for (task, _), part in zip(lengths, correct.split([n for _, n in lengths]), strict=True):
                right.setdefault(task, []).append(bool(part.all()))
        return " ".join(f"{task} {np.mean(values):.2f}" for task, values in sorted(right.items()))

    # ------------------------------------------------------------------------------------------------- 3. scorer

    def train_scorer(self, steps: int, size: int, batch: int = 24) -> None:
        """VisionSelector's recipe: a soft mask on the visual tokens; answers, and a term that drives it to 0 or 1."""
        self.load("vision")
        self.purify_tokens()
        self.load("language")
        self.model.requires_grad_(False)
        embed = self.model.get_input_embeddings()
        scorer = VisionSelectorScorer(WIDTH, SCORER_HIDDEN).to(self.device)
        scorer.requires_grad_(True)
        stage = Stage("scorer", self.work, {"scorer": scorer}, steps, 3e-3)
        bank = self.bank(TRAIN_SEED + 20, size)
        for step in stage.run():
            rng = np.random.default_rng([13, step])
            rows, binary = [], []
            for item, questions in self.sample(bank, rng, batch):
                features = item.features.float().to(self.device)
                logits = scorer(features)
                weights = diff_top_k(logits, SOFT_SHARE * len(logits))
                hard = torch.zeros_like(weights)
                hard[logits.detach().topk(max(1, int(SOFT_SHARE * len(logits)))).indices] = 1
                binary.append(F.binary_cross_entropy(weights.clamp(1e-6, 1 - 1e-6), hard))
                rows.append((replace(item, features=features * weights[:, None]), questions))
            loss, right = self.forward(pack(rows, self.tokenizer, embed))
            sharpness = 0.1 + (2.0 - 0.1) * step / steps
            stage.step(loss + sharpness * torch.stack(binary).mean())
            if step % 100 == 0 or step + 1 == steps:
                tqdm.write(
                    f"scorer {step} answers {float(loss):.3f} right {float(right.float().mean()):.3f} "
                    f"mask {float(torch.stack(binary).mean()):.3f}"
                )

    def load(self, stage: str) -> None:
        """Weights of a finished stage."""
        state = torch.load(self.work / f"{stage}.pt", weights_only=True)
        if stage == "vision":
            self.vision.load_state_dict(state["vision"])
        else:
            self.model.model.language_model.load_state_dict(
                {k.removeprefix("decoder."): v for k, v in state["decoder"].items()}
            )

    def export(self) -> None:
        """Model and processor in the folder that `model=pocket` loads; halves are exact enough and half the size."""
        self.load("vision")
        self.purify_tokens()
        self.load("language")
        for part in (self.vision, self.model.model.language_model):
            part.config._attn_implementation = "sdpa"
        self.model.half().save_pretrained(WEIGHTS)
        self.processor.save_pretrained(WEIGHTS)
        scorer = VisionSelectorScorer(WIDTH, SCORER_HIDDEN)
        scorer.load_state_dict(torch.load(self.work / "scorer.pt", weights_only=True)["scorer"])
        save_scorer(scorer, WEIGHTS / "scorer")


def main() -> None:
    """Run the stages that are left."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("results/runs/pocket-training"), help="checkpoints go here")
    parser.add_argument("--stage", choices=("vision", "language", "scorer", "export"), help="one stage only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vision-steps", type=int, default=3000)
    parser.add_argument("--language-steps", type=int, default=5000)
    parser.add_argument("--scorer-steps", type=int, default=500)
    parser.add_argument("--pictures", type=int, default=16_000, help="scenes encoded for the language stage")
    args = parser.parse_args()
    trainer = Trainer(args.work, args.device)
    if args.stage in (None, "vision"):
        trainer.train_vision(args.vision_steps)
    if args.stage in (None, "language"):
        trainer.train_language(args.language_steps, args.pictures)
    if args.stage in (None, "scorer"):
        trainer.train_scorer(args.scorer_steps, args.pictures // 4)
    if args.stage in (None, "export"):
        trainer.export()


if __name__ == "__main__":
    main()

"""Measure how much importance methods retain of the same tokens, and how clustered these are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import methods
from harness.analyze import settings
from harness.analyze.collect import TokenProbe, collect_tokens
from harness.analyze.hopkins import Cloud, retention
from harness.analyze.questions import Source
from harness.analyze.settings import MethodPoint
from harness.evaluation.pruner import pruner_of
from harness.models.loading import Loaded
from harness.models.model_folder import ModelFolder
from harness.models.scorer import load_scorer
from methods.base import AttentionSpec, Method, Signal, Tokens
from methods.budget import Budget
from methods.scores import min_max

UNIFORM, SCORER = "uniform", "scorer"
Key = tuple[frozenset[Signal], AttentionSpec]


class Importance:
    """The source of importance: uniform random numbers, which are independent of the tokens, or the scorer."""

    def __init__(self, cfg: DictConfig, loaded: Loaded) -> None:
        self.drawn = cfg.importance == UNIFORM
        self.draws = cfg.seeds if self.drawn else 1
        self.scorer: nn.Module | None = None
        if not self.drawn:
            run = settings.run_of(cfg, MethodPoint("greedy", {}), 0.5)
            file = pruner_of(run, ModelFolder(loaded.folder)).scorer
            assert file is not None
            self.scorer = load_scorer(file, loaded.model.config.get_text_config().hidden_size).to(loaded.device)

    def signals(self, method: Method) -> Key:
        """Return the signals that a method needs of an image, and which attention it reads."""
        wanted = method.needs - {Signal.IMPORTANCE} if self.drawn else method.needs | {Signal.IMPORTANCE}
        return wanted, method.attention_spec if Signal.VIT_ATTENTION in wanted else AttentionSpec()

    def assign(self, tokens: Tokens, seed: list[int]) -> Tokens:
        """Return the tokens with their importance; random importance also replaces the vision tower's attention."""
        if not self.drawn:
            return tokens
        uniform = np.random.default_rng(seed).random(len(tokens.features))
        importance = torch.from_numpy(uniform).float().to(tokens.features.device)
        attention = tokens.vit_attention and dict.fromkeys(tokens.vit_attention, importance)
        return replace(tokens, importance=importance, vit_attention=attention)

    def weights(self, importance: Tensor) -> Tensor:
        """Return the weights for retention: random importance as it is; logits scaled to [0, 1]."""
        return importance if self.drawn else min_max(importance, 1e-6)


def rows(cfg: DictConfig, loaded: Loaded, source: Source) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, draw of importance, budget and method.

    Budgets that leave fewer than two tokens of an image, or drop none, are skipped.
    """
    importance = Importance(cfg, loaded)
    points = [(point, methods.load(point.name, **point.params)) for point in settings.method_points(cfg)]
    keys = list(dict.fromkeys(importance.signals(method) for _, method in points))
    probes = [TokenProbe(wanted=wanted, reading=reading) for wanted, reading in keys]
    images = collect_tokens(cfg, loaded, source, probes, importance.scorer)
    for number, (question, seen) in enumerate(images):
        seed = [cfg.seed, int(question.pictures[:8], 16)]
        cloud, n = Cloud(seen[0].features, seed, cfg.draws), len(seen[0].features)
        budgets = [(keep, k) for keep in settings.keeps(cfg) if 2 <= (k := Budget(keep=keep).count(n)) < n]
        for draw in range(importance.draws):
            assigned = {key: importance.assign(tokens, [*seed, draw]) for key, tokens in zip(keys, seen, strict=True)}
            for keep, k in budgets:
                for point, method in points:
                    tokens = assigned[importance.signals(method)]
                    assert tokens.importance is not None
                    kept = method.select(tokens, k, torch.Generator().manual_seed(draw)).kept
                    yield {
                        **{"image": number, "seed": draw, "keep": keep, "tokens": n, "kept": k},
                        **{"curve": point.curve, "parameter": point.swept, "value": point.value, "label": point.label},
                        "retention": retention(importance.weights(tokens.importance), kept),
                        **{kind: cloud.hopkins(kept, kind) for kind in cfg.references},
                    }

"""What methods keep of the same tokens under the same importance: how much of it, and how clustered."""

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
from harness.analyze.collect import Noted, gathered
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
    """Where importance comes from: drawn uniformly, so that it has nothing to do with the tokens, or the scorer."""

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
        """What has to be read of an image for a method, and which attention."""
        wanted = method.needs - {Signal.IMPORTANCE} if self.drawn else method.needs | {Signal.IMPORTANCE}
        return wanted, method.attention_spec if Signal.VIT_ATTENTION in wanted else AttentionSpec()

    def given(self, tokens: Tokens, seed: list[int]) -> Tokens:
        """What a method sees; drawn importance stands for the attention of the vision tower, too."""
        if not self.drawn:
            return tokens
        uniform = np.random.default_rng(seed).random(len(tokens.features))
        importance = torch.from_numpy(uniform).float().to(tokens.features.device)
        attention = tokens.vit_attention and dict.fromkeys(tokens.vit_attention, importance)
        return replace(tokens, importance=importance, vit_attention=attention)

    def weights(self, importance: Tensor) -> Tensor:
        """What retention counts: as drawn, or logits scaled to [0, 1], since they may be negative."""
        return importance if self.drawn else min_max(importance, 1e-6)


def rows(cfg: DictConfig, loaded: Loaded, source: Source) -> Iterator[dict[str, Any]]:
    """One row for each image, draw of importance, budget and method.

    A budget that leaves fewer than two tokens of an image, or drops none, has no row of it.
    """
    importance = Importance(cfg, loaded)
    players = [(one, methods.load(one.name, **one.params)) for one in settings.contestants(cfg)]
    keys = list(dict.fromkeys(importance.signals(method) for _, method in players))
    probes = [Noted(wanted=wanted, reading=reading) for wanted, reading in keys]
    images = gathered(loaded, source, probes, cfg.seed, cfg.limit, cfg.min_tokens, importance.scorer)
    for number, (question, seen) in enumerate(images):
        seed = [cfg.seed, int(question.pictures[:8], 16)]
        cloud, n = Cloud(seen[0].features, seed, cfg.draws), len(seen[0].features)
        budgets = [(keep, k) for keep in settings.keeps(cfg) if 2 <= (k := Budget(keep=keep).count(n)) < n]
        for draw in range(importance.draws):
            given = {key: importance.given(tokens, [*seed, draw]) for key, tokens in zip(keys, seen, strict=True)}
            for keep, k in budgets:
                for one, method in players:
                    tokens = given[importance.signals(method)]
                    assert tokens.importance is not None
                    kept = method.select(tokens, k, torch.Generator().manual_seed(draw)).kept
                    yield {
                        **{"image": number, "seed": draw, "keep": keep, "tokens": n, "kept": k},
                        **{"curve": one.curve, "parameter": one.swept, "value": one.value, "label": one.label},
                        "retention": retention(importance.weights(tokens.importance), kept),
                        **{kind: cloud.hopkins(kept, kind) for kind in cfg.references},
                    }

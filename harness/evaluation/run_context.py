"""What the runs of one process share; importing this does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from harness.core.config import ModelConfig, RunConfig, validate
from harness.core.distributed import launched
from harness.core.files import digest
from harness.core.timing import Stages
from harness.evaluation import preflight
from harness.evaluation.preflight import LocatedRun
from harness.evaluation.progress import Progress

if TYPE_CHECKING:
    from harness.evaluation.run_plan import RunPlan
    from harness.evaluation.task_suite import TaskSuite
    from harness.models.loading import Loaded
    from harness.pruning.vision_cache import VisionCache
    from methods.base import Method

GB = 10**9


class RunContext:
    """The runs of one process: what was located for each, and the model, vision cache and tasks that they share."""

    def __init__(self) -> None:
        self.vision_cache: VisionCache | None = None  # of the model in memory
        self.progress = Progress()
        self.finished: list[Path] = []  # folders of the runs so far, baselines before theirs
        self._located: dict[str, LocatedRun] = {}
        self._methods: dict[str, list[Method]] = {}  # model -> the methods of the jobs to come
        self._model: tuple[str, Loaded] | None = None
        self._suites: dict[str, TaskSuite] = {}

    def check(self, cfg: DictConfig) -> None:
        """Refuse everything that can be found wrong without importing torch."""
        run = preflight.check(cfg)
        self._located[_key(run.config)] = run
        self.progress.jobs = len(self._located)

    @property
    def folders(self) -> list[str]:
        """The folders `runs` of all jobs, each once."""
        return list(dict.fromkeys(run.config.runs for run in self._located.values()))

    def check_family(self, cfg: DictConfig) -> None:
        """Refuse a method whose needs the model's family cannot meet; note the method of each model for `load`."""
        run = self.located(validate(cfg))
        if not run.config.dry_run:  # the dry run checks it itself, also for models that are not here
            self._methods.setdefault(_key(run.config.model), []).append(preflight.check_family(run))

    def located(self, config: RunConfig) -> LocatedRun:
        """Return what `check` has located, or locate it now."""
        key = _key(config)
        if key not in self._located:
            self._located[key] = preflight.locate(config)
        return self._located[key]

    def plan(self, config: RunConfig) -> RunPlan:
        """Resolve a run."""
        from harness.evaluation.run_plan import plan

        return plan(self.located(config))

    def load(self, plan: RunPlan, methods: Sequence[Method]) -> tuple[Loaded, VisionCache | None]:
        """Return the model, loaded once for consecutive runs, and the vision passes that they and `methods` share."""
        from harness.models.loading import load
        from harness.pruning.vision_cache import VisionCache

        config, key = plan.config, digest(plan.model_identity)
        if self._model is None or self._model[0] != key:
            self._model = self.vision_cache = None  # before the next one needs the memory
            self._model = key, load(config.model, plan.model.path)
        loaded = self._model[1]
        expected = self._methods.get(_key(config.model), [])
        if not config.share_gb or max(len(expected), len(methods)) < 2:
            return loaded, None
        if self.vision_cache is None:
            self.vision_cache = VisionCache(loaded.model, int(config.share_gb * GB), [*expected, *methods])
        return loaded, self.vision_cache

    def suite(self, plan: RunPlan, stages: Stages) -> TaskSuite:
        """Return the tasks of a run, checked; those of an earlier run if they are the same."""
        from harness.evaluation.task_suite import TaskSuite

        config, family = plan.config, plan.model.adapter
        key = digest([plan.tasks, asdict(config.tasks), config.data_root, sorted(family.media)])
        if key not in self._suites:
            suite = TaskSuite(config.tasks, family.prompts, plan.data, config.verbose)
            with stages("data"):
                launched().in_turn(lambda: suite.check(family.media, config.question_sample))
            self._suites[key] = suite
        return self._suites[key]


def _key(config: RunConfig | ModelConfig) -> str:
    return digest(asdict(config))

"""What the runs of one process have in common: the model in memory, its passes through the vision tower, the tasks."""

from collections.abc import Sequence
from dataclasses import asdict

from harness.core.config import ModelConfig, RunConfig
from harness.core.distributed import launched
from harness.core.files import digest
from harness.core.timing import Stages
from harness.evaluation.identity import Identity
from harness.evaluation.task_suite import TaskSuite
from harness.models.loading import Loaded, family_of, load
from harness.pruning.vision_cache import VisionCache
from methods.base import Method

GB = 10**9

_expected: dict[str, list[Method]] = {}  # model -> the methods of the jobs to come
_last_loaded: list[tuple[str, Loaded, VisionCache | None]] = []
_suites: dict[str, TaskSuite] = {}


def expect(model: ModelConfig, method: Method) -> None:
    """Take note of a job of this process before the first one starts, so that one vision pass can serve them all."""
    _expected.setdefault(digest(asdict(model)), []).append(method)


def loaded(config: RunConfig, identity: Identity, methods: Sequence[Method]) -> tuple[Loaded, VisionCache | None]:
    """Return the model, loaded once for consecutive jobs, and the vision passes that they and these methods share."""
    key = digest(identity.model)
    if not _last_loaded or _last_loaded[0][0] != key:
        _last_loaded.clear()  # before the next one needs the memory
        _last_loaded.append((key, load(config.model), None))
    model, shared = _last_loaded[0][1:]
    expected = _expected.get(digest(asdict(config.model)), [])
    if not config.share_gb or max(len(expected), len(methods)) < 2:
        return model, None
    if shared is None:
        shared = VisionCache(model.model, int(config.share_gb * GB), [*expected, *methods])
        _last_loaded[0] = key, model, shared
    return model, shared


def suite(config: RunConfig, identity: Identity, tasks: object, stages: Stages) -> TaskSuite:
    """The tasks of a job, checked; those of an earlier one if they are the same, which `tasks` in its folder tells."""
    family = family_of(identity.folder)
    key = digest([tasks, asdict(config.tasks), config.data_root, sorted(family.media)])
    if key not in _suites:
        made = TaskSuite(config.tasks, family.prompts, config.data_root)
        with stages("data"):
            launched().in_turn(lambda: made.check(family.media, config.limit))
        _suites[key] = made
    return _suites[key]

"""A budget per tile from the command to the tables: what a run records, and what its budget is called."""

import json
import math

import pytest
from composed_sweeps import composed
from in_process import run
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor
from tiny_tasks import write_tiny_tasks

from harness.core.config import validate
from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.results.formats import heading
from harness.results.frames import budget_key
from harness.results.result import load_results

QUESTIONS = 4


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run of LLaVA-NeXT with `per_tile=`, and its baseline."""
    root = tmp_path_factory.mktemp("per_tile")
    tiny_llava_next().save_pretrained(root / "model")
    tiny_llava_next_processor().save_pretrained(root / "model")
    include = write_tiny_tasks(root / "tasks", QUESTIONS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(root / "cache"))
        model = ["model=llava16_vicuna7b", f"model.pretrained={root / 'model'}", "model.dtype=float32"]
        rest = ["method=visionzip", "per_tile=3", "tasks=[tiny_stills]", f"tasks.include={include}"]
        run(validate(compose("config", register([*model, *rest, f"runs={root / 'runs'}"]))))
    return load_results(str(root / "runs"))


def test_both_realised_numbers_are_recorded(results):
    (ours,) = (result for result in results if not result.is_baseline)
    lines = [json.loads(line) for line in (ours.folder / "kept.jsonl").read_text().splitlines()]
    assert len(lines) == QUESTIONS
    for line in lines:
        assert line["per_tile"] == [3] * len(line["per_tile"])
        assert line["k"] == 3 * len(line["per_tile"]) == len(line["kept"])
        assert line["newlines"][1] == 0 < line["newlines"][0]
    numbers = ours.metrics["visual_tokens"]["tiny_stills"]
    assert numbers["per_tile"] == 3
    assert math.isclose(numbers["kept"], sum(line["k"] for line in lines) / QUESTIONS)
    assert (ours.budget, ours.about["config"]["keep"], ours.about["config"]["per_tile"]) == ("per_tile=3", None, 3)
    assert ours.folder.name.startswith("visionzip-3per_tile-")
    assert ours.about["config"]["model"]["newlines"] == "drop"


def test_the_baseline_has_neither_budget_nor_rule(results):
    (baseline,) = (result for result in results if result.is_baseline)
    assert baseline.about["identity"]["budget"] == {"keep": 1.0, "tokens": None}
    assert "newlines" not in baseline.about["identity"]
    assert baseline.setting == next(result for result in results if not result.is_baseline).setting


def test_in_words():
    assert heading("per_tile=32") == "32 visual tokens of each tile kept"
    assert budget_key("per_tile=32") == ("per_tile", 32.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["per_tile=3", "tokens=9"], "tokens=9 and per_tile=3 exclude each other"),
        (["per_tile=3", "keep=0.5"], "keep=0.5 and per_tile=3 exclude each other"),
        (["per_tile=0"], "per_tile must be an integer of at least 1, not 0"),
        (["per_tile=3", "method=none"], "method=none keeps every visual token: leave per_tile=3 out"),
        (["model=llava16_34b", "model.newlines=some"], "model.newlines must be null or one of drop, keep, follow"),
    ],
)
def test_what_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        composed(*overrides)

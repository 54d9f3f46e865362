"""Corrections to lmms-eval's tasks on videos: where their files lie, empty answers, guesses, and parts of a benchmark.

As in `task_overrides`, a correction changes the configuration of one Task object, or the globals of its own code, which
lmms-eval executes again for every Task.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.core.errors import UserError

Config = dict[str, Any]  # a task's configuration

SUB_TASKS = (  # of MVBench, 200 questions each
    *("action_sequence", "action_prediction", "action_antonym", "fine_grained_action", "unexpected_action"),
    *("object_existence", "object_interaction", "object_shuffle", "moving_direction", "action_localization"),
    *("scene_transition", "action_count", "moving_count", "moving_attribute", "state_change", "fine_grained_pose"),
    *("character_order", "egocentric_navigation", "episodic_reasoning", "counterfactual_inference"),
)
MLVU_KINDS = {"mlvu_dev": 7, "mlvu_test": 9}  # of questions, by which lmms-eval divides whichever were asked
NO_ANSWER = " "  # for scorers that leave an empty answer out of the questions that they count, or fail


def read_from(folder: Path, module: dict[str, Any], cache: str) -> bool:
    """Let a task's code look for its videos in `folder` instead of `$HF_HOME/cache`; False if it has no place for that.

    `module` holds the globals of that code.
    """
    if "cache_name" in module:  # it looks below base_cache_dir / cache_name: an absolute second part voids the first
        module["cache_name"] = str(folder)
        return True
    if "_load_task_config" in module:  # it reads its own file again for each video
        read = module["_load_task_config"]

        def here(name: str) -> Any:
            config = read(name)
            config["dataset_kwargs"]["cache_dir"] = str(folder)
            return config

        module["_load_task_config"] = here
        return True
    below = re.compile(rf".*/{re.escape(cache)}(?=/|$)")
    found = {name: value for name, value in module.items() if isinstance(value, str) and not name.startswith("__")}
    found = {name: value for name, value in found.items() if below.match(value)}
    module.update({name: below.sub(lambda _: str(folder), value, count=1) for name, value in found.items()})
    return bool(found)


def mvbench_part(config: Config) -> None:
    """Count an empty answer as wrong, which lmms-eval leaves out of the questions, and refuse frames in folders."""
    process, visual = config["process_results"], config["doc_to_visual"]
    config["process_results"] = lambda doc, results: process(doc, [results[0] or NO_ANSWER])

    def video(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any]) -> list[str]:
        paths: list[str] = visual(doc, lmms_eval_specific_kwargs)
        if any(map(os.path.isdir, paths)):
            raise UserError(f"{paths[0]} is a folder of frames, MVBench is read as files: copy its branch video")
        return paths

    config["doc_to_visual"] = video


def mvbench(config: Config) -> None:
    """Ask all of MVBench's sub-tasks as one task: as they have equally many questions, its score is their mean."""
    mvbench_part(config)
    first, split, path = config["dataset_name"], config["test_split"], config["dataset_path"]
    kwargs = config["dataset_kwargs"]
    settings = {name: kwargs[name] for name in ("token", "revision") if name in kwargs}
    if os.path.isdir(path):
        settings = {"cache_dir": kwargs["cache_dir"]}
    texts = config["lmms_eval_specific_kwargs"]["default"]
    process, visual, text = (config[name] for name in ("process_results", "doc_to_visual", "doc_to_text"))

    def whole(rows: Any) -> Any:
        import datasets

        parts = []
        for name in SUB_TASKS:
            part = rows if name == first else datasets.load_dataset(path, name, split=split, **settings)
            part = part.select_columns(["video", "question", "candidates", "answer"])
            parts.append(part.add_column("sub_task", [name] * len(part)))
        return datasets.concatenate_datasets(parts)

    def scored(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        return {name: {**record, "sub_task": doc["sub_task"]} for name, record in process(doc, results).items()}

    config["process_docs"] = whole
    config["process_results"] = scored
    config["doc_to_visual"] = lambda doc: visual(doc, {**texts, "sub_task": doc["sub_task"]})
    config["doc_to_text"] = lambda doc, lmms_eval_specific_kwargs: text(doc, texts)


def no_guess(config: Config) -> None:
    """Count an answer without a letter as wrong; lmms-eval draws a letter, which puts silence at chance."""
    config["process_results"].__globals__["random"] = SimpleNamespace(choice=lambda letters: NO_ANSWER)


def mlvu(config: Config) -> None:
    """Average over the kinds of questions that were asked, and find unpacked videos also without $HF_HOME."""
    for function in ("doc_to_visual", "process_results"):
        module = config[function].__globals__
        lost = {name: value for name, value in module.items() if isinstance(value, str) and value.startswith("./~/")}
        module.update({name: os.path.expanduser(value[2:]) for name, value in lost.items()})
    (metric,) = config["metric_list"]
    of_all, kinds = metric["aggregation"], MLVU_KINDS[config["task"]]

    def mean(results: list[dict[str, Any]]) -> float:
        return float(of_all(results) * kinds / len({result["task_type"] for result in results}))

    metric["aggregation"] = mean


def seedbench_video(config: Config) -> None:
    """Ask the questions of SEED-Bench about videos alone, whose frames its rows bring as images."""
    config["process_docs"] = lambda rows: rows.filter(lambda kind: kind == "video", input_columns="data_type")
    config["metric_list"] = [metric for metric in config["metric_list"] if metric["metric"] == "seed_video"]


CORRECTIONS: dict[str, Callable[[Config], None]] = {
    **{f"mvbench_{name}": mvbench_part for name in SUB_TASKS},
    "mvbench": mvbench,
    "longvideobench_val_v": no_guess,
    "longvideobench_val_i": no_guess,
    "egoschema_subset": no_guess,
    "mlvu_dev": mlvu,
    "mlvu_test": mlvu,
    "seedbench_video": seedbench_video,
}

"""Make twelve questions of each benchmark of videos, for `miniature_datasets`, which says what they are.

Vinoground is only scored as a whole, so it has all 2000 rows.
"""

import json
from pathlib import Path
from typing import Any

import yaml
from datasets import List, Value
from miniature_files import INT, LETTERS, ROWS, TEXT, video, write


def videomme(root: Path) -> None:
    names = ("video_id", "duration", "domain", "sub_category", "url", "videoID", "question_id", "task_type")
    columns = dict.fromkeys((*names, "question", "answer"), TEXT) | {"options": List(TEXT)}
    rows = []
    for number, duration in enumerate(("short", "short", "medium", "long")):
        for place in range(3):
            rows.append(
                {
                    "video_id": f"{number + 1:03}",
                    "duration": duration,
                    "domain": "Life Record",
                    "sub_category": "Food",
                    "url": "https://example.org",
                    "videoID": f"clip{number}",
                    "question_id": f"{number + 1:03}-{place + 1}",
                    "task_type": "Counting Problem",
                    "question": "How many cups are there?",
                    "options": ["A. one", "B. two", "C. three", "D. four"],
                    "answer": LETTERS[len(rows) % 4],
                }
            )
        video(root / "Video-MME" / "data" / f"clip{number}.mp4", number)
    subtitles = root / "Video-MME" / "subtitle"
    subtitles.mkdir(exist_ok=True)
    lines = ("00:00:00,000 --> 00:00:01,000", "00:00:01,000 --> 00:00:02,000")
    texts = "\n".join(
        f'{i + 1}\n{line}\n<font color="white" size=".72c">cup {i + 1}</font>\n' for i, line in enumerate(lines)
    )
    (subtitles / "clip0.srt").write_text(texts)  # the others have none
    write(root / "Video-MME", "test", columns, rows, "videomme")


def mvbench(root: Path) -> None:
    """Write two questions of each sub-task, a configuration and a JSON file each, as in the branch `video`."""
    from lmms_eval.tasks.mvbench.utils import DATA_LIST

    folder, configs = root / "OpenGVLab" / "MVBench", []
    (folder / "json").mkdir(parents=True)
    for number, (name, place) in enumerate(DATA_LIST.items()):
        clip = {"start": 0.0, "end": 1.5} if place.startswith("sta") else {}
        rows = [
            {
                "video": f"{name}.mp4",
                "question": "What happens?",
                "candidates": ["one", "two", "three", "four"][: 3 + number % 2],
                "answer": ("one", "two")[turn],
                **clip,
            }
            for turn in range(2)
        ]
        video(folder / place / f"{name}.mp4", number)
        (folder / "json" / f"{name}.json").write_text(json.dumps(rows))
        configs.append({"config_name": name, "data_files": f"json/{name}.json"})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n")


def longvideobench(root: Path) -> None:
    """Write LongVideoBench as its card describes it; options that a question lacks are "N/A"."""
    names = (
        "video_id",
        "question",
        "question_wo_referring_query",
        "topic_category",
        "question_category",
        "level",
        "id",
    )
    columns = dict.fromkeys((*names, "id", "video_path", "subtitle_path", *(f"option{i}" for i in range(5))), TEXT)
    columns |= {"correct_choice": INT, "position": List(INT), "duration_group": INT, "view_count": INT}
    columns |= dict.fromkeys(("starting_timestamp_for_subtitles", "duration"), Value("float64"))
    folder = root / "longvideobench" / "LongVideoBench"
    words = ["one", "two", "three", "four", "five"]
    rows = [
        {
            **dict.fromkeys(names, "self-made"),
            "question": "How many cups are there?",
            "question_category": ("S2E", "T3O")[i % 2],
            "id": f"clip{i // 3}_{i % 3}",
            "video_path": f"clip{i // 3}.mp4",
            "subtitle_path": f"clip{i // 3}_en.json",
            **{f"option{k}": word if k < 4 + i % 2 else "N/A" for k, word in enumerate(words)},
            "correct_choice": i % 4,
            "position": [0],
            "duration_group": (15, 60, 600, 3600)[i // 3],
            "starting_timestamp_for_subtitles": 0.0,
            "duration": 2.0,
            "view_count": 7,
        }
        for i in range(ROWS)
    ]
    for number in range(4):
        video(folder / "videos" / f"clip{number}.mp4", number)
    write(folder, "validation", columns, rows)


def mlvu(root: Path) -> None:
    """Write two questions of each kind as lmms-eval 0.7.3 reads them: options and letters are part of the question."""
    columns = dict.fromkeys(("video_name", "question", "answer", "task_type"), TEXT) | {"duration": Value("float64")}
    kinds = ("anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning")
    folder = root / "sy1998" / "MLVU_dev"
    rows = [
        {
            "video_name": f"clip{i % 4}.mp4",
            "question": f"How many cups are in part {i}?\n(A) one\n(B) two\n(C) three\n(D) four",
            "answer": LETTERS[i % 4],
            "task_type": kinds[i % 7],
            "duration": 2.0,
        }
        for i in range(14)
    ]
    for number in range(4):
        video(folder / f"clip{number}.mp4", number)
    write(folder, "test", columns, rows)


def egoschema(root: Path) -> None:
    """Write the part of EgoSchema whose answers are public, a video for each question."""
    columns = dict.fromkeys(("question_idx", "question", "video_idx", "answer"), TEXT) | {"option": List(TEXT)}
    folder = root / "egoschema"
    rows = [
        {
            "question_idx": str(i),
            "question": "What does C do?",
            "video_idx": f"clip{i}",
            "answer": str(i % 5),
            "option": [f"{letter}. C counts to {k}." for k, letter in enumerate("ABCDE")],
        }
        for i in range(ROWS)
    ]
    for number in range(ROWS):
        video(folder / "videos" / f"clip{number}.mp4", number, frames=2)
    write(folder, "test", columns, rows, "Subset")


VIDEOS = (mvbench, longvideobench, mlvu, egoschema)


def vinoground(root: Path) -> None:
    """Write Vinoground as lmms-eval 0.7.3 (tasks/vinoground) reads it; we have not seen the data set itself.

    Read from that code: the repository, the split, `index` as NUMBER_pos|neg_text|video with all of 0 to 499 there,
    `major`, `minor` (null or joined by ";"), the column `answer` that the task file names; the two score files with
    `idx`, `video_name` below the repository, `question`, `GT`. Assumed: the column types, `answer` being `GT`, no other
    columns, the wording, and .mp4 below the score files' folders.
    """
    folder = root / "HanSolo9682" / "Vinoground"
    columns = dict.fromkeys(("index", "major", "minor", "answer"), TEXT)
    rows: list[dict[str, Any]] = []
    for kind, place in (("text", "vinoground_videos"), ("video", "vinoground_videos_concated")):
        items = []
        for number in range(500):
            for side, truth in (("pos", "A"), ("neg", "B")):
                index = f"{number}_{side}"
                asked = "Which caption fits the video?" if kind == "text" else "Which segment fits the caption?"
                video_name = f"{place}/{number % 2}.mp4"
                items.append({"idx": index, "video_name": video_name, "question": asked, "GT": truth})
                about = {
                    "major": ("action", "object", "viewpoint")[number % 3],
                    "minor": None if number % 2 else "cyclical",
                }
                rows.append({"index": f"{index}_{kind}", **about, "answer": truth})
        for number in range(2):
            video(folder / place / f"{number}.mp4", number)
        (folder / place / f"vinoground_{kind}score.json").write_text(json.dumps(items))
    write(folder, "lmmseval", columns, rows)

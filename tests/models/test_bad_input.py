"""Questions that cannot be asked are recorded as failed, counted, and no other answer differs; or they stop the run."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from fork_server import Command, Forks, record
from miniature_files import picture, video
from PIL import Image
from tiny_tasks import TASK, UTILS

from harness.models.bad_input import BadInput, check_asked, reading

PLAIN = picture(1)
IMAGE = "<|image_pad|>"
BUDGET = 8
FILM = """

def film(doc):
    if doc["file"].endswith("no_list.mp4"):
        return [{"type": "video", "url": []}]
    kind = "audio" if doc["file"].endswith("sound.mp4") else "video"
    return [{"type": kind, "url": doc["file"]}]
"""


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


# name -> the picture's bytes if it has one, the question, and why it fails, if it does
STILLS = {
    "no_picture": (bytes(range(200)), "Is it red?", "UnidentifiedImageError: cannot identify image file <_io.BytesIO"),
    "plain": (encoded(PLAIN), "Is it red?", None),
    "cut_short": (encoded(picture(2, 400, 400), "BMP")[:-5000], "Is it red?", None),
    "half_there": (encoded(picture(2), "WEBP")[:50], "Is it red?", "OSError: could not create decoder object"),
    "another": (encoded(picture(3)), "Is it blue?", None),
    "no_question": (encoded(PLAIN), " \n", "the question is empty"),
    "one_pixel": (encoded(Image.new("RGB", (1, 1), "red")), "Is it red?", None),
    "few_tokens": (encoded(picture(4, 56, 28)), "Is it red?", None),
    "panorama": (encoded(picture(5, 10_000, 400)), "Is it red?", None),
    "ribbon": (encoded(picture(6, 10_000, 40)), "Is it red?", "ValueError: absolute aspect ratio must be smaller than"),
    "placeholder": (
        encoded(PLAIN),
        f"Is it {IMAGE}?",
        r"the question contains <\|image_pad\|>, which stands for an image",
    ),
    "too_long": (encoded(PLAIN), "Is it red? " * 2000, r"the prompt has [\d,]+ tokens, the model takes 4,096"),
    "deep_grey": (encoded(Image.fromarray(np.full((60, 60), 40_000, np.uint16))), "Is it grey?", None),
    "nothing": (None, "Is it red?", "the row has no picture in image"),
    "the_last": (encoded(picture(7)), "Is it green?", None),
}
FILMS = {
    "no_list": "the video has no frame",
    "eight_frames": None,
    "one_frame": None,
    "no_video": "no_video.mp4 cannot be opened as a video",
    "no_frames": "no_frames.mp4 cannot be opened as a video",
    "holes": "DECORDError: .*Error sending packet",
    "sound": "the question has audio, the model takes images and videos",
    "eight_others": None,
}
REASONS = {name: why for name, (*_, why) in STILLS.items()} | FILMS


def write_tasks(folder: Path) -> Path:
    """`stills` and `films`, of which some cannot be asked."""
    folder.mkdir()
    (folder / "utils.py").write_text(UTILS + FILM)
    text = datasets.Value("string")
    stills = {
        "image": [data and {"bytes": data, "path": None} for data, *_ in STILLS.values()],
        "question": [question for _, question, _ in STILLS.values()],
    }
    films = {"file": [str(folder / f"{name}.mp4") for name in FILMS], "question": ["What moves?"] * len(FILMS)}
    for number, name in enumerate(FILMS):
        video(folder / f"{name}.mp4", number, 1 if name == "one_frame" else 8)
    (folder / "no_video.mp4").write_bytes(bytes(range(200)))
    for name, whole in (("no_frames", 0), ("holes", 0.5)):
        data = (folder / f"{name}.mp4").read_bytes()
        begin, end = data.index(b"mdat") + 4, data.index(b"moov")
        begin += int(whole * (end - begin))
        (folder / f"{name}.mp4").write_bytes(data[:begin] + bytes(end - begin) + data[end:])
    for name, visual, columns in (("stills", "images", stills), ("films", "film", films)):
        features = {key: datasets.Image() if key == "image" else text for key in (*columns, "answer")}
        rows = columns | {"answer": ["yes"] * len(columns["question"])}
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, visual=visual))
    return folder


@dataclass
class Place:
    root: Path
    forks: Forks
    call: list[str]

    def run(self, runs: str, *more: str, code: int = 0, before=None) -> Command:
        return self.forks.run(*self.call, f"runs={runs}", *more, code=code, before=before)

    def folder(self, runs: str, method: str = "random") -> Path:
        (found,) = (path.parent for path in (self.root / runs).rglob("run.json") if path.parent.name.startswith(method))
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory, fork_server):
    root = tmp_path_factory.mktemp("bad-input")
    tasks = write_tasks(root / "tasks")
    call = ["harness", "method=random", f"tokens={BUDGET}", "tasks=[stills,films]", f"tasks.include={tasks}"]
    return Place(root, Forks(root, tmp_path_factory.mktemp("said")), [*call, "model.batch_size=4"])


@pytest.fixture(scope="module")
def ran(place):
    return place.run("runs")


def lines(folder: Path, name: str = "responses.jsonl") -> dict[str, dict]:
    """The lines of a run by the names of the questions."""
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    names = {"stills": list(STILLS), "films": list(FILMS)}
    return {names[line["task"]][line["doc_id"]]: line for line in found}


@pytest.mark.parametrize("method", ["random", "none"])
@pytest.mark.parametrize("name", REASONS)
def test_what_can_be_asked_is_answered_and_what_cannot_has_its_reason(name, method, place, ran):
    line, why = lines(place.folder("runs", method))[name], REASONS[name]
    if why is None:
        assert "failed" not in line
        assert line["output_tokens"] > 0
    else:
        assert re.match(why, line["failed"])
        assert not re.search(r"0x[0-9a-f]{6}|:\d\d:", line["failed"])
        assert (line["response"], line["input_tokens"], line["output_tokens"]) == ("", 0, 0)


def test_fewer_tokens_than_the_budget_are_all_kept(place, ran):
    kept = lines(place.folder("runs"), "kept.jsonl")
    for name, why in REASONS.items():
        expected = min(BUDGET, kept[name]["n"])
        assert (kept[name]["k"], len(kept[name]["kept"])) == (expected, expected)
        assert bool(kept[name]["n"]) == (why is None)
    assert kept["few_tokens"]["n"] < BUDGET < kept["panorama"]["n"]


def test_failed_questions_are_counted_scored_and_shown(place, ran):
    folder = place.folder("runs")
    metrics, each = (json.loads((folder / name).read_text()) for name in ("metrics.json", "scores.json"))
    assert metrics["failed"] == {"stills": 7, "films": 5}
    assert metrics["questions"] == {"stills": len(STILLS), "films": len(FILMS)}
    by_name = dict(zip(STILLS, each["stills"]["letters,none"], strict=True))
    assert [name for name, score in by_name.items() if not score] == [name for name in STILLS if REASONS[name]]
    kept = [line["k"] for name, line in lines(folder, "kept.jsonl").items() if name in STILLS and not REASONS[name]]
    assert metrics["visual_tokens"]["stills"]["kept"] == pytest.approx(sum(kept) / len(kept), abs=0.01)
    assert "note: stills: 7 of 15 questions failed, scored as empty answers, in every run" in ran.out
    assert "note: films: 5 of 8 questions failed, scored as empty answers, in every run" in ran.out
    assert ran.report["failed"] == 12
    assert "failed, scored as an empty answer: task films, question 3: no_video.mp4 cannot be opened" in ran.err


def test_the_other_answers_are_those_of_each_question_alone(place, ran):
    place.run("single", "model.batch_size=1")
    for name in ("responses.jsonl", "kept.jsonl"):
        together, alone = (lines(place.folder(runs), name) for runs in ("runs", "single"))
        for found in (*together.values(), *alone.values()):
            found.pop("key")  # the batch size is in it
        assert together == alone


def test_runs_that_share_nothing_record_the_same(place, ran):
    place.run("apart", "share_gb=0")
    assert record(place.folder("apart")) == record(place.folder("runs"))


def test_a_run_reads_files_at_a_rate_and_records_what_it_shows(place, ran):
    place.run("rate", "model.fps=1", "model.max_frames=6", "questions=[films/1,films/2,stills/1]")
    shown, plain = (lines(place.folder(runs), "kept.jsonl") for runs in ("rate", "runs"))
    assert shown["eight_frames"]["videos"] == [{"frames": 4, "seconds_per_step": 1.0, "tokens": 12}]
    assert plain["eight_frames"]["videos"] == [{"frames": 8, "seconds_per_step": 0.5, "tokens": 24}]
    assert all(video["tokens"] == line["n"] for line in shown.values() for video in line.get("videos", []))
    assert "videos" not in shown["plain"]


def test_a_rate_of_frames_without_times_ends_in_one_line(place):
    call = ["harness", "method=random", "keep=0.5", "tasks=[pocket_video]", "limit=1", "model.fps=2", "runs=listed"]
    command = place.forks.run(*call, code=2)
    assert "model.fps=2 needs a video file, the question shows a list of 4 frames without their times" in command.err


def test_lmms_evals_own_command_answers_the_others_too(place, ran):
    pocket = yaml.safe_load(Path("conf/model/pocket.yaml").read_text())
    model = {key: value for key, value in pocket.items() if key != "name" and value is not None}
    arguments = ",".join(f"{key}={value}" for key, value in (model | {"method": "random", "tokens": BUDGET}).items())
    call = ["--model", "harness", "--model_args", arguments, "--batch_size", "4", "--tasks", "films", "--log_samples"]
    files = ["--include_path", str(place.root / "tasks"), "--output_path", str(place.root / "theirs")]
    command = place.forks.run("lmms_eval", *call, *files)
    assert "failed, scored as an empty answer: task films, question 0: the video has no frame" in command.out
    (file,) = (place.root / "theirs").rglob("*_samples_films.jsonl")
    theirs = [json.loads(line) for line in file.read_text().split("\n") if line]
    ours = lines(place.folder("runs"))
    assert {list(FILMS)[sample["doc_id"]]: sample["filtered_resps"] for sample in theirs} == {
        name: ours[name]["response"] for name in FILMS
    }


def test_strict_stops_at_the_first_and_without_it_the_run_goes_on(place, ran):
    stopped = place.run("strict", "strict=true", code=2)
    (said,) = stopped.errors
    assert said.startswith("error: task stills, question 0: UnidentifiedImageError")
    assert said.endswith("; strict=false counts it as failed and goes on")
    assert len(lines(place.folder("strict", "none"))) == 4
    place.run("strict")
    assert record(place.folder("strict")) == record(place.folder("runs"))


def test_strict_refuses_a_finished_run_with_failures(place, ran):
    (said,) = place.run("runs", "strict=true", code=2).errors
    assert "holds failed questions ({'stills': 7, 'films': 5})" in said


def test_several_processes_record_the_same(place, ran):
    for command in place.forks.launch(2, *place.call, "runs=two"):
        assert command.end() == 0, command.err
    for method in ("none", "random"):
        assert record(place.folder("two", method)) == record(place.folder("runs", method))


def nothing_decodes() -> None:
    def broken(*_, **__):
        raise Image.DecompressionBombError("a bomb")

    Image.Image.convert = broken


def test_a_task_of_which_everything_fails_is_no_result(place):
    (said,) = place.run("none", "tasks=stills", code=2, before=nothing_decodes).errors
    assert said.startswith("error: task stills: all 15 questions failed, the first: UnidentifiedImageError: cannot ")
    assert not list((place.root / "none").rglob("DONE"))


def no_memory() -> None:
    from harness.models import preprocessing

    def full(*_, **__):
        raise MemoryError("no memory")

    preprocessing.fetch_image = full


def test_a_full_memory_is_no_bad_question(place):
    command = place.run("memory", "tasks=stills", code=2, before=no_memory)
    assert command.errors == ["error: out of memory (no memory): ask for less at once, or use a larger machine"]
    assert not list((place.root / "memory").rglob("DONE"))


def test_a_missing_file_stops_the_run(place):
    away = place.root / "tasks" / "eight_frames.mp4"
    away.rename(away.with_suffix(".away"))
    try:
        (said,) = place.run("missing", "tasks=films", code=2).errors
    finally:
        away.with_suffix(".away").rename(away)
    assert said == f"error: task films: [Errno 2] No such file or directory: '{away}': its data set is not whole"


def with_junk_for_exif() -> Image.Image:
    image = PLAIN.copy()
    image.info["exif"] = b"Exif\0\0junk"
    return image


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (lambda: Image.open(io.BytesIO(encoded(PLAIN, "WEBP")[:50])), "OSError: could not create decoder object"),
        (lambda: Image.open(io.BytesIO(encoded(PLAIN, "BMP")[:20])), "OSError: Truncated File Read"),
        (lambda: with_junk_for_exif().getexif(), "SyntaxError: not a TIFF file"),
        (lambda: Image.new("La", (5, 5)).convert("RGB"), "ValueError: conversion from La to L not supported"),
    ],
)
def test_what_pillow_says_of_a_damaged_picture_is_bad_input(read, why):
    with pytest.raises(BadInput, match=f"^{why}"), reading():
        read()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        FileNotFoundError(2, "No such file", "a.png"),
        ConnectionError("the Hub hung up"),
        SyntaxError("invalid syntax", ("utils.py", 1, 2, "x =")),
        ValueError("too many values to unpack"),
        MemoryError(),
        KeyError("image"),
    ],
)
def test_what_is_wrong_with_the_program_or_the_machine_is_not(error):
    with pytest.raises(type(error)) as raised, reading():
        raise error
    assert raised.value is error


def test_a_chat_asks_something_where_its_user_says_something():
    shown = {"type": "image", "url": PLAIN}
    asked, blank = ({"type": "text", "text": text} for text in ("What?", "\t"))
    check_asked([{"role": "user", "content": [shown, asked]}])
    for content in ([shown], [shown, blank]):
        with pytest.raises(BadInput, match="the question is empty"):
            check_asked([{"role": "system", "content": [asked]}, {"role": "user", "content": content}])

"""What `to=` fetches is whole, is taken by `data_root=` as it is, and goes on after whatever interrupted it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import miniature_datasets as miniatures
import pytest
from stand_in_hub import asking, environment, serving, sizes
from tiny_models import tiny_folder

from harness.core.config import ModelConfig, TasksConfig
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.data import __main__ as command
from harness.data import fetch, sources, unpack
from harness.evaluation import datasets, preflight
from harness.evaluation.task_suite import TaskSuite
from harness.models import checkpoint

ROOT = Path(__file__).parents[2]
OURS = ("chartqa", "docvqa", "mmbench", "scienceqa")
TASKS = ("chartqa", "docvqa_val", "mmbench_cn_dev_static", "scienceqa_img")


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> Path:
    """Repositories of data sets as on the Hub, of which some subsets are not asked for, and one of a model."""
    root = tmp_path_factory.mktemp("held")
    for name in OURS:
        getattr(miniatures, name)(root)
    for repository in ("DocVQA", "ScienceQA"):  # a first subset that nobody asks for, in two parts
        card = root / repository / "README.md"
        text = card.read_text().replace(
            "configs:\n",
            "configs:\n- config_name: Another\n  data_files:\n  - split: test\n    path: Another/test-*\n",
        )
        card.write_text(text)
        for part, size in enumerate((4000, 2000)):
            file = root / repository / "Another" / f"test-0000{part}-of-00002.parquet"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes(size))
    tiny_folder(root)
    return root


@pytest.fixture
def hub(held, monkeypatch, tmp_path):
    with serving() as stand_in:
        asking(stand_in, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("ChartQA", "DocVQA", "MMBench", "ScienceQA"):
            stand_in.repositories["dataset", f"lmms-lab-encoder/{name}"] = held / name
        stand_in.repositories["model", "some/model"] = held / "tiny-qwen2.5-vl"
        yield stand_in


def orders(to: Path, *tasks: str) -> list[fetch.Order]:
    found = sources.of_tasks(TasksConfig(metrics=dict.fromkeys(tasks)))
    return [fetch.Order.of(group, to) for group in sources.by_repository(found)]


def fetched(to: Path, *tasks: str) -> None:
    for order in orders(to, *tasks):
        fetch.fetch(order, "float32", print)


def refused(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {name for name in sizes(folder) if not name.startswith(".")}


def test_the_command_leaves_what_data_root_and_pretrained_take(hub, held, tmp_path, capsys):
    to = tmp_path / "to"
    overrides = [f"tasks=[{','.join(TASKS)}]", "model.pretrained=some/model", "model.dtype=float32", f"to={to}"]
    cfg = compose("data", preflight.prepare(overrides))
    command.check(cfg)
    command.main(cfg)
    out = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = to / "models" / "some" / "model"
    assert out["settings"] == [f"data_root={to}", f"model.pretrained={folder}"]
    assert out["commits"]["some/model"] == hub.commit("model", "some/model")
    assert checkpoint.check(ModelConfig(name="tiny", pretrained=str(folder), dtype="float32")) == folder
    assert checkpoint.weights_fingerprint(folder) == checkpoint.weights_fingerprint(held / "tiny-qwen2.5-vl")
    copies = datasets.local(TasksConfig(metrics=dict.fromkeys(TASKS)), str(to))
    for task in ("docvqa_val", "scienceqa_img"):  # the second one's subset is not the first of its card
        suite = TaskSuite(TasksConfig(metrics={task: None}), data=copies)
        assert len(suite.load(task).task_docs) == miniatures.ROWS
    assert names(to / "lmms-lab-encoder" / "DocVQA") == {
        "README.md",
        "DocVQA/validation-00000-of-00001.parquet",
        "Another/test-00001-of-00002.parquet",  # the smaller one
    }
    assert {name for name in names(to / "lmms-lab-encoder" / "MMBench") if name != "README.md"} == {
        name for name in names(held / "MMBench") if name.startswith("cn/") or name == first_of(held / "MMBench")
    }
    before = list(hub.fetched)
    command.main(cfg)
    assert hub.fetched == before  # nothing twice


def first_of(repository: Path) -> str:
    """Return the one file of the first subset in a card."""
    card = (repository / "README.md").read_text()
    place = card.partition("path: ")[2].partition("/")[0]
    return next(name for name in names(repository) if name.startswith(f"{place}/"))


def test_a_file_that_does_not_come_is_one_line_and_comes_next_time(hub, tmp_path):
    file = "data/test-00000-of-00001.parquet"
    hub.status[file] = 403
    said = refused(fetched, tmp_path, "chartqa")
    assert "has no dataset lmms-lab-encoder/ChartQA, or hides it from you (HTTP status 403)" in said
    assert orders(tmp_path, "chartqa")[0].missing == [file]
    assert refused(command_of, tmp_path, "chartqa") == said  # not taken for whole
    del hub.status[file]
    fetched(tmp_path, "chartqa")
    assert orders(tmp_path, "chartqa")[0].missing == []


def command_of(to: Path, task: str) -> None:
    command.main(compose("data", preflight.prepare([f"tasks={task}", f"to={to}"])))


def test_a_file_that_was_cut_short_is_fetched_again(hub, held, tmp_path):
    fetched(tmp_path, "chartqa")
    file = tmp_path / "lmms-lab-encoder" / "ChartQA" / "data" / "test-00000-of-00001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    fetched(tmp_path, "chartqa")
    assert file.read_bytes() == content


def test_what_has_come_before_a_connection_breaks_is_not_asked_for_again(hub, held, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 20)
    theirs = shutil.copytree(held / "tiny-qwen2.5-vl", tmp_path / "theirs")
    (theirs / "large.bin").write_bytes(os.urandom(1 << 23))
    hub.repositories["model", "some/model"] = theirs
    hub.cut["large.bin"] = 1 << 22
    order = fetch.Order.of([sources.of_model(ModelConfig(name="m", pretrained="some/model"))], tmp_path / "to")
    fetch.fetch(order, "float32", print)
    assert (order.folder / "large.bin").read_bytes() == (theirs / "large.bin").read_bytes()
    (_, again) = [name for name in hub.fetched if name.startswith("large.bin")]
    assert int(again.partition("@")[2]) > 0


def test_what_the_hub_lists_today_is_listed(hub, tmp_path, capsys):
    cfg = compose("data", preflight.prepare(["tasks=docvqa_val", "model.pretrained=some/model", "hub=20"]))
    command.main(cfg)
    *lines, last = capsys.readouterr().out.splitlines()
    docvqa, model = json.loads(last)["sources"]
    order = orders(tmp_path, "docvqa_val")[0]
    assert (docvqa["files"], docvqa["size"], docvqa["known_from"]["size"]) == (3, order.size, "the Hub, today")
    assert model["files"] == len(sizes(hub.repositories["model", "some/model"]))
    assert f"kB in {model['files']} files" in "\n".join(lines)


def test_a_full_disk_after_the_download_is_not_success(hub, tmp_path, monkeypatch):
    def snapshot_download(*args, local_dir, **kwargs):
        (local_dir / "README.md").write_bytes(b"-")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert "has 1 bytes of" in refused(fetched, tmp_path, "chartqa")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "No space left on device): make room"),
        (OSError(28, "No space left on device", "/folder/x"), "cannot write /folder/x (No space left on device)"),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            "ConnectionResetError: .*run this where there is network",
        ),
    ],
)
def test_what_interrupts_a_download_is_one_line(error, says, hub, tmp_path, monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
        fetched(tmp_path, "chartqa")


def test_a_disk_without_room_is_refused_before_anything_is_fetched(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=fetch.ROOM + 10))
    said = refused(command_of, tmp_path / "to", "chartqa")
    assert "more, 268 MB are free: choose another disk" in said
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (403, "GatedRepo"),
            "is gated: accept its terms at .*/datasets/lmms-lab-encoder/ChartQA and log in .*HF_TOKEN",
        ),
        ((401, "RepoNotFound"), r"has no dataset lmms-lab-encoder/ChartQA, or hides it from you \(HTTP status 401\)"),
        ((404, "RepoNotFound"), r"HTTP status 404\): check the name"),
        ((503, ""), "answers with HTTP status 503 .*try again later"),
    ],
)
def test_a_hub_that_refuses_is_one_line(answer, says, hub, tmp_path):
    hub.repositories["dataset", "lmms-lab-encoder/ChartQA"] = answer
    with pytest.raises(UserError, match=says):
        orders(tmp_path / "to", "chartqa")


def test_a_wrong_revision_is_one_line(hub, tmp_path):
    model = sources.of_model(ModelConfig(name="m", pretrained="some/model", revision="v2"))
    assert "model some/model has no revision v2" in refused(fetch.Order.of, [model], tmp_path)


def test_no_network_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "cannot fetch dataset lmms-lab-encoder/ChartQA from" in refused(orders, tmp_path, "chartqa")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it" in refused(orders, tmp_path, "chartqa")


def test_quantised_weights_that_cannot_be_loaded_here_are_not_fetched(hub, held, tmp_path):
    theirs = shutil.copytree(held / "tiny-qwen2.5-vl", tmp_path / "theirs")
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "of tomorrow"}}))
    hub.repositories["model", "some/model"] = theirs
    order = fetch.Order.of([sources.of_model(ModelConfig(name="m", pretrained="some/model"))], tmp_path / "to")
    assert "quantised (of tomorrow)" in refused(fetch.fetch, order, "float32", print)
    assert hub.fetched == ["config.json"]


def test_killed_in_the_middle_it_goes_on(hub, held, tmp_path):
    """SIGKILL while a file of 8 MB is on its way: nothing passes for whole, and the second run makes it so."""
    theirs = shutil.copytree(held / "tiny-qwen2.5-vl", tmp_path / "theirs")
    (theirs / "large.bin").write_bytes(os.urandom(1 << 23))
    hub.repositories["model", "some/model"] = theirs
    hub.cut["large.bin"] = 1 << 22
    to = tmp_path / "to"
    call = [sys.executable, "-m", "harness.data", "model.pretrained=some/model", "model.dtype=float32", "tasks=pocket"]
    env = {**os.environ, **environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen(
        [*call, f"to={to}"], env=env, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for _ in range(6000):
        if "large.bin" in hub.fetched or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (to / "models" / "some" / "model" / "large.bin").exists()
    done = subprocess.run([*call, f"to={to}"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Fetching" in done.stderr  # a bar
    for name, size in sizes(theirs).items():
        assert (to / "models" / "some" / "model" / name).stat().st_size == size
    assert (to / "models" / "some" / "model" / "large.bin").read_bytes() == (theirs / "large.bin").read_bytes()


def test_videos_in_archives_are_where_their_task_looks(hub, tmp_path):
    """As Video-MME has them: chunks of one folder of videos, and one archive of subtitles."""
    miniatures.videomme(tmp_path)
    theirs = tmp_path / "Video-MME"
    clips = sorted((theirs / "data").iterdir())
    for name, files in (
        ("chunk_01", clips[:2]),
        ("chunk_02", clips[2:]),
        ("subtitle", (theirs / "subtitle").iterdir()),
    ):
        with zipfile.ZipFile(theirs / f"{name}.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(theirs))
    for place in ("data", "subtitle"):
        shutil.rmtree(theirs / place)
    hub.repositories["dataset", "lmms-eval/Video-MME"] = theirs
    to = tmp_path / "to"
    fetched(to, "videomme_w_subtitle")
    copies = datasets.local(TasksConfig(metrics={"videomme_w_subtitle": None}), str(to))
    suite = TaskSuite(TasksConfig(metrics={"videomme_w_subtitle": None}), data=copies)
    task = suite.load("videomme_w_subtitle")
    (part,) = [part for part in suite.messages(task, task.task_docs[0])[0]["content"] if part["type"] == "video"]
    assert Path(part["url"]).is_relative_to(to)
    assert Path(part["url"]).is_file()


def archive_of(folder: Path) -> None:
    """Write a zip, a tar in two parts and a compressed tar, each with a file in a folder of its own."""
    (folder / "source").mkdir(parents=True)
    (folder / "source" / "a.mp4").write_bytes(os.urandom(5000))
    with zipfile.ZipFile(folder / "one.zip", "w") as archive:
        archive.write(folder / "source" / "a.mp4", "zipped/a.mp4")
    for name, mode in (("two.tar", "w"), ("three.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(folder / "source" / "a.mp4", f"{name}ped/a.mp4")
    content = (folder / "two.tar").read_bytes()
    (folder / "two.tar.part_aa").write_bytes(content[:3000])
    (folder / "two.tar.part_ab").write_bytes(content[3000:])
    (folder / "two.tar").unlink()


def test_archives_are_unpacked_once_and_parts_are_joined(tmp_path):
    archive_of(tmp_path)
    said = []
    unpack.unpack(tmp_path, sizes(tmp_path), said.append)
    content = (tmp_path / "source" / "a.mp4").read_bytes()
    for place in ("zipped", "two.tarped", "three.tar.gzped"):
        assert (tmp_path / place / "a.mp4").read_bytes() == content
    assert said == [
        "unpacking one.zip",
        "unpacking three.tar.gz",
        "unpacking two.tar.part_aa, two.tar.part_ab",
    ]
    unpack.unpack(tmp_path, sizes(tmp_path), said.append)
    assert len(said) == 3


@pytest.mark.parametrize("name", ["one.zip", "three.tar.gz", "two.tar.part_ab"])
def test_a_damaged_archive_is_one_line_and_stays_to_be_unpacked(name, tmp_path):
    archive_of(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 3])
    assert "is damaged" in refused(unpack.unpack, tmp_path, sizes(tmp_path), print)
    (tmp_path / name).write_bytes(content)
    unpack.unpack(tmp_path, sizes(tmp_path), print)


def test_an_archive_writes_nothing_outside_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "bad.tar", "w") as archive:
        archive.add(Path(__file__), "../outside.py")
    assert "is damaged" in refused(unpack.unpack, inside, ["bad.tar"], print)
    assert not (tmp_path / "outside.py").exists()

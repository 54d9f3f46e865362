"""Run folders survive a crash at any byte, and never mix two configurations."""

import errno
import fcntl
import json
import os
import threading

import pytest

from harness.core.errors import UserError
from harness.core.files import append, check_place, digest, slug, to_json, write_atomic
from harness.results.response_log import KEPT, LINES, RESPONSES, ResponseLog
from harness.results.run_folder import RunFolder

IDENTITY = {"method": {"name": "idpruner", "lam": 0.5}, "budget": {"keep": 0.25, "tokens": None}}


def lines(*keys):
    names = [{"key": key, "task": "t", "doc_id": i} for i, key in enumerate(keys)]
    responses = [{**name, "response": f"ä{name['key']}", "input_tokens": 5, "output_tokens": 1} for name in names]
    kept = [{**name, "n": 4, "k": 1, "per_layer": 1.0, "grids": [[1, 2, 2]], "kept": [2]} for name in names]
    return responses, kept


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", IDENTITY)


def test_what_was_added_is_there_after_reopening(folder):
    folder.open({"model": "tiny"}).add(*lines("a", "b"))
    log = folder.open({"model": "ignored"})
    assert list(log.responses) == ["a", "b"]
    assert log.kept["b"]["kept"] == [2]
    assert json.loads((folder.path / "run.json").read_text())["model"] == "tiny"


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("name", [RESPONSES, KEPT])
def test_a_line_cut_short_is_dropped_and_the_rest_kept(folder, name, cut):
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    log = folder.open({})
    assert list(log.responses) == ["a"]
    assert list(log.kept) == ["a"]
    log.add(*lines("a", "b"))
    assert file.read_bytes() == whole


def test_every_line_is_json_after_appending_to_a_cut_file(folder):
    folder.open({}).add(*lines("a"))
    with (folder.path / RESPONSES).open("a") as stream:
        stream.write('{"key": "b", "resp')
    folder.open({}).add(*lines("c"))
    keys = [json.loads(line)["key"] for line in (folder.path / RESPONSES).read_text().splitlines()]
    assert keys == ["a", "c"]


def test_a_kept_line_without_its_response_is_dropped(folder):
    folder.open({}).add(*lines("a", "b"))
    first = (folder.path / RESPONSES).read_text().splitlines(keepends=True)[0]
    (folder.path / RESPONSES).write_text(first)
    assert list(folder.open({}).kept) == ["a"]
    assert (folder.path / KEPT).read_text().count("\n") == 1


@pytest.mark.parametrize("damage", [b'{"key": "c", "resp\n', b"\0\0\0\n", b"null\n{}\n", b"\xff\xfe\n\n"])
@pytest.mark.parametrize("name", [RESPONSES, KEPT])
def test_damaged_lines_at_the_end_are_dropped(folder, name, damage):
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / name
    whole = file.read_bytes()
    file.write_bytes(whole + damage)
    assert list(folder.open({}).responses) == ["a", "b"]
    assert file.read_bytes() == whole


def test_damage_in_the_middle_is_an_error_not_a_silent_loss(folder):
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / RESPONSES
    file.write_text(file.read_text().replace('{"key": "a"', "{key"))
    with pytest.raises(UserError, match="line 1"):
        folder.open({})


def test_a_response_is_written_once(folder):
    log = folder.open({})
    log.add(*lines("a"))
    responses, kept = lines("a", "b")
    responses[0]["response"], kept[0]["k"] = "another answer", 3
    log.add(responses, kept)
    assert (folder.path / RESPONSES).read_text().count('"a"') == 1
    assert (folder.path / KEPT).read_text().count('"a"') == 1
    reopened = folder.open({})
    assert (log.responses, log.kept) == (reopened.responses, reopened.kept)


def test_a_folder_of_another_configuration_is_refused(folder):
    folder.open({})
    folder.finish({"scores": {}, "primary": {}, "questions": {}}, {}, {})
    other = RunFolder(folder.path, {**IDENTITY, "seed": 1})
    for call in (lambda: other.open({}), other.check):
        with pytest.raises(UserError, match="another configuration"):
            call()


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", "\0\0", '{"identity"'])
@pytest.mark.parametrize("name", ["run.json", "metrics.json", "scores.json"])
def test_a_finished_run_that_is_damaged_is_refused_in_one_line(folder, name, text):
    folder.open({})
    folder.finish({"scores": {}, "primary": {}, "questions": {}}, {"t": {"doc_id": [0]}}, {})
    folder.check()
    (folder.path / name).unlink() if text is None else (folder.path / name).write_text(text)
    if (name, text) == ("scores.json", "{}"):
        return  # a run that scored nothing
    with pytest.raises(UserError) as caught:
        folder.check()
    assert str(folder.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "start again" in str(caught.value) or "move it away" in str(caught.value)


def test_what_other_processes_answered_is_taken_in_and_their_files_go(folder):
    first = folder.open({})
    first.add(*lines("a"))
    second, third = ResponseLog(folder.path, 1), ResponseLog(folder.path, 2)
    assert list(second.responses) == ["a"]
    second.add(*lines("a", "b"))
    third.add(*lines("c", "d"))
    assert json.loads((folder.path / "responses.1.jsonl").read_text())["key"] == "b"
    (folder.path / "kept.2.jsonl").write_bytes((folder.path / "kept.2.jsonl").read_bytes()[:-3])  # killed
    log = folder.open({})
    assert list(log.responses) == list(log.kept) == ["a", "b", "c"]
    assert sorted(path.name for path in folder.path.iterdir()) == [KEPT, RESPONSES, "run.json"]
    assert (folder.path / RESPONSES).read_text().count("\n") == 3


def test_a_journal_that_another_process_still_writes_is_waited_for(folder):
    folder.open({}).add(*lines("a"))
    ResponseLog(folder.path, 1).add(*lines("b"))
    opened = []
    thread = threading.Thread(target=lambda: opened.append(folder.open({})))
    with folder.lock(1):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        ResponseLog(folder.path, 1).add(*lines("b", "c"))
    thread.join()
    assert list(opened[0].responses) == ["a", "b", "c"]


def test_in_the_end_the_lines_stand_as_they_were_asked_and_no_others(folder):
    log = folder.open({})
    log.add(*lines("c", "a", "b"))
    log.settle(["a", "b", "b"])
    for file in (RESPONSES, KEPT):
        keys = [json.loads(line)["key"] for line in (folder.path / file).read_text().splitlines()]
        assert keys == ["a", "b"]


def test_a_key_that_comes_twice_in_a_batch_is_written_once(folder):
    log = folder.open({})
    log.add(*lines("b", "a", "b"))
    assert list(log.responses) == list(folder.open({}).responses) == ["b", "a"]
    assert log.responses["b"]["doc_id"] == 0


def test_responses_without_a_configuration_are_refused(folder):
    folder.path.mkdir()
    (folder.path / RESPONSES).write_text("")
    with pytest.raises(UserError, match=r"no run\.json"):
        folder.open({})


def test_done_is_written_last(folder, monkeypatch):
    folder.open({})
    written = []
    for module in ("run_folder", "seal"):
        monkeypatch.setattr(f"harness.results.{module}.write_atomic", lambda path, text: written.append(path.name))
    folder.finish({"scores": {}}, {}, {})
    assert written == ["scores.json", "metrics.json", "DONE"]
    assert not folder.done


def test_force_starts_over(folder):
    folder.open({}).add(*lines("a"))
    folder.finish({"scores": {}}, {}, {})
    assert folder.done
    ResponseLog(folder.path, 1).add(*lines("b"))
    assert folder.open({}, force=True).responses == {}
    assert not folder.done
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    write_atomic(file, "old")
    monkeypatch.setattr("harness.core.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*metrics\.json \(No space left on device\): once that is put"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_append_that_fails_leaves_no_half_line(folder, monkeypatch):
    folder.open({}).add(*lines("a"))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with monkeypatch.context() as broken:
        broken.setattr("harness.core.files.os.fsync", full)
        broken.setattr("harness.results.response_log.SYNC", 0)
        with pytest.raises(UserError, match="No space left"):
            folder.open({}).add(*lines("b"))
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    folder.open({}).add(*lines("b"))
    assert list(folder.open({}).kept) == ["a", "b"]


def test_the_disk_is_waited_for_now_and_then_and_at_the_end(folder, monkeypatch):
    synced = []
    named = "/proc/self/fd/{}".format
    monkeypatch.setattr("harness.core.files.os.fsync", lambda number: synced.append(os.readlink(named(number))))
    log = folder.open({})
    synced.clear()
    log.add(*lines("a"))
    log.add(*lines("b"))
    assert synced == []
    monkeypatch.setattr("harness.results.response_log.SYNC", 0)
    log.add(*lines("c"))
    both = [str(folder.path / name) for name in (KEPT, RESPONSES)]
    assert synced == both
    log.settle(["a", "b", "c"])
    assert synced == [*both, *reversed(both)]


def test_an_append_to_a_new_file_that_fails_leaves_it_empty(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.core.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        append(tmp_path / "new.jsonl", "line\n")
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_what_a_killed_process_left_half_written_is_cleared_away(folder):
    folder.open({})
    (folder.path / ".metrics.json.123.tmp").write_text("{")
    folder.open({})
    assert [path.name for path in folder.path.iterdir()] == ["run.json"]


def test_nan_is_not_written(folder):
    with pytest.raises(ValueError, match="JSON"):
        to_json({"score": float("nan")})


def test_the_digest_ignores_the_order_of_keys_and_nothing_else():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"keep": 0.25}) != digest({"keep": 0.5})
    assert digest({"a": [1, 2]}) != digest({"a": [2, 1]})


def test_names_become_path_components():
    assert slug("some/where/mine.py:Mine") == "mine.py-Mine"
    assert slug("mme+mmstar") == "mme+mmstar"
    assert slug("../x\0y") == "x-y"


@pytest.mark.parametrize("name", ["", ".", "..", "...", "/", "a/..", "../.."])
def test_names_that_leave_a_folder_are_refused(name):
    with pytest.raises(UserError, match="cannot be the name of a folder or file: choose another"):
        slug(name)


def test_a_lock_is_held_through_a_file_open_for_writing(folder, monkeypatch):
    flock, modes = fcntl.flock, []

    def recorded(stream, operation):
        modes.append(fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(stream, operation)

    monkeypatch.setattr("harness.core.locks.fcntl.flock", recorded)
    with folder.lock():
        assert modes == [os.O_RDWR]  # a lock on a folder does not leave the machine on NFS
        assert not folder.path.exists()


def test_a_second_process_says_that_it_waits(folder, capfd):
    entered = threading.Event()

    def second():
        with RunFolder(folder.path, IDENTITY).lock():
            entered.set()

    thread = threading.Thread(target=second)
    with folder.lock():
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(10)
    thread.join()
    assert capfd.readouterr().err == f"waiting for another process that computes {folder.path}\n"


def test_runs_have_to_lie_where_a_folder_can_be_made(tmp_path, monkeypatch):
    check_place(tmp_path / "new" / "runs")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file"):
        check_place(tmp_path / "file" / "runs")
    monkeypatch.setattr("harness.core.files.os.access", lambda place, mode: False)
    with pytest.raises(UserError, match="no permission"):
        check_place(tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "lacking"), [(name, field) for name, kind in LINES.items() for field in sorted(kind.__required_keys__)]
)
def test_a_line_that_lacks_a_field_is_damaged(name, lacking, folder):
    """The last one is asked again; one before others is refused."""
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / name
    first, second = (json.loads(line) for line in file.read_text().split("\n")[:2])
    file.write_text(json.dumps(first) + "\n" + json.dumps({k: v for k, v in second.items() if k != lacking}) + "\n")
    assert list(folder.open({}).responses) == ["a"]
    file.write_text(json.dumps({k: v for k, v in first.items() if k != lacking}) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(UserError, match=rf"{name} is damaged in line 1: move the run folder away and start again"):
        folder.open({})


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"key": ' * 100_000, b'{"key": 1}', b"[1]", b'"text"'])
def test_a_last_line_of_other_json_is_asked_again(line, folder):
    folder.open({}).add(*lines("a"))
    with (folder.path / RESPONSES).open("ab") as stream:
        stream.write(line + b"\n")
    assert list(folder.open({}).responses) == ["a"]

"""Run folders survive a crash at any byte, and never mix two configurations."""

import fcntl
import json
import os
import threading

import pytest

from harness.errors import UserError
from harness.store import KEPT, RESPONSES, RunFolder, check_place, digest, slug, to_json, write_atomic

IDENTITY = {"method": {"name": "idpruner", "lam": 0.5}, "budget": {"keep": 0.25, "tokens": None}}


def lines(*keys):
    responses = [{"key": key, "task": "t", "doc_id": i, "response": f"ä{key}"} for i, key in enumerate(keys)]
    kept = [{"key": key, "task": "t", "doc_id": i, "n": 4, "k": 1, "kept": [2]} for i, key in enumerate(keys)]
    return responses, kept


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run", IDENTITY)


def test_what_was_added_is_there_after_reopening(folder):
    folder.open({"model": "tiny"}).add(*lines("a", "b"))
    journal = folder.open({"model": "ignored"})
    assert list(journal.responses) == ["a", "b"]
    assert journal.kept["b"]["kept"] == [2]
    assert json.loads((folder.path / "run.json").read_text())["model"] == "tiny"


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("name", [RESPONSES, KEPT])
def test_a_line_cut_short_is_dropped_and_the_rest_kept(folder, name, cut):
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    journal = folder.open({})
    assert list(journal.responses) == ["a"]
    assert list(journal.kept) == ["a"]
    journal.add(*lines("a", "b"))
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


def test_damage_in_the_middle_is_an_error_not_a_silent_loss(folder):
    folder.open({}).add(*lines("a", "b"))
    file = folder.path / RESPONSES
    file.write_text(file.read_text().replace('{"key": "a"', "{key"))
    with pytest.raises(UserError, match="line 1"):
        folder.open({})


def test_a_response_is_written_once(folder):
    journal = folder.open({})
    journal.add(*lines("a"))
    responses, kept = lines("a", "b")
    responses[0]["response"], kept[0]["k"] = "another answer", 3
    journal.add(responses, kept)
    assert (folder.path / RESPONSES).read_text().count('"a"') == 1
    assert (folder.path / KEPT).read_text().count('"a"') == 1
    reopened = folder.open({})
    assert (journal.responses, journal.kept) == (reopened.responses, reopened.kept)


def test_a_folder_of_another_configuration_is_refused(folder):
    folder.open({})
    other = RunFolder(folder.path, {**IDENTITY, "seed": 1})
    with pytest.raises(UserError, match="another configuration"):
        other.open({})


def test_responses_without_a_configuration_are_refused(folder):
    folder.path.mkdir()
    (folder.path / RESPONSES).write_text("")
    with pytest.raises(UserError, match=r"no run\.json"):
        folder.open({})


def test_done_is_written_last(folder, monkeypatch):
    folder.open({})
    written = []
    monkeypatch.setattr("harness.store.write_atomic", lambda path, text: written.append(path.name))
    folder.finish({"scores": {}}, {}, {})
    assert written == ["scores.json", "metrics.json", "DONE"]
    assert not folder.done


def test_force_starts_over(folder):
    folder.open({}).add(*lines("a"))
    folder.finish({"scores": {}}, {}, {})
    assert folder.done
    assert folder.open({}, force=True).responses == {}
    assert not folder.done


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "metrics.json"
    write_atomic(file, "old")

    def broken(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("harness.store.os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new")
    assert file.read_text() == "old"


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


def test_a_lock_is_held_through_a_file_open_for_writing(folder, monkeypatch):
    flock, modes = fcntl.flock, []

    def recorded(stream, operation):
        modes.append(fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(stream, operation)

    monkeypatch.setattr("harness.store.fcntl.flock", recorded)
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
    monkeypatch.setattr("harness.store.os.access", lambda place, mode: False)
    with pytest.raises(UserError, match="no permission"):
        check_place(tmp_path / "runs")

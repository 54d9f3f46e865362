"""What a command writes: files that can be written are known before anything is read, and no device is replaced."""

import os
import stat
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from run_folders import make_run

from harness import compare, d2prior, export, status, tables
from harness.bench import kernels, latency
from harness.bench.settings import settings
from harness.core import files
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.report import __main__ as report


@cache
def composed(command):
    return compose(command, [])


def with_(command, **values):
    """The configuration of a command with other values, composed once for all tests."""
    cfg = composed(command).copy()
    OmegaConf.set_struct(cfg, False)
    return OmegaConf.merge(cfg, values)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory with a finished run, a folder, a file, a pipe and a link."""
    make_run(tmp_path / "runs", each={"t": [1.0, 0.0] * 10})
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("old")
    Path("link").symlink_to("file")
    os.mkfifo("pipe")
    return tmp_path


def test_a_device_or_a_pipe_is_not_replaced(places):
    with pytest.raises(UserError, match=r"cannot write pipe, which is a device or a pipe: name a file"):
        files.write_atomic(Path("pipe"), "new")
    assert stat.S_ISFIFO(os.stat("pipe").st_mode)
    Path("to_pipe").symlink_to("pipe")
    with pytest.raises(UserError, match="a device or a pipe"):
        files.write_atomic(Path("to_pipe"), "new")
    assert Path("to_pipe").is_symlink()


def test_the_file_behind_a_link_is_written(places):
    files.write_atomic(Path("link"), "new")
    assert Path("link").is_symlink()
    assert Path("file").read_text() == "new"


OUTPUTS = {  # setting -> its check
    "tables.csv": tables.check,
    "tables.stats": tables.check,
    "tables.out": tables.check,
    "export.out": export.check,
    "export.archive": export.check,
    "report.out": report.check,
    "report.sample": report.check,
    "report.plots": report.check,
    "d2prior.out": d2prior.check,
    "bench.out": lambda cfg: latency._check_places(settings(cfg)),
    "bench.plots": lambda cfg: latency._check_places(settings(cfg)),
    "bench_kernels.out": kernels.bench,
}
FOLDERS = ("tables.out", "export.out", "export.archive", "report.plots", "bench.plots")


@pytest.mark.parametrize("value", [["a", "b"], {"a": "b"}, True, "pipe", "file/below"], ids=str)
@pytest.mark.parametrize("output", OUTPUTS)
def test_what_cannot_be_written_is_refused_before_anything_is_read(output, value, places):
    command, key = output.split(".")
    if command.startswith("bench") and value == "pipe" and key == "out":
        Path("pipe.json").symlink_to("pipe")  # `out` names two files
    with pytest.raises(UserError, match=rf"{key}\b") as refused:
        OUTPUTS[output](with_(command, **{key: value}))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("output", sorted(OUTPUTS.keys() - FOLDERS - {"bench.out", "bench_kernels.out"}))
def test_a_folder_is_no_file(output, places):
    command, key = output.split(".")
    with pytest.raises(UserError, match=rf"cannot write {key}=folder, which is a folder: name a file"):
        OUTPUTS[output](with_(command, **{key: "folder"}))


@pytest.mark.parametrize("other", ["same", "./folder/../same"])
def test_two_keys_do_not_name_one_file(other, places):
    with pytest.raises(UserError, match=r"csv and tex are one file, .*: name two"):
        tables.check(with_("tables", csv="same", tex=other))


def test_no_table_is_printed_if_a_file_cannot_be_written(places, monkeypatch, capsys):
    def full(path, content):
        raise UserError(f"cannot write {path} (No space left on device)")

    monkeypatch.setattr(tables, "write_atomic", full)
    with pytest.raises(UserError, match="No space left"):
        tables.main(with_("tables", runs="runs", csv="table.csv"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["join", "errors", "float"])
def test_a_switch_is_true_or_false(key, places):
    with pytest.raises(UserError, match=f"{key} must be true or false, got x"):
        tables.check(with_("tables", **{key: "x"}))


@pytest.mark.parametrize("runs", [3, True, {"a": "b"}, [["a"]]], ids=str)
@pytest.mark.parametrize("command", ["tables", "status"])
def test_runs_are_folders(command, runs, places):
    main = {"tables": tables.main, "status": status.main}[command]
    with pytest.raises(UserError, match=r"\bruns\b"):
        main(with_(command, runs=runs))


def test_a_folder_is_compared_under_one_name(places):
    with pytest.raises(UserError, match="a is given twice"):
        compare.prepare(["folder", "runs", "a=folder"])

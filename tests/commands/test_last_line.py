"""No traceback reaches a user: whatever ends a command takes one line, and the exit code says whose fault it is."""

import errno
import io
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from harness.core import command, last_line
from harness.core.errors import UserError


@pytest.fixture(autouse=True)
def interruptible():
    """Let interrupts arrive also where the tests run in the background of a shell, which ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The temporary folder of the test's processes."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv(last_line.SHOW, raising=False)
    return folder


def status(task, monkeypatch, *arguments):
    """Run `task` as the job of a command, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["harness.status", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.command("status", task)
    return stopped.value.code


def unforeseen(cfg):
    {}["nobody\nforesaw"]


def test_an_unforeseen_exception_is_one_line_and_a_file_that_only_the_user_reads(scratch, monkeypatch, capsys):
    assert status(unforeseen, monkeypatch) == 1
    (file,) = scratch.glob("harness-traceback-*.txt")
    line = unforeseen.__code__.co_firstlineno + 1
    what = f"error: unforeseen KeyError in tests/commands/{Path(__file__).name}:{line}: 'nobody\\nforesaw'"
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"{what} (its traceback is in {file}; HARNESS_TRACEBACK=1 prints it)\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "Traceback (most recent call last)" in file.read_text()
    assert 'nobody\nforesaw"]' in file.read_text().replace("\\n", "\n")


def test_our_code_is_named_by_its_place_in_the_repository(scratch, monkeypatch, capsys):
    def broken(cfg):
        from harness.core.files import slug

        slug(None)

    assert status(broken, monkeypatch) == 1
    assert "unforeseen TypeError in harness/core/files.py:" in capsys.readouterr().err


def test_a_panic_of_a_library_that_is_no_exception_is_one_line(monkeypatch, capsys):
    class PanicException(BaseException):  # as pyo3 raises it
        pass

    def panic(cfg):
        raise PanicException("index out of bounds")

    assert status(panic, monkeypatch) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_place_for_the_file_the_line_says_so(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert status(unforeseen, monkeypatch) == 1
    assert (
        "(its traceback could not be written: No space left on device; HARNESS_TRACEBACK=1" in capsys.readouterr().err
    )


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError("by zero"), 1), (UserError("a mistake"), 2)])
def test_the_environment_variable_shows_the_traceback(error, code, monkeypatch, capsys):
    def fail(cfg):
        raise error

    monkeypatch.setenv(last_line.SHOW, "1")
    assert status(fail, monkeypatch) == code
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Traceback (most recent call last):"
    assert said[-1].startswith("error: ")


def test_the_other_jobs_of_a_sweep_go_on(monkeypatch, capsys):
    def job(cfg):
        if cfg.runs == "a":
            unforeseen(cfg)
        if cfg.runs == "b":
            raise UserError("a mistake")
        print(cfg.runs)

    assert status(job, monkeypatch, "-m", "runs=a,b,c") == 1
    out, err = capsys.readouterr()
    assert out == "c\n"
    assert [line[:16] for line in err.splitlines()] == ["error: unforeseen"[:16], "error: a mistake"]
    assert status(job, monkeypatch, "-m", "runs=b,c") == 2


def test_a_sweep_ends_with_the_jobs_that_failed_and_their_exit_code(monkeypatch):
    seen = []

    def job(cfg):
        if cfg.runs != "b":
            raise UserError("a mistake")

    monkeypatch.setattr(sys, "argv", ["harness.status", "-m", "runs=a,b,c"])
    with pytest.raises(SystemExit) as stopped:
        command.command("status", job, ended=lambda *what: seen.append(what))
    assert (stopped.value.code, seen) == (2, [([["runs=a"], ["runs=b"], ["runs=c"]], [0, 2], 3)])


def test_an_error_of_the_file_system_names_the_path_as_a_mistake(monkeypatch, capsys):
    def refused(cfg):
        raise PermissionError(13, "Permission denied", "/secret")

    assert status(refused, monkeypatch) == 2
    said = "error: cannot use /secret (Permission denied): choose another path, or change this one\n"
    assert capsys.readouterr().err == said


def harness(empty, monkeypatch, capfd, *arguments, module="harness"):
    """Run a command in this process, the main job without torch; return its exit code and what it printed."""
    monkeypatch.chdir(empty)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    for name in ("torch", "transformers") if module == "harness" else ():
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    return stopped.value.code, *capfd.readouterr()


COMMANDS_WITH_PATHS = {
    "runs": ("harness", ["runs=secret/x"]),
    "a model": ("harness", ["model.pretrained=./secret/x"]),
    "a scorer": ("harness", ["model.scorer=secret/x"]),
    "a method": ("harness", ["method=secret/x.py:Mine"]),
    "tasks": ("harness", ["tasks.include=secret/x", "tasks=anything"]),
    "data": ("harness", ["data_root=secret/x", "tasks=pope"]),
    "tables": ("harness.tables", ["runs=secret/x"]),
    "two runs": ("harness.compare", ["secret/x", "secret/y"]),
    "states": ("harness.status", ["runs=secret/x"]),
    "an export": ("harness.export", ["out=secret/x"]),
}


@pytest.mark.parametrize("place", COMMANDS_WITH_PATHS)
def test_a_path_that_may_not_be_read_is_one_line(place, empty, monkeypatch, capfd):
    module, arguments = COMMANDS_WITH_PATHS[place]
    stat = os.stat

    def refusing(path, *more, **options):
        if "secret" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *more, **options)

    monkeypatch.setattr(os, "stat", refusing)
    code, out, err = harness(empty, monkeypatch, capfd, *arguments, module=module)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "secret/" in err
    assert "(Permission denied): choose another path, or change this one" in err


def test_whoever_catches_every_exception_says_why():
    root = last_line.ROOT
    files = [path for name in ("harness", "methods", "scripts") for path in sorted((root / name).rglob("*.py"))]
    caught = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if re.match(r"\s*except(?:\s*:|\b.*\b(?:Base)?Exception\b)", line)
    ]
    assert len(caught) > 5
    assert [line for line in caught if " # " not in line] == []


LONG = "x" * 5000
MISTAKES = {
    "not a number": (["share_gb=nan"], "share_gb must be a finite number, got nan"),
    "infinite": (["share_gb=inf"], "share_gb must be a finite number, got inf"),
    "negative": (["share_gb=-1"], "share_gb must be at least 0"),
    "a parameter": (["method.lam=-inf"], "method.lam must be a finite number, got -inf"),
    "a list": (["+x=[1,nan]"], "x.1 must be a finite number"),
    "the last job of a sweep": (["-m", "share_gb=1,nan"], "share_gb must be a finite number"),
    "a large number": (["limit=99999999999999999999999"], "limit must be at most 2^63 - 1, got a number of 77 bits"),
    "too many digits": ([f"limit={'9' * 5000}"], "cannot read the argument limit=999"),
    "too many brackets": ([f"keep={'[' * 3000}"], "cannot read the argument keep=[[["),
    "a name too long": ([f"runs={LONG}"], "(File name too long): choose another path"),
    "a model's name too long": ([f"model.pretrained=./{LONG}"], "(File name too long): choose another path"),
    "a scorer's name too long": ([f"model.scorer={LONG}"], "(File name too long): choose another path"),
    "a method's name too long": ([f"method={LONG}.py:Mine"], "(File name too long): choose another path"),
    "links in a circle": (["runs=circle/x"], "circle is a link that leads nowhere"),
    "a model in a circle": (["model.pretrained=./circle"], "no model folder at circle"),
    "a method in a circle": (["method=circle.py:Mine"], "no method at circle.py:Mine"),
    "nobody's home": (["runs='~nobody_of_this_name/x'"], "cannot find the home folder in ~nobody_of_this_name/x"),
    "nobody's method": (["method='~nobody_of_this_name/m.py:M'"], "cannot find the home folder in ~nobody"),
    "a home folder that the shell left": (["runs=~/x"], "write home folders out, as in runs=$HOME/runs"),
    "no text": (["runs=\udcff"], "an argument must be text in UTF-8 without NUL, got 'runs=\\udcff'"),
    "an unknown --info": (["--info", "junk"], "invalid choice: 'junk'"),
    "two things at once": (["-m", "--cfg", "job"], "-m and --cfg exclude each other"),
    "--resolve alone": (["--resolve"], "--resolve is for --cfg: pass that too"),
    "a pickle": (["--experimental-rerun", "x.pickle"], "--experimental-rerun would execute a pickle"),
    "a completion of nothing": (["--shell-completion"], "--shell-completion"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_exit_code_2(mistake, empty, monkeypatch, capfd):
    arguments, message = MISTAKES[mistake]
    for name in ("circle", "circle.py"):
        (empty / name).symlink_to(name)
    code, out, err = harness(empty, monkeypatch, capfd, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert len(err) < 1000


@pytest.mark.parametrize("value", ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"])
def test_every_value_of_info_prints(value, monkeypatch, capfd):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "argv", ["harness.status", "--info", value])
    command.command("status", unforeseen)
    out, err = capfd.readouterr()
    assert out
    assert err == ""


def test_home_folders_are_written_out(monkeypatch, tmp_path):
    from harness.core.overrides import compose
    from harness.core.values import checked

    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = checked(compose("config", ["runs='~/runs'", "+data_root={pope: '~/pope', mme: data}"]))
    assert cfg.runs == f"{tmp_path}/runs"
    assert cfg.data_root == {"pope": f"{tmp_path}/pope", "mme": "data"}


def test_a_nul_in_a_setting_is_refused():
    from harness.core.overrides import compose
    from harness.core.values import checked

    cfg = compose("config", [])
    cfg.runs = "runs\0"
    with pytest.raises(UserError, match="runs must be text in UTF-8 without NUL, got 'runs"):
        checked(cfg)


LAUNCH = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 needs RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT, which"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE=2 needs LOCAL_RANK, MASTER_ADDR, MASTER_PORT, which"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number of processes, got two"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number of processes, got 0"),
        ({**LAUNCH, "RANK": "7"}, "RANK must be a number up to 1 with WORLD_SIZE=2, got 7"),
        ({**LAUNCH, "LOCAL_RANK": "-1"}, "LOCAL_RANK must be a number up to 1 with WORLD_SIZE=2, got -1"),
        ({**LAUNCH, "MASTER_PORT": "http"}, "MASTER_PORT must be a number up to 65535 with WORLD_SIZE=2, got http"),
    ],
)
def test_a_broken_launch_is_one_line_of_every_process(variables, message, monkeypatch, capsys):
    from harness.core.distributed import launched

    for name in LAUNCH:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    launched.cache_clear()
    try:
        assert status(unforeseen, monkeypatch) == 2
    finally:
        launched.cache_clear()
        os.environ.pop("TQDM_DISABLE", None)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert "unset WORLD_SIZE, or start several processes with torchrun or accelerate launch" in err


def at_import(empty, statement, *arguments, **variables):
    """Run a command that executes a statement when it imports Hydra."""
    (empty.parent / "stub" / "hydra").mkdir(parents=True)
    (empty.parent / "stub" / "hydra" / "__init__.py").write_text(statement)
    path = os.pathsep.join([str(empty.parent / "stub"), *sys.path])
    call = [sys.executable, "-m", "harness", *arguments]
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(call, cwd=empty, env=environment, capture_output=True, text=True, check=False)


def test_an_interrupt_during_imports_is_one_line(empty):
    done = at_import(empty, "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_an_exception_during_imports_is_one_line(empty, scratch):
    done = at_import(empty, "1 / 0")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: unforeseen ZeroDivisionError in ")
    assert len(list(scratch.glob("harness-traceback-*.txt"))) == 1


def test_a_variable_that_a_library_cannot_parse_is_named(monkeypatch, capsys, tmp_path):
    module = Path(tmp_path, "lib", "library_of_numbers.py")
    module.parent.mkdir()
    module.write_text("import os\nSECONDS = int(os.environ['HF_HUB_ETAG_TIMEOUT'])\n")
    monkeypatch.syspath_prepend(str(module.parent))
    monkeypatch.setattr(last_line, "LIBRARIES", (str(module.parent),))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "abc")

    def use(cfg):
        import library_of_numbers  # noqa: F401

    assert status(use, monkeypatch) == 2
    said = "error: a library expects a number in the environment, got HF_HUB_ETAG_TIMEOUT=abc: change or unset it\n"
    assert capsys.readouterr().err == said


METHOD = "import os, signal, sys\n{}\n"


@pytest.mark.parametrize("code", ["sys.exit()", "sys.exit('bye')", "raise SystemExit(0)"])
def test_a_method_file_that_exits_is_named(code, tmp_path):
    import methods

    (tmp_path / "mine.py").write_text(METHOD.format(code))
    with pytest.raises(ValueError, match=r"method file '.*mine\.py' does not run: SystemExit"):
        methods.get(f"{tmp_path}/mine.py:Mine")


def test_an_interrupt_names_the_method_file_that_was_running(tmp_path, monkeypatch, capsys):
    import methods

    (tmp_path / "mine.py").write_text(METHOD.format("while True:\n    os.kill(os.getpid(), signal.SIGINT)"))
    assert status(lambda cfg: methods.get(f"{tmp_path}/mine.py:Mine"), monkeypatch) == 130
    assert capsys.readouterr().err.startswith(f"error: interrupted in {tmp_path}/mine.py:")


def redirected(empty, redirection, flags=(), arguments="--cfg job"):
    """Run a command with a redirection of the shell."""
    call = f'"{sys.executable}" {" ".join(flags)} -m harness.status {arguments} {redirection}'
    return subprocess.run(["bash", "-c", call], cwd=empty, capture_output=True, check=False)


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_full_stdout_is_one_line(flags, empty):
    done = redirected(empty, ">/dev/full", flags)
    said = b"error: cannot write to stdout (No space left on device): print to another file or disk\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_closed_stdout_is_one_line(empty):
    done = redirected(empty, ">&-")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"error: stdout is closed" in done.stderr


def test_without_stderr_nothing_of_an_error_goes_to_stdout(empty):
    done = redirected(empty, "2>&-", arguments="runs=nowhere")
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_encoding_of_the_terminal_lacks_is_escaped(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "argv", ["harness.status"])
    command.command("status", lambda cfg: print("\u2248 \udcff"))
    text = terminal.buffer.getvalue().decode(encoding)
    assert text == ("\u2248 \\udcff\n" if encoding == "utf-8" else "\\u2248 \\udcff\n")


def test_signals_have_the_exit_codes_of_a_shell():
    assert last_line.INTERRUPTED == 128 + signal.SIGINT == 130


OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # as torch calls that of a GPU


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_no_fault_of_the_code(error, monkeypatch, capsys):
    def task(cfg):
        raise error

    assert status(task, monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: out of memory (")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_an_open_file_is_written_is_a_mistake(number, monkeypatch, capsys):
    def task(cfg):
        raise OSError(number, os.strerror(number))  # without the name of a file, as `write` raises it

    assert status(task, monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write a file ({os.strerror(number)}): make room")


@pytest.mark.parametrize("code", [None, 0, 5, "a text"])
@pytest.mark.parametrize("call", ["sys.exit(CODE)", "exit(CODE)", "raise SystemExit(CODE)"])
def test_code_of_others_that_exits_is_an_error(call, code, tmp_path, monkeypatch, capsys):
    """As a method or a task may: the command would end with its code, and without a word."""
    (tmp_path / "theirs.py").write_text(f"import sys\n\ndef leave():\n    {call.replace('CODE', repr(code))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    import theirs

    assert status(lambda cfg: theirs.leave(), monkeypatch) == 1
    assert "theirs.py:4" in capsys.readouterr().err
    monkeypatch.setattr(command, "_checked_jobs", lambda *_: theirs.leave())
    assert status(lambda cfg: None, monkeypatch) == 1
    assert "theirs.py:4" in capsys.readouterr().err


@pytest.mark.parametrize(("stops_at", "done"), [("a", 0), ("b", 1), (None, 3)])
def test_an_interrupted_sweep_ends_with_what_is_done(stops_at, done, monkeypatch, capsys):
    def task(cfg):
        if cfg.runs == stops_at:
            raise KeyboardInterrupt

    ends = []
    monkeypatch.setattr(sys, "argv", ["harness.status", "-m", "runs=a,b,c"])
    try:
        command.command("status", task, ended=lambda points, failed, done: ends.append((len(points), failed, done)))
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    assert (ends, code) == ([(3, [], done)], 130 if stops_at else 0)

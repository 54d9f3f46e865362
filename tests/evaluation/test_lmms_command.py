"""lmms-eval's own command ends in one line with our model: it would print tracebacks and exit with code 0."""

import sys
from types import SimpleNamespace

import pytest

from harness.core.errors import UserError
from harness.evaluation import lmms_model
from harness.evaluation.lmms_command import one_line_ending
from harness.evaluation.lmms_model import PrunedModel
from methods.checks import SelectionError

COMMANDS = ["/somewhere/bin/lmms-eval", "/somewhere/lmms_eval/__main__.py"]


@pytest.fixture(params=COMMANDS)
def lmms_eval(request, monkeypatch):
    monkeypatch.setattr(sys, "argv", [request.param, "--model", "harness"])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a mistake"), 2, "error: a mistake\n"),
        (SelectionError("the method kept\na token twice"), 2, "error: the method kept a token twice\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (ZeroDivisionError("by zero"), 1, "error: unforeseen ZeroDivisionError in "),
    ],
)
def test_an_error_is_one_line(error, code, line, lmms_eval, capsys):
    with pytest.raises(SystemExit) as stopped, one_line_ending():
        raise error
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (code, 1)
    assert err.startswith(line)


def test_other_callers_get_the_error(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/study.py"])
    with pytest.raises(UserError), one_line_ending():
        raise UserError("a mistake")


@pytest.mark.parametrize("size", ["auto", "auto:4", "-1", "1.5"])
def test_a_batch_size_that_is_no_number_is_one_line(size, lmms_eval, capsys):
    with pytest.raises(SystemExit) as stopped:
        PrunedModel.create_from_arg_string("pretrained=harness://pocket/weights", {"batch_size": size})
    assert stopped.value.code == 2
    said = f"error: batch_size must be a whole number, since answers depend on it, got {size}: pass 1\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("share_gb=nan", "share_gb must be a finite number, got nan"),
        ("scorer=~nobody_of_this_name/x", "home folder in ~n"),
    ],
)
def test_a_value_that_nothing_can_work_with_is_one_line(argument, message, lmms_eval, capsys):
    with pytest.raises(SystemExit) as stopped:
        PrunedModel.create_from_arg_string(f"pretrained=harness://pocket/weights,keep=0.5,method=random,{argument}", {})
    err = capsys.readouterr().err
    assert (stopped.value.code, err.count("\n")) == (2, 1)
    assert message in err


def test_an_error_while_answering_is_one_line(lmms_eval, monkeypatch, capsys):
    def refuse():
        raise UserError("this machine has a problem")

    monkeypatch.setattr(lmms_model, "launched", refuse)
    with pytest.raises(SystemExit) as stopped:
        PrunedModel.generate_until(SimpleNamespace(), [])
    assert (stopped.value.code, capsys.readouterr().err) == (2, "error: this machine has a problem\n")

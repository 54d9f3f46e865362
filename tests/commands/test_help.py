"""--help explains every key of every command in one line, from the comments in conf/, before anything is imported."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest

import methods
from harness.analyze.__main__ import ANALYSES
from harness.core import help as pages
from harness.core.config import MODEL_RULES, RULES, conf
from harness.core.config_groups import options
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.evaluation.preflight import prepare

COMMANDS = sorted(file.stem for file in conf().glob("*.yaml") if pages.is_command(file.stem))
CHOICES = [f"{group}={choice}" for group in ("method", "model", "tasks", "recipe") for choice in options(group)]
HEAVY = ("torch", "transformers", "lmms_eval", "datasets", "pandas", "numpy")


def described(config_name, *overrides):
    settings, groups = pages.described(config_name, overrides)
    return [*settings, *(row for group in groups for row in (group.chosen, *group.settings))]


def test_every_file_of_a_command_is_known():
    included = {parent for name in COMMANDS for parent in pages.comments(conf(f"{name}.yaml")).parents}
    assert {file.stem for file in conf().glob("*.yaml")} == {*COMMANDS, *included}
    assert {f"analyze_{name}" for name in ANALYSES} == {name for name in COMMANDS if name.startswith("analyze_")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_has_its_line(command):
    rows = described(command)
    keys = {str(key) for key in compose(command, [])}
    assert {row.key.partition(".")[0] for row in rows} >= keys
    assert [row.key for row in rows if len(row.meaning.split()) < 2] == []


@pytest.mark.parametrize("choice", CHOICES)
def test_every_key_of_a_choice_has_its_line(choice):
    rows = described("train" if choice.startswith("recipe") else "config", choice)
    assert [row.key for row in rows if len(row.meaning.split()) < 2] == []


def test_a_key_without_a_comment_is_found(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1  # one\nb: [2]\nc: '#'  # see\n  # more\n\n# not of c\nd:  # block\n  - 1\n")
    assert pages.comments(tmp_path / "x.yaml").keys == {"a": "one", "b": "", "c": "see more", "d": "block"}


@pytest.mark.parametrize(("key", "rule"), {**RULES, **MODEL_RULES}.items())
def test_the_line_of_a_key_names_what_its_rule_allows(key, rule):
    """Of the choices and the least number that are refused or taken, none is left out."""
    rows = [row for model in ("llava16_vicuna7b", "llavaov15_8b") for row in described("config", f"model={model}")]
    meaning = next(f"{row.default} {row.meaning}" for row in rows if row.key == key)
    words = rule[0]
    expected = words.partition("one of ")[2].split(", ") if "one of" in words else re.findall(r"at least (\d+)", words)
    assert [word for word in expected if not re.search(rf"\b{word}\b", meaning)] == []


def test_a_page_fits_a_terminal():
    for command in COMMANDS:
        top, _, settings = pages.page(command).partition("\nSettings, ")
        assert max(map(len, settings.split("\n"))) <= pages.WIDTH, command
        assert top.startswith("python -m harness")


def test_a_page_shows_what_was_chosen():
    page = pages.page("config", prepare(["method=fastv", "method.layer=3", "model=llava15_7b", "tokens=64"]))
    assert re.search(r"^  method.layer=3 +decoder layer whose attention is read", page, re.MULTILINE)
    assert "method.lam" not in page
    assert "keep=null" in page
    joined = " ".join(page.split())
    assert "the family's own (llava15_7b: the processor has a fixed resolution: 336 x 336 pixels" in joined


def test_the_method_of_another_package_is_listed_and_not_imported(monkeypatch):
    points = EntryPoints([EntryPoint("theirs", "no_such_package.module:Method", methods.ENTRY_POINTS)])
    monkeypatch.setattr(methods, "_entry_points", lambda: points)
    assert "\n  of other packages: theirs\n" in pages.page("config")
    chosen = pages.page("config", prepare(["method=theirs"]))
    assert "python -m harness.list method=theirs shows its parameters" in " ".join(chosen.split())


def test_experiments_are_listed_where_they_can_be_run():
    main, bench = pages.page("config"), pages.page("bench")
    assert ("table4" in main, "table1," in main) == (False, True)
    assert ("table4" in bench, "table1," in bench) == (True, False)


@pytest.mark.parametrize("command", ["harness.list", "harness.d2prior", "harness.analyze pareto", "harness.tables"])
def test_the_page_comes_before_what_the_command_imports(command, tmp_path):
    call = [sys.executable, "-X", "importtime", "-m", *command.split(), "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = {line.split("|")[-1].strip() for line in done.stderr.split("\n")}
    assert done.returncode == 0
    assert done.stdout.startswith(f"python -m {command} ")
    assert imported & {*HEAVY, "hydra"} == {"hydra"}
    assert list(tmp_path.iterdir()) == []


ONE = "method=idpruner has no layer, unlike method=fastv: give each method parameters of its own, as in -m"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=idpruner,fastv", "method.layer=1"], ONE),
        (["method=fastv,idpruner", "method.layer=1,2"], ONE),
        (["method=fastv,idpruner,hybrid", "method.layer=1"], "method=idpruner and method=hybrid have no layer, unlike"),
        (["method=idpruner,hybrid", "method.layer=1"], "method=idpruner has no layer: did you mean method.lam"),
        (["method=idpruner", "method.lamm=1"], "method=idpruner has no lamm: did you mean method.lam?"),
        (["model=pocket,llava16_vicuna7b", "model.newlines=drop"], "model=pocket has no newlines, unlike"),
        (["seed=1,2", "sed=1"], "unknown key sed: did you mean seed?"),
    ],
)
def test_a_sweep_names_the_choice_that_lacks_a_key(overrides, message):
    from harness.core import command

    with pytest.raises(UserError, match=re.escape(message)):
        command._checked_jobs("config", overrides, True, [lambda cfg: pytest.fail("a run was looked at")])


def test_methods_that_share_a_parameter_are_swept_together():
    from harness.core import command

    jobs = command._checked_jobs("config", ["method=fastv,pyramiddrop", "method.budget_at=end"], True, [])
    assert [cfg.method.budget_at for cfg, _ in jobs] == ["end", "end"]

"""The wheel, installed into an empty folder, does what a checkout does; the checkout cannot be imported."""

import json
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
from fork_server import Forks
from last_line import report_of

import harness
from harness.core.config import PACKAGE, conf, shipped

ROOT = Path(__file__).parents[2]
pytest.importorskip("hatchling", reason="NOT TESTED: the wheel is built with hatchling (pip install -e '.[test]')")


def build(kind, folder):
    """Build a wheel of the checkout in `folder` by hatchling's own entry point; `kind` is wheel or editable."""
    call = [sys.executable, "-c", f"import sys, hatchling.build as b; print(b.build_{kind}(sys.argv[1]))", folder]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel as pip installs it, inside a repository of the user's own, as `.venv` often is."""
    repository = tmp_path_factory.mktemp("repository")
    git = ["git", "-C", repository, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for call in (["init", "--quiet"], ["commit", "--quiet", "--allow-empty", "--message", "mine"]):
        subprocess.run([*git, *call], check=True)
    folder = repository / "site-packages"
    call = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(call, check=True, capture_output=True)
    return folder


def only_installed(folder):
    """Take our packages out of this process, and every checkout of them out of its path."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("harness", "methods")]:
        del sys.modules[name]
    elsewhere = [place for place in sys.path if not (Path(place) / "harness").exists()]
    sys.path[:] = [str(folder), *elsewhere]


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory, fork_server):
    """Run `python -m`, or `-c`, with the installed wheel in an empty folder; its exit code has to be `code`."""
    empty, said = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("said")

    def run(*call, cwd=empty, code=0):
        done = Forks(cwd, said).run(*call, code=code, before=partial(only_installed, installed))
        return (done.err if code else done.out).splitlines()

    return run


def test_two_packages_and_the_licence_are_installed(installed):
    (about,) = installed.glob("*.dist-info")
    assert sorted(path.name for path in installed.iterdir()) == ["harness", "methods", about.name]
    assert (about / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"\nVersion: {harness.__version__}\n" in (about / "METADATA").read_text()


def test_every_committed_file_of_the_packages_but_the_pocket_recipe_is_in_the_wheel(wheel):
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "harness", "methods", "conf"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("NOT TESTED: no git checkout")
    there = [line for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    recipe = {file for file in there if file.startswith("harness/pocket/recipe/")}
    expected = {f"harness/{file}" if file.startswith("conf/") else file for file in there} - recipe
    assert len(expected) > 200
    assert recipe
    shipped_files = set(zipfile.ZipFile(wheel).namelist())
    assert expected <= shipped_files
    assert not recipe & shipped_files


def test_an_editable_install_copies_nothing(tmp_path):
    pytest.importorskip("editables", reason="NOT TESTED: hatchling needs editables (pip install -e '.[test]')")
    names = zipfile.ZipFile(build("editable", tmp_path)).namelist()
    assert [name for name in names if ".dist-info/" not in name] == ["_editable_impl_pruning_harness.pth"]


def test_a_checkout_reads_its_own_folders():
    assert PACKAGE == ROOT / "harness"
    assert conf("method") == ROOT / "conf" / "method"
    assert shipped("harness://published") == ROOT / "results" / "paper"


def test_configuration_and_version_come_from_the_package(run, installed):
    code = "import harness, harness.core.config as c; print(harness.__file__, c.conf(), harness.__version__, sep='\\n')"
    inside = installed / "harness"
    assert run("-c", code) == [str(inside / "__init__.py"), str(inside / "conf"), harness.__version__]


def test_the_published_tables_next_to_a_foreign_package_conf(run, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "conf" / "tables.yaml").write_text("source: web")
    *_, report = run("harness.tables", "source=paper", "out=tables", cwd=tmp_path)
    assert len(json.loads(report)["files"]) == 6 * 4  # tables, formats
    for file in (tmp_path / "tables").iterdir():
        assert file.read_bytes() == (ROOT / "results" / "paper" / file.name).read_bytes()


def test_the_list_of_methods(run):
    *_, report = run("harness.list")
    assert "idpruner" in {method["name"] for method in report_of(report)["methods"]}


def test_a_run_and_its_report(run, tmp_path):
    *_, report = run("harness", "method=uniform", "tasks=pocket_existence", "limit=1", cwd=tmp_path)
    about = json.loads((tmp_path / json.loads(report)["run"] / "run.json").read_text())
    assert (about["harness"], about["git"]) == (harness.__version__, None)  # not the commit of the user's repository
    *_, report = run("harness.report", cwd=tmp_path)
    assert json.loads(report)["runs"] == 2
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_questions_are_drawn_without_the_pocket_recipe(run):
    pytest.importorskip("vega_datasets", reason="NOT TESTED: the suite is drawn with pip install -e '.[pocket]'")
    code = (
        "from harness.pocket.questions import DrawnQuestions; import numpy as np; from harness.pocket.data import SUITE"
    )
    code += "; print(DrawnQuestions(1, {'image'}).draw(0, np.random.default_rng(0)).answer, len(SUITE['existence']()))"
    assert run("-c", code)[-1].endswith(" 240")


def test_training_a_pocket_model_asks_for_a_checkout(run):
    (line,) = run("harness.pocket.train", "--stage", "vision", code=2)
    assert line.startswith("error: harness.pocket.train needs a checkout")

"""What can change an answer changes the identity under which it is kept, and what cannot does not."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import tiny_folder

from harness import loading
from harness.choices import register
from harness.cli import compose
from harness.config import validate
from harness.errors import UserError
from harness.loading import Identity, Pruner, pruner_of
from harness.store import digest
from methods.budget import Budget

PRIVATE = """
    from dataclasses import dataclass, field
    from pathlib import Path
    from typing import Any

    import methods
    import torch
    from methods.base import Method, Selection


    @dataclass(kw_only=True)
    class Mine(PARENT):
        table: Any = DEFAULT
        computed: Any = field(init=False)

        def __post_init__(self):
            super().__post_init__()
            self.computed = torch.zeros(3)

        def _select(self, tokens, k, generator):
            return Selection(torch.arange(k))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("identity"))


@pytest.fixture
def answers(folder):
    """The identity of a run with the given method and overrides, digested afresh."""

    def of(method: str = "random", *overrides: str) -> str:
        run = validate(compose("config", register([f"model.pretrained={folder}", f"method={method}", *overrides])))
        return digest(Identity(run, folder).answers(pruner_of(run, folder)))

    return of


def private(file: Path, parent: str = "Method", default: str = "None") -> str:
    file.write_text(textwrap.dedent(PRIVATE).replace("PARENT", parent).replace("DEFAULT", default))
    return f"{file}:Mine"


def append(file: Path) -> None:
    file.write_text(file.read_text() + "# edited\n")


def test_equal_runs_have_equal_identities(answers):
    assert answers() == answers()
    assert answers() != answers("uniform")
    assert answers() != answers("random", "seed=1")
    assert answers() != answers("random", "keep=0.5")


@pytest.mark.parametrize("name", ["base.py", "budget.py", "checks.py", "numerics.py", "kernels/mmr.py"])
@pytest.mark.parametrize("method", ["random", "uniform", "none"])
def test_what_all_methods_share_counts_for_each(method, name, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "METHODS", shutil.copytree(loading.METHODS, tmp_path / "methods"))
    overrides = [] if method == "none" else ["keep=0.25"]
    before = answers(method, *overrides)
    append(tmp_path / "methods" / name)
    assert answers(method, *overrides) != before


@pytest.mark.parametrize("name", ["uniform.py", "idpruner.py", "__init__.py"])
def test_other_methods_do_not_count(name, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "METHODS", shutil.copytree(loading.METHODS, tmp_path / "methods"))
    before = answers("random")
    append(tmp_path / "methods" / name)
    assert answers("random") == before


def test_every_class_that_a_method_is_derived_from_counts(answers, tmp_path):
    parent = private(tmp_path / "parent.py")
    child = private(tmp_path / "child.py", parent=f"methods.get({parent!r})")
    seen = [answers(child)]
    append(tmp_path / "child.py")
    seen.append(answers(child))
    append(tmp_path / "parent.py")
    seen.append(answers(child))
    assert len(set(seen)) == 3


def test_a_built_in_parent_counts(tmp_path):
    method = loading.methods.get(private(tmp_path / "mine.py", parent="methods.get('idpruner')"))
    assert [path.name for path in loading._sources(method)] == ["mine.py", "idpruner.py"]


def test_where_a_private_method_lies_does_not_count(answers, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert answers(private(tmp_path / "a" / "m.py")) == answers(private(tmp_path / "b" / "m.py"))


@pytest.mark.parametrize("default", ["Path('x')", "(1, float('nan'))"])
def test_a_parameter_that_cannot_be_recorded_is_one_line(default, answers, tmp_path):
    with pytest.raises(UserError, match=r"mine: table is of type .*numbers, text") as caught:
        answers(private(tmp_path / "mine.py", default=default))
    assert "\n" not in str(caught.value)


def test_parameters_are_recorded_as_json_gives_them_back(folder, tmp_path):
    method = loading.methods.load(private(tmp_path / "mine.py"), table=({2: "b", 10: "a"}, 1))
    run = validate(compose("config", register([f"model.pretrained={folder}", "method=random"])))
    identity = Identity(run, folder).answers(Pruner(method, "mine", Budget(keep=0.5)))
    assert identity["method"]["params"] == {"table": [{"2": "b", "10": "a"}, 1]}
    assert digest(json.loads(json.dumps(identity))) == digest(identity)  # as run.json is compared


@pytest.mark.parametrize("name", ["MODEL_SEQ_LEN", "FORCE_QWENVL_VIDEO_READER"])
def test_the_environment_of_the_video_reader_counts(name, answers, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = answers()
    monkeypatch.setenv(name, "1")
    assert answers() != before


@pytest.mark.parametrize("package", ["decord", "av", "torchcodec", "flash-attn"])
def test_the_versions_of_video_readers_and_of_a_used_attention_kernel_count(package, folder, monkeypatch):
    run = validate(compose("config", register([f"model.pretrained={folder}", "method=random"])))
    run.model.attn = "flash_attention_2"
    monkeypatch.setattr(loading, "version", lambda name: "9.9" if name == package else "1.0")
    assert Identity(run, folder).model["packages"][package] == "9.9"
    run.model.attn = "sdpa"
    assert "flash-attn" not in Identity(run, folder).model["packages"]


def test_the_kind_of_gpu_counts(answers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    on_card = answers("random", "model.device=cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another card")
    assert answers("random", "model.device=cuda:1") != on_card
    assert answers("random", "model.device=cuda:0") == answers("random", "model.device=cuda:1")

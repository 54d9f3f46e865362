"""What can change an answer changes the key under which it is kept, and what cannot does not.

The key of an answer is a digest of the identity of the run and of the question as the model sees it.
"""

import json
import shutil
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from composed_sweeps import composed
from tiny_models import HIDDEN, tiny_folder

import methods
from harness.core.config import ModelConfig, RunConfig, TasksConfig
from harness.core.errors import UserError
from harness.core.files import digest
from harness.evaluation import identity
from harness.evaluation.identity import Identity
from harness.evaluation.preflight import locate
from harness.evaluation.pruner import Pruner, pruner_of
from harness.evaluation.run_plan import plan
from harness.models import FAMILIES
from harness.models.model_folder import ModelFolder
from harness.models.qwen25vl import Qwen25VL
from harness.models.scorer import VisionSelectorScorer, save_scorer
from methods.base import LATER
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
        run = composed(f"model.pretrained={folder}", f"method={method}", *overrides)
        return digest(Identity(run, ModelFolder(folder)).answers(pruner_of(run, ModelFolder(folder))))

    return of


def private(file: Path, parent: str = "Method", default: str = "None") -> str:
    file.write_text(textwrap.dedent(PRIVATE).replace("PARENT", parent).replace("DEFAULT", default))
    return f"{file}:Mine"


def append(file: Path) -> None:
    file.write_text(file.read_text() + "# edited\n")


SHARED = ["base.py", "budget.py", "checks.py", "scores.py", "kernels/mmr.py"]
BETWEEN = [
    "prune.py",
    "pruning/session.py",
    "models/preprocessing.py",
    "evaluation/lmms_model.py",
    "models/qwen25vl.py",
]


class TestDeclaredVersions:
    @pytest.mark.parametrize("name", [*(f"methods/{file}" for file in SHARED), "methods/random.py"])
    @pytest.mark.parametrize("method", ["random", "none"])
    def test_the_source_text_of_methods_does_not_count(self, method, name, answers, tmp_path, monkeypatch):
        monkeypatch.setattr(identity, "METHODS", shutil.copytree(identity.METHODS, tmp_path / "methods"))
        overrides = [] if method == "none" else ["keep=0.25"]
        before = answers(method, *overrides)
        append(tmp_path / name)
        assert answers(method, *overrides) == before

    @pytest.mark.parametrize("name", BETWEEN)
    def test_nor_does_that_of_the_code_between_question_and_answer(self, name, answers, tmp_path, monkeypatch):
        monkeypatch.setattr(identity, "HARNESS", shutil.copytree(identity.HARNESS, tmp_path / "harness"))
        method = methods.load("random")
        before, recorded = answers(), identity.sources(method)
        append(tmp_path / "harness" / name)
        assert answers() == before
        assert identity.sources(method) != recorded  # but run.json says so

    @pytest.mark.parametrize(
        ("owner", "name"),
        [(identity, "PREPROCESSING"), (identity, "CUT"), (Qwen25VL, "version"), (methods.get("random"), "version")],
    )
    def test_a_raised_version_counts(self, owner, name, answers, monkeypatch):
        before = answers()
        monkeypatch.setattr(owner, name, getattr(owner, name) + 1)
        assert answers() != before

    def test_a_revision_counts_for_its_parameters_alone(self, answers, monkeypatch):
        official, paper = (("divprune", "keep=0.5", f"method.variant={kind}") for kind in ("official", "paper"))
        before, other = answers(*official), answers(*paper)
        monkeypatch.setattr(methods.get("divprune"), "revision", property(lambda self: 7 * (self.variant == "paper")))
        assert answers(*official) == before
        assert answers(*paper) != other

    @pytest.mark.parametrize("version", ["-1", "1.0", "True", "'1'", "None"])
    def test_a_version_that_is_none_is_one_line(self, version, answers, tmp_path):
        file = private(tmp_path / "mine.py")
        text = (tmp_path / "mine.py").read_text()
        (tmp_path / "mine.py").write_text(text.replace("    table:", f"    version = {version}\n    table:"))
        with pytest.raises(UserError, match=r"Mine\.version must be a whole number, not .*: write version = 1"):
            answers(file)

    def test_a_parameter_called_version_is_refused(self, answers, tmp_path):
        file = private(tmp_path / "mine.py")
        text = (tmp_path / "mine.py").read_text()
        (tmp_path / "mine.py").write_text(text.replace("    table:", "    version: int = 3\n    table:"))
        with pytest.raises(UserError, match=r"Mine\.version .* cannot be a parameter: rename it"):
            answers(file)

    @pytest.mark.parametrize("name", methods.BUILT_IN)
    def test_every_method_declares_one(self, name):
        assert identity.method_version(methods.load(name)) >= 1

    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family_declares_one(self, family):
        assert identity.model_versions(family)["adapter"] >= 1


class TestPrivateMethods:
    """They count by their source text, unless they declare a version."""

    @pytest.mark.parametrize("name", [*SHARED, "uniform.py", "idpruner.py", "__init__.py"])
    def test_what_all_methods_share_counts_and_other_methods_do_not(self, name, answers, tmp_path, monkeypatch):
        monkeypatch.setattr(identity, "METHODS", shutil.copytree(identity.METHODS, tmp_path / "methods"))
        mine = private(tmp_path / "mine.py")
        before = answers(mine)
        append(tmp_path / "methods" / name)
        assert (answers(mine) != before) == (name in SHARED)

    def test_every_class_that_a_method_is_derived_from_counts(self, answers, tmp_path):
        parent = private(tmp_path / "parent.py")
        child = private(tmp_path / "child.py", parent=f"methods.get({parent!r})")
        seen = [answers(child)]
        append(tmp_path / "child.py")
        seen.append(answers(child))
        append(tmp_path / "parent.py")
        seen.append(answers(child))
        assert len(set(seen)) == 3

    def test_the_version_of_a_built_in_parent_counts(self, tmp_path, monkeypatch):
        mine = private(tmp_path / "mine.py", parent="methods.get('idpruner')")
        before = identity.method_version(methods.load(mine))
        assert isinstance(before, str)
        monkeypatch.setattr(methods.get("idpruner"), "version", 9)
        assert identity.method_version(methods.load(mine)) != before

    def test_a_declared_version_stands_for_the_text(self, answers, tmp_path):
        mine = private(tmp_path / "mine.py")
        text = (tmp_path / "mine.py").read_text()
        (tmp_path / "mine.py").write_text(text.replace("    table:", "    version = 1\n    table:"))
        before = answers(mine)
        append(tmp_path / "mine.py")
        assert answers(mine) == before
        (tmp_path / "mine.py").write_text(text.replace("    table:", "    version = 2\n    table:"))
        assert answers(mine) != before


def test_where_a_private_method_lies_does_not_count(answers, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert answers(private(tmp_path / "a" / "m.py")) == answers(private(tmp_path / "b" / "m.py"))


@pytest.mark.parametrize("default", ["Path('x')", "(1, float('nan'))"])
def test_a_parameter_that_cannot_be_recorded_is_one_line(default, answers, tmp_path):
    with pytest.raises(UserError, match=r"mine: parameter table must be made of numbers, text") as caught:
        answers(private(tmp_path / "mine.py", default=default))
    assert "\n" not in str(caught.value)


def test_parameters_are_recorded_as_json_gives_them_back(folder, tmp_path):
    method = methods.load(private(tmp_path / "mine.py"), table=({2: "b", 10: "a"}, 1))
    run = composed(f"model.pretrained={folder}", "method=random")
    known = Identity(run, ModelFolder(folder)).answers(Pruner(method, "mine", Budget(keep=0.5)))
    assert known["method"]["params"] == {"table": [{"2": "b", "10": "a"}, 1]}
    assert digest(json.loads(json.dumps(known))) == digest(known)  # as run.json is compared


@pytest.mark.parametrize("name", ["MODEL_SEQ_LEN", "FORCE_QWENVL_VIDEO_READER"])
def test_the_environment_that_libraries_listen_to_counts(name, answers, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = answers()
    monkeypatch.setenv(name, "1")
    assert answers() != before


@pytest.mark.parametrize("package", ["decord", "av", "torchcodec", "flash-attn"])
def test_the_versions_of_video_readers_and_of_a_used_attention_kernel_count(package, folder, monkeypatch):
    run = composed(f"model.pretrained={folder}", "method=random")
    run.model.attn = "flash_attention_2"
    monkeypatch.setattr(identity, "version", lambda name: "9.9" if name == package else "1.0")
    assert Identity(run, ModelFolder(folder)).model["packages"][package] == "9.9"
    run.model.attn = "sdpa"
    assert "flash-attn" not in Identity(run, ModelFolder(folder)).model["packages"]


def test_the_kind_of_gpu_counts(answers, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card of {device}")
    on_card = answers("random", "model.device=cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another card")
    assert answers("random", "model.device=cuda:1") != on_card
    assert answers("random", "model.device=cuda:0") == answers("random", "model.device=cuda:1")


# Every setting is in one of the three, or `test_no_setting_is_forgotten` fails.
IN_KEY = {
    "method": {"method": {"name": "uniform"}},
    "keep": {"keep": 0.5},
    "tokens": {"keep": None, "tokens": 2},
    "per_tile": {"keep": None, "per_tile": 2},
    "seed": {"seed": 1},
    "positions": {"positions": "compact"},
    "model.pretrained": {"model.pretrained": "other"},  # by content
    "model.scorer": {"model.scorer": "other/scorer"},  # by content
    "model.dtype": {"model.dtype": "float16"},
    "model.attn": {"model.attn": "eager"},
    "model.min_pixels": {"model.min_pixels": 784},
    "model.max_pixels": {"model.max_pixels": 1568},
    "model.max_frames": {"model.max_frames": 2},
    "model.fps": {"model.fps": 2.0},
    "model.min_frames": {"model.min_frames": 2},
    "model.batch_size": {"model.batch_size": 3},  # in half precision an answer moves with its neighbours
    "model.unpack": {"model.unpack": "fixed"},
    "model.newlines": {"model.newlines": "follow"},
    "model.device_map": {"model.device_map": "auto"},
}
IN_FOLDER = {  # answers of such runs never meet; what is asked is in each key
    "limit": {"limit": 1},  # the last batch is another one
    "sample": {"sample": "even"},
    "questions": {"questions": ["tiny_stills/0"]},
    "tasks.include": {"tasks.include": "other tasks"},  # by content
    "tasks.metrics": {"tasks.metrics": {"tiny_stills": None, "tiny_clips": None}},  # the names, not the metrics
    "data_root": {"data_root": {"tiny_stills": "copy"}},  # by content
}
CANNOT = {
    "verify": "computes some answers twice",
    "force": "computes the same again",
    "dry_run": "computes nothing",
    "verbose": "prints more",
    "strict": "stops at a question that has no answer",
    "share_gb": "what is shared are the same bits, see test_sharing.py",
    "runs": "where results lie",
    "tasks.name": "names a folder",
    "model.name": "names a folder",
    "model.revision": "chooses weights, which are in the key by content",
    "model.device": "chooses a device, whose kind is in the key",
}


def settings() -> set[str]:
    groups = {"model": ModelConfig, "tasks": TasksConfig}
    names = {field.name for field in fields(RunConfig)} - groups.keys()
    return names | {f"{group}.{field.name}" for group, kind in groups.items() for field in fields(kind)}


def test_no_setting_is_forgotten():
    assert IN_KEY.keys() | IN_FOLDER.keys() | CANNOT.keys() == settings()
    assert len(IN_KEY) + len(IN_FOLDER) + len(CANNOT) == len(settings())


@pytest.fixture(scope="module")
def places(folder, tmp_path_factory) -> Path:
    """Two models and two scorers that differ in their numbers alone, two task folders, a copy of a data set."""
    root = tmp_path_factory.mktemp("places")
    shutil.copytree(folder, root / "one")
    tiny_folder(root, seed=1).rename(root / "other")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        save_scorer(VisionSelectorScorer(HIDDEN, 8), root / name / "scorer")
    for name, text in (("tasks", "task: tiny_stills\n"), ("other tasks", "task: tiny_stills\nmetadata: 2\n")):
        (root / name).mkdir()
        (root / name / "tiny_stills.yaml").write_text(text)
    (root / "copy").mkdir()
    (root / "copy" / "rows.parquet").write_text("rows")
    return root


def changed(run: RunConfig, places: Path, settings: dict) -> RunConfig:
    paths = {"model.pretrained", "model.scorer", "tasks.include"}
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        value = str(places / value) if key in paths else value
        value = {task: str(places / copy) for task, copy in value.items()} if key == "data_root" else value
        within = replace(getattr(run, group), **{name: value}) if group else value
        run = replace(run, **{group or name: within})
    return run


@pytest.fixture
def found(places, monkeypatch):
    """Digests of what the answers of a run are kept under, and of what its folder is: with these settings changed."""
    monkeypatch.chdir(places)
    monkeypatch.setattr(Qwen25VL, "check_positions", lambda *args: None)  # only LLaVA's can be renumbered
    monkeypatch.setattr(Qwen25VL, "has_newlines", True)  # as LLaVA-NeXT has them
    base = {"model.pretrained": "one", "tasks.include": "tasks"}
    overrides = ["method=idpruner", "tasks=[tiny_stills]", f"tasks.include={places / 'tasks'}"]
    plain = composed(f"model.pretrained={places / 'one'}", *overrides)

    def of(settings: dict) -> tuple[str, str]:
        run = changed(plain, places, {**base, **settings})
        own = plan(locate(run)).runs[-1]
        return digest(own.answers), digest(own.folder.identity)

    return of


@pytest.mark.parametrize("setting", IN_KEY)
def test_a_setting_that_changes_answers_changes_their_keys(setting, found):
    (key, folder), (other_key, other_folder) = found({}), found(IN_KEY[setting])
    assert key != other_key
    assert folder != other_folder


@pytest.mark.parametrize("setting", IN_FOLDER)
def test_a_setting_that_changes_what_is_asked_changes_the_folder(setting, found):
    assert found({})[1] != found(IN_FOLDER[setting])[1]


@pytest.mark.parametrize("setting", CANNOT)
def test_a_setting_that_changes_no_answer_changes_nothing(setting, found):
    values = {
        "force": True,
        "dry_run": True,
        "strict": True,
        "share_gb": 0.0,
        "runs": "elsewhere",
        "model.device": "cpu",
    }
    assert found({}) == found({setting: values.get(setting, "another")})


@pytest.mark.parametrize("name", sorted(set(methods.BUILT_IN) - {"none"}))
def test_every_parameter_of_every_method_is_in_the_key(name):
    method = methods.load(name, **({"prior": "none"} if name == "d2pruner" else {}))
    before = identity._params(method)
    parameters = {field.name for field in fields(method) if field.init}
    later = {field.name for field in fields(method) if field.metadata.get(LATER)}
    assert set(before) == parameters - later
    for parameter in parameters - method.file_metadata.keys():  # files are in it by content
        other = methods.load(name, **({"prior": "none"} if name == "d2pruner" else {}))
        object.__setattr__(other, parameter, "something else")
        assert identity._params(other) != before


@pytest.mark.parametrize("package", [*identity.PACKAGES, *identity.VIDEO_READERS])
def test_the_version_of_every_package_that_matters_is_in_the_key(package, answers, monkeypatch):
    before, version = answers(), identity.version
    monkeypatch.setattr(identity, "version", lambda name: "9.9" if name == package else version(name))
    assert answers() != before


def test_of_a_package_the_minor_version_counts(answers, monkeypatch):
    versions = []
    for release in ("5.23.0", "5.23.1", "5.24.0"):
        monkeypatch.setattr(identity, "version", lambda name, release=release: release)
        versions.append(answers())
    assert versions[0] == versions[1] != versions[2]
    assert identity.packages("sdpa")["transformers"] == "5.24.0"  # which run.json records


def test_a_parameter_that_a_method_got_later_changes_nothing_at_its_default():
    assert "budget_at" not in identity._params(methods.load("fastv"))
    assert identity._params(methods.load("fastv", budget_at="mean"))["budget_at"] == "mean"

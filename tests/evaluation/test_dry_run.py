"""`dry_run=true` says what would be run: every run once, its tokens, its operations; nothing is loaded or written."""

import pytest
from composed_sweeps import located
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor

from harness.bench.flops import counted
from harness.bench.settings import settings
from harness.core.command import _experiment
from harness.core.config import conf
from harness.core.config_groups import command_of
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.evaluation.dry_run import listed, show
from harness.models import checkpoint, loading
from harness.models.cost import architectures

EXPERIMENTS = sorted(file.stem for file in conf("experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory that stays empty, without the Hub and without a model in memory."""

    def never(*_, **__):
        raise AssertionError("a dry run loads and downloads nothing")

    monkeypatch.chdir(tmp_path)
    for name in ("_check_hub", "_download", "_download_file", "_has"):
        monkeypatch.setattr(checkpoint, name, never)
    monkeypatch.setattr(loading.transformers.AutoModelForImageTextToText, "from_pretrained", never)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if command_of(name) == "harness"])
def test_an_experiment_lists_its_runs_and_their_baseline(experiment):
    jobs = located(f"experiment={experiment}")
    baseline, *rows = listed(jobs)
    assert (baseline.run.rpartition("/")[2], baseline.cost.kept) == ("none-1.0", baseline.cost.visual)
    assert [row.overrides for row in rows] == [overrides for _, overrides in jobs]
    for row, (run, _) in zip(rows, jobs, strict=True):
        config = run.config
        assert row.run == f"{config.model.name}/{config.tasks.name}/{config.method['name']}-{config.budget.label}"
        if baseline.cost.visual is None:  # of a family that cuts tiles, without its processor at hand
            assert (row.cost.kept, row.cost.flops) == (config.tokens, None)
            continue
        assert row.cost.kept == (config.tokens or round(config.keep * row.cost.visual))
        assert row.cost.flops > 0
        assert row.cost.flops < baseline.cost.flops or config.model.name == "pocket"  # too small to save anything
    assert {row.state for row in rows} == {"to do"}


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if command_of(name) == "harness.bench"])
def test_an_experiment_of_the_bench_can_be_counted_before_it_is_measured(experiment):
    chosen = settings(compose("bench", _experiment("bench", [f"experiment={experiment}"], False, False)))
    assert len(counted(chosen)) == (1 + len(chosen.runs)) * len(chosen.sizes)


def test_every_experiment_is_of_one_of_the_two_commands():
    assert {command_of(name) for name in EXPERIMENTS} == {"harness", "harness.bench"}


@pytest.mark.parametrize(("model", "least"), [("pocket", "0.21"), ("qwen25vl7b", "0.04")])
def test_a_mean_that_no_cut_leaves_is_refused_in_the_unit_of_the_budget(model, least):
    with pytest.raises(UserError, match=f"pyramiddrop: keep=0.02 is too small, .* layers .*: keep={least} or more, or"):
        listed(located("method=pyramiddrop", "keep=0.02", f"model={model}", "tasks=pocket_image"))
    for budget in (f"keep={least}", "keep=0.02 method.budget_at=end"):
        assert listed(located("method=pyramiddrop", *budget.split(), f"model={model}", "tasks=pocket_image"))


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("llava15_7b", 24 * 24),
        ("qwen25vl7b", 27 * 37),  # 768 x 1024 pixels, 28 a side
        ("pocket", 13 * 18),  # made smaller: at most 448 x 448 pixels
    ],
)
def test_operations_are_near_two_for_every_weight_and_token(model, tokens):
    unpruned, pruned = listed(located("method=random", "keep=0.5", f"model={model}", "tasks=pocket_image"))
    assert unpruned.cost.visual == tokens
    assert pruned.cost.kept == round(tokens / 2)
    if model == "pocket":
        return
    text = architectures.config_of(model).get_text_config()
    head = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = text.hidden_size * (2 * text.hidden_size + 2 * head + 3 * text.intermediate_size)
    saved = unpruned.cost.flops - pruned.cost.flops
    assert saved == pytest.approx(2 * text.num_hidden_layers * layer * (tokens - tokens // 2), rel=0.1)


def test_a_picture_in_tiles(tmp_path_factory):
    """Of 768 x 1024 pixels: crop 0 of 4 x 4 patches and a mosaic of 6 x 8, from 5 crops."""
    folder = tmp_path_factory.mktemp("llava_next")
    tiny_llava_next().save_pretrained(folder)
    tiny_llava_next_processor().save_pretrained(folder)
    model = ["model=llava16_vicuna7b", f"model.pretrained={folder}", "tasks=pocket_image"]
    unpruned, pruned = listed(located("method=random", "per_tile=3", *model))
    assert (unpruned.cost.visual, pruned.cost.kept) == (64, 15)
    (_, with_newlines) = listed(located("method=random", "per_tile=3", "model.newlines=keep", *model))
    assert pruned.cost.flops < with_newlines.cost.flops < unpruned.cost.flops


def test_runs_that_share_a_baseline_name_it_once():
    jobs = located("method=none,random", "model=qwen25vl7b", "tasks=pocket_image", "seed=0,1", "positions=keep")
    assert [row.run.rpartition("/")[2] for row in listed(jobs)] == ["none-1.0", "random-0.25", "random-0.25"]


def test_what_cannot_be_known_here_is_said(capsys):
    show(located("method=random,idpruner", "model=qwen3vl8b", "tokens=64", "tasks=mmstar"))
    out = capsys.readouterr().out
    assert out.count("to do  64 ") == 2
    assert out.count("note: Qwen/Qwen3-VL-8B-Instruct is not here, nor is its configuration") == 1
    assert "0 of the 3 runs to come" in out
    show(located("method=idpruner", "model=qwen25vl7b", "tasks=mmstar"))
    assert "note: idpruner needs a learned scorer: model.scorer=FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["llava15_7b", "pocket_llava"])  # from its configuration alone, and from its folder
def test_what_the_model_cannot_run_is_refused(model):
    with pytest.raises(UserError, match="resize"):
        listed(located("method=resize", f"model={model}", "tasks=pocket_image"))


def test_a_missing_folder_is_refused():
    with pytest.raises(UserError, match="no model folder at /nowhere"):
        listed(located("method=random", "model.pretrained=/nowhere"))

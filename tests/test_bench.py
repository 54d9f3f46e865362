"""`python -m harness.bench` on tiny models of every family: what is in the rows, what files say, what is refused."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from gathered import hooks
from PIL import Image
from test_bench_timing import FakeClock

import methods
from harness.bench import architectures, output, plots, screen
from harness.bench.columns import COLUMNS, STAGE_MEANINGS
from harness.bench.contestants import Contestant
from harness.bench.latency import measured
from harness.bench.measure import Runner
from harness.bench.probes import PROJECTORS
from harness.bench.settings import settings
from harness.bench.subjects import subject
from harness.bench.workloads import grid_of, synthetic
from harness.cli import compose
from harness.config import ModelConfig
from harness.errors import UserError
from harness.flops.decoder import DecoderShape
from harness.models import FAMILIES, adapter_for
from methods.budget import Budget

QUICK = ["new_tokens=3", "warmup=0", "repeats=1", "text_tokens=16", "model.device=cpu", "model.dtype=float32"]
# Parameters of the released models: of Qwen's and LLaVA's as the Hub counts their weights, of the last from the sizes
# of its tensors: tower, patches, class, positions and norm, merger, 36 layers, last norm, embeddings and head.
PARAMETERS = {
    "qwen25vl7b": 8_292_166_656,
    "qwen25vl3b": 3_754_622_976,
    "llava15_7b": 7_063_427_072,
    "llavaov15_8b": 302_309_376
    + 602_112
    + (1024 + 32 + 2048)
    + (33_562_624 + 2048)
    + 6_946_071_552
    + 4096
    + 2 * 622_329_856,
}


def chosen(*overrides):
    return settings(compose("bench", [*QUICK, *overrides]))


def run(*overrides):
    told = []
    rows, about = measured(chosen(*overrides), told.append)
    return rows, about, told


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """An image and a clip, two batches, methods of every kind."""
    out = tmp_path_factory.mktemp("bench") / "new" / "tiny"
    names = "methods=[visionzip,idpruner,{name:fastv,variant:paper},resize]"
    sizes = ["sizes=[4x6,2x4x4]", "batch=[1,2]", "keep=[0.5,0.25]", f"out={out}"]
    return (*run("model=qwen25vl7b", "weights=tiny", names, *sizes), out)


def test_every_row_has_every_column_and_the_unpruned_model_comes_first(qwen):
    rows, about, told, _ = qwen
    assert all(list(row) == list(COLUMNS) for row in rows)
    labels = [
        f"{name} {keep}" for name in ("visionzip", "idpruner", "fastv variant=paper", "resize") for keep in (0.5, 0.25)
    ]
    assert [screen.label(row) for row in rows] == ["unpruned", *labels] * 4
    assert [(row["workload"], row["batch"]) for row in rows[:: len(labels) + 1]] == [
        ("4x6", 1), ("4x6", 2), ("2x4x4", 1), ("2x4x4", 2),
    ]  # fmt: skip
    assert {row["text_tokens"] for row in rows} == {16}
    assert {row["visual_tokens"] for row in rows} == {24, 32}
    assert {row["n"] for row in rows} == {1}
    assert about["machine"]["device"] == "cpu"
    assert told == []


def test_times_add_up_and_are_compared_with_the_unpruned_model(qwen):
    rows = qwen[0]
    for row in rows:
        stages = [
            row[f"{stage}_ms"] for stage in ("vit", "projector", "signals", "selection", "cut", "llm_prefill", "other")
        ]
        assert sum(stages) == pytest.approx(row["prefill_ms"])
        assert row["preprocess_ms"] < row["ttft_ms"] < row["e2e_ms"]
        assert row["e2e_ms"] - row["ttft_ms"] == pytest.approx(2 * row["tpot_ms"])
        assert row["visionselector_prefill_ms"] == pytest.approx(row["prefill_ms"])
        assert row["idpruner_e2e_ms"] == pytest.approx(row["e2e_ms"] - row["preprocess_ms"])
    first, other = rows[:2]
    assert first["e2e_saving_ms"] == 0
    assert other["e2e_saving_ms"] == pytest.approx(first["e2e_ms"] - other["e2e_ms"])
    assert other["prefill_speedup"] == pytest.approx(first["prefill_ms"] / other["prefill_ms"])


def test_memory_and_tokens_are_those_of_the_budget(qwen):
    shape = DecoderShape.of(architectures.config_of("qwen25vl7b", tiny=True))
    for row in qwen[0]:
        before, after = row["visual_tokens"] + 16, row["kept_tokens"] + 16
        if row["method"] != "resize":
            assert row["kept_tokens"] == float(row["budget"]) * row["visual_tokens"]
        early = 1 if row["method"] == "fastv" else 0  # cut inside layer 0
        values = shape.cache_values * (early * before + (shape.layers - early) * after)
        assert row["kv_cache_bytes"] == 4 * row["batch"] * values
        assert row["peak_allocated_bytes"] is None  # no allocator counts on the CPU
        assert (row["tokens_per_layer"] > row["kept_tokens"]) == bool(early)


def test_operations_are_of_the_whole_batch(qwen):
    rows = qwen[0]
    one, two = (next(row for row in rows if row["batch"] == batch) for batch in (1, 2))
    assert two["total_tflops"] == pytest.approx(2 * one["total_tflops"])
    parts = ("vit", "projector", "signals", "selection", "prefill", "decode")
    assert one["total_tflops"] == pytest.approx(sum(one[f"{part}_tflops"] for part in parts))


def test_files_say_what_the_rows_say(qwen, tmp_path):
    rows, about, _, out = qwen
    table = pd.read_csv(output.csv_of(out))
    assert list(table.columns) == list(COLUMNS)
    assert table["prefill_ms"].tolist() == pytest.approx([row["prefill_ms"] for row in rows])
    stored = json.loads(output.json_of(out).read_text())
    assert stored == {**about, "columns": COLUMNS, "rows": rows}
    assert {file.name for file in out.parent.iterdir()} == {"tiny.csv", "tiny.json"}
    assert {f"{stage}_ms" for stage in STAGE_MEANINGS} <= set(COLUMNS)
    files = plots.draw(rows, tmp_path / "plots")
    assert sorted(file.name for file in files) == sorted(file.name for file in (tmp_path / "plots").iterdir())
    assert len(files) == 4 + 2
    assert all(Image.open(file).size[0] > 500 for file in files)


def test_the_tables_have_a_line_for_everyone_and_say_where_each_pays(qwen):
    text = screen.tables(qwen[0])
    assert text.count("\nunpruned ") == 4 * 4
    assert text.count("\nfastv variant=paper 0.25 ") == 4 * 4
    assert len(screen.pays(qwen[0])) == 8 * 2
    assert screen.pays(qwen[0])[0].startswith("visionzip 0.5, batch 1: ")


@pytest.mark.parametrize("model", ["qwen25vl7b", "llava15_7b", "llavaov15_8b"])
def test_stages_belong_to_those_who_need_them_and_the_model_is_restored(model):
    it = subject(
        chosen(f"model={model}", "weights=tiny", "methods=[random,visionzip,idpruner,dart]", "sizes=[64]"), print
    )
    inputs = it.workloads[0].prepare(1)
    it.model.generate(**inputs, max_new_tokens=1, do_sample=False)  # the library leaves hooks of its own
    before, runner = hooks(it.model), Runner(adapter_for(it.model), FakeClock(), 3)
    times = {one.name: runner.time(one, inputs) for one in it.contestants}
    assert {name for name, time in times.items() if time["signals"]} == {"visionzip", "idpruner"}
    assert {name for name, time in times.items() if time["selection"]} == {"random", "visionzip", "idpruner", "dart"}
    assert {name for name, time in times.items() if time["cut"]} == {"random", "visionzip", "idpruner", "dart"}
    assert all(time["vit"] and time["projector"] and time["llm_prefill"] for time in times.values())
    assert hooks(it.model) == before
    assert all("select" not in vars(one.method) for one in it.contestants if one.method)


def test_the_model_is_restored_after_a_failure():
    it = subject(chosen("model=llava15_7b", "weights=tiny", "methods=[scope]"), print)
    before, runner = hooks(it.model), Runner(adapter_for(it.model), FakeClock(), 3)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        runner.time(it.contestants[1], {"input_ids": it.workloads[0].prepare(1)["input_ids"]})  # no pixels
    assert hooks(it.model) == before
    assert "select" not in vars(it.contestants[1].method)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_released_architecture_at_full_size(name):
    model = architectures.build(ModelConfig(name=name), tiny=False, device="meta", seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.model_type in PROJECTORS
    assert architectures.random_scorer(8, architectures.scorer_hidden(name), "cpu").in_features == 8
    for path in {*adapter_for(model).targets.values(), PROJECTORS[model.config.model_type]}:
        model.get_submodule(path)


def test_every_family_has_a_projector():
    assert set(PROJECTORS) == set(FAMILIES)


def test_sizes():
    assert grid_of(2691) == (1, 39, 69)  # a 1080p screen
    assert [h * w for _, h, w in map(grid_of, (576, 1024, 5000, 10000))] == [576, 1032, 4982, 9975]
    assert (grid_of("8x9"), grid_of("16x20x36"), grid_of(1)) == ((1, 8, 9), (16, 20, 36), (1, 1, 1))
    for wrong in ("8x", "0", "-3", "1x2x3x4", "x", 2.5, 0):
        with pytest.raises(UserError, match="sizes takes numbers"):
            grid_of(wrong)
    llava = synthetic(architectures.config_of("llava15_7b"), 2691, 64)
    assert (llava.name, llava.tokens) == ("24x24*5", 2880)


def test_the_words_around_an_image_are_no_special_tokens():
    config = architectures.config_of("qwen25vl3b", tiny=True)
    ids = synthetic(config, "2x3", 64).prepare(2)["input_ids"]
    assert ids.shape == (2, 70)
    special = ids[0] >= 151_643
    assert ids[0][special].tolist() == [151652, *[151655] * 6, 151653]


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((168, 112)).save(file)
    return file


def test_given_images_on_real_weights(picture):
    rows, _, _ = run("model=pocket", f"images=[{picture}]", "methods=[idpruner,resize]", "keep=0.5", "batch=2")
    assert [row["visual_tokens"] for row in rows] == [24, 24, 24]
    assert [row["kept_tokens"] for row in rows[:2]] == [24, 12]
    assert 6 <= rows[2]["kept_tokens"] <= 12
    assert {row["workload"] for row in rows} == {"picture.png"}
    assert len({row["text_tokens"] for row in rows}) == 1
    assert rows[1]["signals_ms"] > 0  # the scorer that came with the weights


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["weights=none"], "weights must be one of real, random, tiny"),
        (["repeats=0"], "repeats must be a number of at least 1, got 0"),
        (["batch=[1,0]"], "batch must be a number of at least 1, got 0"),
        (["batch=[]"], "nothing to measure"),
        (["keep=1.5"], "keep must be a number in"),
        (["keep=0.5", "tokens=8", "methods=[none]"], None),
        (["methods=[{lam:1}]"], "methods takes names, or"),
        (["images=[nothing.png]"], "no image at nothing.png"),
        (["model.dtype=int8"], "model.dtype must be one of"),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(overrides, says):
    if says is None:
        assert chosen(*overrides).runs == []
        return
    with pytest.raises(UserError, match=says):
        chosen(*overrides)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["model=qwen3vl8b", "weights=tiny"],
            "no architecture of model=qwen3vl8b is at hand: choose one of llava15_7b",
        ),
        (["model=llava15_7b", "weights=tiny", "methods=[resize]"], "every image becomes one size"),
        (["model=qwen25vl7b", "weights=tiny", "positions=compact"], "positions=compact does not fit family qwen2_5_vl"),
        (["model=qwen25vl7b", "weights=tiny", "methods=[idprune]"], "did you mean"),
        (["model=qwen25vl7b", "weights=tiny", "sizes=[big]"], "sizes takes numbers of visual tokens"),
    ],
)
def test_what_a_family_cannot_do_is_refused(overrides, says):
    with pytest.raises(UserError, match=says):
        subject(chosen(*overrides), print)


def test_all_methods_leaves_out_what_the_family_cannot_run():
    told = []
    it = subject(chosen("model=llava15_7b", "weights=tiny", "methods=all"), told.append)
    assert {one.name for one in it.contestants} == set(methods.names()) - {"resize"}
    assert len(told) == 1
    assert told[0].startswith("left out: resize makes images smaller")


def test_labels():
    method = methods.load("fastv", layer=2)
    assert Contestant("fastv", "layer=2", method, Budget(tokens=64)).label == "fastv layer=2 64tok"
    assert Contestant("none").label == "unpruned"


def command(*arguments, cwd):
    call = [sys.executable, "-m", "harness.bench", *arguments]
    return subprocess.run(call, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)


def test_operations_from_the_command_line(tmp_path):
    done = command("flops", "model=qwen25vl7b", "keep=0.25", "sizes=[2691]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unpruned, pruned = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert (unpruned["method"], pruned["method"], pruned["kept_tokens"]) == ("none", "idpruner", 673)
    assert 3.5 < unpruned["prefill_tflops"] / pruned["prefill_tflops"] < 4.5
    assert unpruned["vit_tflops"] == pruned["vit_tflops"]
    assert "idpruner 0.25" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line(tmp_path):
    done = command("model=qwen25vl7b", "weights=tiny", "repeat=3", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean repeats?" in done.stderr

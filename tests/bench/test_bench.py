"""`python -m harness.bench` on tiny models of every family: what is in the rows, what files say, what is refused."""

import json

import pandas as pd
import pytest
from PIL import Image
from reference_prune import hooks
from test_timers import FakeClock

from harness.bench import output, plots, screen
from harness.bench.columns import COLUMNS, STAGE_MEANINGS
from harness.bench.latency import measured
from harness.bench.measure import Runner
from harness.bench.settings import settings
from harness.bench.setup import subject
from harness.core.overrides import compose
from harness.models import adapter_for
from harness.models.cost import architectures
from harness.models.cost.decoder import DecoderShape

QUICK = ["new_tokens=3", "warmup=0", "repeats=1", "text_tokens=16", "model.device=cpu", "model.dtype=float32"]


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
        of_a_token = 2 * shape.kv_heads * shape.head_dim  # in one layer
        values = of_a_token * (early * before + (shape.layers - early) * after)
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


def test_a_gain_in_the_vision_tower_which_pruning_leaves_alone_is_not_believed():
    def row(method, **changed):
        same = {"workload": "1x24x24", "batch": 1, "params": "", "budget": "0.25"}
        return {**same, "method": method, "vit_ms": 100.0, "vit_iqr_ms": 2.0, "vit_tflops": 1.0, **changed}

    warm = [row("none"), row("random", vit_ms=91.0), row("scope", vit_ms=85.0, vit_iqr_ms=20.0)]
    assert screen.unsettled(warm) == []  # within a tenth, or within the noise that the table shows
    assert screen.unsettled([row("none"), row("resize", vit_ms=20.0, vit_tflops=0.2)]) == []  # it had less to do
    assert screen.unsettled([row("none"), row("random", vit_ms=None, vit_iqr_ms=None)]) == []
    (line,) = screen.unsettled([row("none"), row("random", vit_ms=52.0)])
    assert "random 0.25, 1x24x24, batch 1: the vision tower took 52.0 ms, and 100.0 ms unpruned" in line


@pytest.mark.parametrize("model", ["qwen25vl7b", "llava15_7b", "llavaov15_8b"])
def test_stages_belong_to_those_who_need_them_and_the_model_is_restored(model):
    it = subject(
        chosen(f"model={model}", "weights=tiny", "methods=[random,visionzip,mmtok,idpruner,dart]", "sizes=[64]"), print
    )
    inputs = it.workloads[0].prepare(1)
    it.model.generate(**inputs, max_new_tokens=1, do_sample=False)  # the library leaves hooks of its own
    before, runner = hooks(it.model), Runner(adapter_for(it.model), FakeClock(), 3)
    times = {one.name: runner.time(one, inputs) for one in it.candidates}
    assert {name for name, time in times.items() if time["signals"]} == {"visionzip", "mmtok", "idpruner"}
    pruned = {"random", "visionzip", "mmtok", "idpruner", "dart"}
    assert {name for name, time in times.items() if time["selection"]} == pruned
    assert {name for name, time in times.items() if time["cut"]} == pruned
    assert all(time["vit"] and time["projector"] and time["llm_prefill"] for time in times.values())
    assert hooks(it.model) == before
    assert all("select_batch" not in vars(one.method) for one in it.candidates if one.method)


def test_the_model_is_restored_after_a_failure():
    it = subject(chosen("model=llava15_7b", "weights=tiny", "methods=[scope]"), print)
    before, runner = hooks(it.model), Runner(adapter_for(it.model), FakeClock(), 3)
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        runner.time(it.candidates[1], {"input_ids": it.workloads[0].prepare(1)["input_ids"]})  # no pixels
    assert hooks(it.model) == before
    assert "select_batch" not in vars(it.candidates[1].method)


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


@pytest.mark.parametrize("model", ["pocket", "pocket_llava"])
def test_given_sizes_on_real_weights(model):
    rows, _, _ = run(f"model={model}", "sizes=[256]", "methods=[idpruner,d2pruner]", "batch=2", "tokens=32")
    assert [row["kept_tokens"] for row in rows] == [rows[0]["visual_tokens"], 32, 32]
    assert 250 <= rows[0]["visual_tokens"] <= 260
    assert {row["text_tokens"] for row in rows} == {16}
    assert {row["error"] for row in rows} == {None}

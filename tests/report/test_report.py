"""The command that writes the page: what it says, what it refuses, and what the page weighs."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fork_server import completed
from PIL import Image
from run_folders import sealed_again
from synthetic_runs import write_run

import harness.report
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.report import images
from harness.report.build import build
from harness.report.prefill_times import join, read_times
from harness.report.provenance import provenance
from harness.results import plots
from harness.results.frames import read_scores
from harness.results.labels import names, settings, short
from harness.results.result import collect
from harness.results.summary import of_scores

CSS = (Path(harness.report.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")


def make(*overrides):
    return build(compose("report", list(overrides)))


def some(root, keep=0.25):
    for method, skill in (("none", 1), ("random", 0.3), ("idpruner", 0.7)):
        write_run(root / "runs", method, keep, skill)


def test_twenty_runs_of_a_thousand_questions_are_less_than_ten_megabytes(tmp_path, monkeypatch):
    tasks = {f"task_{i}": "accuracy,none" for i in range(4)}
    write_run(tmp_path / "runs", "none", questions=250, tasks=tasks, tokens=1200)
    for place in range(19):
        write_run(tmp_path / "runs", "random", 0.25, 0.2 + 0.03 * place, 250, tasks, tokens=1200, seed=place)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (420, 560, 3), dtype=np.uint8))

    def worst(setting, config, keep):
        for question in setting["questions"]:
            question.update(text="What is it?", target="yes", pictures=[keep(noise)])
        return []

    monkeypatch.setattr(images, "illustrate", worst)
    out = tmp_path / "report.html"
    report = make(f"runs={tmp_path / 'runs'}", f"out={out}")
    assert (report["runs"], report["questions"]) == (20, 24)
    assert report["bytes"] == out.stat().st_size < 10_000_000
    assert out.read_text().count("data:image/webp") == 24


def test_a_table_holds_one_model_and_task_set_and_says_which(tmp_path):
    tasks = {"one": "acc,none", "two": "acc,none"}
    for model, of_model in (("m", tasks), ("n", {"one": "acc,none"})):
        for method, skill in (("none", 1), ("random", 0.3)):
            write_run(tmp_path / "runs", method, 0.25, skill, 30, of_model, model=model, run_seed=0)
    for seed in (1, 2):  # one row
        write_run(tmp_path / "runs", "random", 0.25, 0.3, 30, tasks, model="m", run_seed=seed)
    out = tmp_path / "page.html"
    report = make(f"runs={tmp_path / 'runs'}", f"out={out}", "gallery=none")
    text = out.read_text()
    captions = re.findall("<caption>(.*?: .*? rows on .*?)</caption>", text)
    assert captions == ["m, tasks suite: 2 rows on 2 benchmarks", "n, tasks suite: 2 rows on 1 benchmark"]
    assert report["runs"] == 6
    assert "6 finished runs below" in text
    assert "Runs that differ in their seed alone are one row: 4 rows." in text
    assert "<li>m on suite: averages of random are means over seeds" in text  # notes say of which model they are


def test_a_page_that_would_be_too_large_is_not_written(tmp_path, monkeypatch):
    some(tmp_path)
    monkeypatch.setattr("harness.report.build.MOST", 100_000)
    with pytest.raises(UserError, match=r"the page would weigh more than .*: ask for fewer questions= or gallery=all"):
        make(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}", "pictures=false")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.usefixtures("fork_server")
def test_the_command_writes_page_and_plots_and_ends_with_json(tmp_path):
    some(tmp_path)
    call = ["harness.report", "runs=runs", "out=page.html", "plots=plots", "pictures=false"]
    done = completed(tmp_path, *call)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["report"], report["runs"]) == ("page.html", 3)
    kinds = [file.suffix for file in sorted((tmp_path / "plots").iterdir())]
    assert report["plots"] == len(kinds)
    assert set(kinds) == {".svg", ".pdf", ".png"}
    text = (tmp_path / "page.html").read_text()
    again = completed(tmp_path, *call)
    assert json.loads(again.stdout.splitlines()[-1]) == report
    assert (tmp_path / "page.html").read_text() == text
    assert re.findall(r"""(?:src|href)=["']?(?!#|data:)[^"' >]+""", text.partition("<script")[0]) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs=null"], "runs is null"),
        (["runs=nowhere"], "no finished run below runs=nowhere"),
        (["gallery=some"], "gallery must be one of page, all, none, got some"),
        (["questions=0"], "questions must be a whole number of at least 1, got 0"),
        (["out=null"], "nothing to write: pass out=report.html or plots=FOLDER"),
        (["prefill=no.csv"], "no file at prefill=no.csv"),
        (["out=runs/none/x/report.html"], None),
        (["out=file/report.html"], "out=file cannot be made"),
    ],
)
def test_a_mistake_is_one_line(args, message, tmp_path, monkeypatch):
    from harness.report import __main__ as command

    some(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    cfg = compose("report", ["runs=runs", "pictures=false", *args])
    if message is None:
        command.check(cfg)
        return

    def run():
        command.check(cfg)
        command.main(cfg)

    with pytest.raises(UserError) as error:
        run()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("key", ["replay=true", "+replay=false", "~replay"])
def test_the_key_of_earlier_versions_is_refused_in_one_line(key):
    from harness.report.__main__ import refuse_replay

    with pytest.raises(UserError, match=r"^replay= is gone, since runs record .*: leave it out$"):
        refuse_replay(["runs=runs", key])
    assert refuse_replay(["runs=replay"]) == ["runs=replay"]


def test_pictures_that_cannot_be_loaded_are_named(tmp_path):
    some(tmp_path)
    make(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}")
    text = (tmp_path / "page.html").read_text()
    assert re.search("Shown without pictures: m on suite: no model folder at /no/such/model", text)


def agreement(page):
    """What the cells say of it, row by row: three runs with an average and two benchmarks."""
    found = re.findall(r'<span class="same">(.*?)</span>', page.read_text())
    assert len(found) == 9
    return found


def test_a_page_of_scores_alone_says_what_is_gone_and_takes_it_from_a_sample(tmp_path):
    some(tmp_path)
    where = (f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}", "pictures=false")
    sample = f"sample={tmp_path / 'sample.json'}"
    assert make(*where, sample)["questions"] == 12
    kept = (tmp_path / "sample.json").read_text()
    whole = agreement(tmp_path / "page.html")
    assert whole[0] == "100.0"
    assert all(0 < float(percent) < 100 for percent in whole[3:])
    for name in ("responses.jsonl", "kept.jsonl"):
        for file in (tmp_path / "runs").rglob(name):
            file.unlink()
            sealed_again(file.parent)
    assert make(*where)["questions"] == 0
    assert "No pruned run here has its answers" in (tmp_path / "page.html").read_text()
    assert set(agreement(tmp_path / "page.html")) == {"–"}
    assert make(*where, sample)["questions"] == 12
    assert (tmp_path / "sample.json").read_text() == kept
    assert agreement(tmp_path / "page.html") == whole


def test_what_did_not_finish_is_listed_and_counts_nowhere(tmp_path):
    some(tmp_path)
    write_run(tmp_path / "runs", "greedy", finish=False)
    found = provenance(collect(tmp_path / "runs"), tmp_path / "runs")
    (open_,) = found["unfinished"]
    assert (open_["label"], open_["answered"]) == ("greedy at 0.25 on m", 40)
    assert found["shared"]["torch"] == "2"
    make(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}", "pictures=false")
    text = (tmp_path / "page.html").read_text()
    assert "<b>Not finished: 1 run folder</b>" in text
    assert 'data-method="greedy"' not in text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ({"fps": 2.0, "max_frames": 768}, "2.0 a second, at least 4, at most 768"),
        ({"fps": 0.5, "max_frames": 64, "min_frames": 8}, "0.5 a second, at least 8, at most 64"),
        ({"fps": None, "max_frames": 32}, None),
    ],
)
def test_a_rate_of_frames_is_among_the_settings(model, shown, tmp_path):
    write_run(tmp_path / "runs", "none")
    (file,) = (tmp_path / "runs").rglob("run.json")
    about = json.loads(file.read_text())
    about["config"]["model"] |= model
    file.write_text(json.dumps(about))
    sealed_again(file.parent)
    found = provenance(collect(tmp_path / "runs"), tmp_path / "runs")
    assert found["shared"].get("frames of a video") == shown


def test_failed_questions_are_noted_and_counted(tmp_path):
    some(tmp_path)
    (file,) = (tmp_path / "runs").rglob("random-*/metrics.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "failed": {"one": 2, "two": 0}}))
    sealed_again(file.parent)
    make(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}", "pictures=false")
    text = (tmp_path / "page.html").read_text()
    assert "one: 2 of 20 questions failed, scored as empty answers, in random keep=0.25" in text
    assert text.count("<td>40 (2 failed)</td>") == 1


def test_warnings_are_above_the_table_and_how_numbers_were_made_folds_out_below(tmp_path):
    some(tmp_path)
    make(f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'page.html'}", "pictures=false")
    above, below = (tmp_path / "page.html").read_text().split('<table class="scores">')
    assert re.search(r'<div class="warn" role="note"><p>m on suite: decoding was not verified', above)
    assert re.search(r"<summary>How these numbers were made.*the best average was selected", below, re.S)


def test_names_tell_runs_of_one_budget_apart(tmp_path):
    write_run(tmp_path, "none")
    write_run(tmp_path, "random")
    for lam in (0.25, 0.5):
        write_run(tmp_path, "idpruner", lam=lam, epsilon=1)
    called = names(collect(tmp_path))
    told_apart = ["idpruner (lam 0.25, epsilon 1)", "idpruner (lam 0.5, epsilon 1)"]
    assert sorted(called.values()) == [*told_apart, "random", "unpruned"]


def of_other_model(root, method, **model):
    """A run whose identity has other values of the model."""
    folder = write_run(root, method)
    about = json.loads((folder.path / "run.json").read_text())
    about["identity"]["model"] |= model
    (folder.path / "run.json").write_text(json.dumps(about))
    sealed_again(folder.path)


def test_rows_of_other_settings_name_what_differs(tmp_path):
    """Two runs of each method, by two releases of torch: no two rows and no two headings of plots are the same."""
    for method in ("none", "random"):
        for torch in ("2", "3"):
            of_other_model(tmp_path / torch, method, packages={"torch": torch})
    make(f"runs={tmp_path}", f"out={tmp_path / 'page.html'}", "pictures=false")
    text = (tmp_path / "page.html").read_text()
    rows = re.findall(r'<th scope="row" title="[^"]*"><span class="dot"></span>([^<]*)', text)
    assert sorted(rows) == ["Random (torch 2)", "Random (torch 3)", "Unpruned (torch 2)", "Unpruned (torch 3)"]
    assert re.findall("<h3>(m.*?)</h3>", text) == ["m, tasks suite, torch 2", "m, tasks suite, torch 3"]


def test_of_many_differences_a_row_names_three(tmp_path):
    write_run(tmp_path, "none")
    of_other_model(tmp_path / "other", "none", dtype="bfloat16", attn="sdpa", digest="0123456789abcdef0123", more=1)
    assert sorted(settings(collect(tmp_path)).values()) == [
        "dtype bfloat16, attn sdpa, digest 01234567…, and 1 more",
        "dtype float32, no attn, no digest, and 1 more",
    ]


def test_benchmarks_lose_what_all_their_names_share():
    assert short(["pocket_text", "pocket_easy_vqa"]) == {"pocket_text": "text", "pocket_easy_vqa": "easy vqa"}
    assert short(["pope", "pocket"]) == {"pope": "pope", "pocket": "pocket"}
    assert short(["ai2d"]) == {"ai2d": "ai2d"}


def test_times_join_the_runs_they_were_measured_for(tmp_path):
    file = tmp_path / "times.csv"
    rows = [
        "m,none,1.0,40.5",
        "m,random,0.25,12",
        "m,fps,keep=0.250,9",
        "m,fps,0.25,11",
        "m,dpp,64tok,7",
        "n,dart,0.25,1",
    ]
    file.write_text("model,method,budget,prefill_ms\n" + "\n".join(rows))
    runs = [("a", "baseline", ""), ("b", "random", "keep=0.25"), ("c", "fps", "keep=0.25"), ("d", "dart", "keep=0.25")]
    runs.append(("e", "dpp", "tokens=64"))
    frame = pd.DataFrame([{"hash": h, "model": "m", "method": m, "budget": b, "name": m} for h, m, b in runs])
    known, without = join(read_times([file]), frame)
    assert known["prefill_iqr_ms"].isna().all()
    assert dict(zip(known["hash"], known["prefill_ms"], strict=True)) == {"a": 40.5, "b": 12.0, "e": 7.0}
    assert without == ["DART keep=0.25", "FPS keep=0.25"]  # of another model, and measured twice


HEAD = "model,method,budget,prefill_ms,workload,weights\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,method\nm,none\n", "lacks the columns budget, prefill_ms"),
        ("model,method,budget,prefill_ms\nm,none,,fast\n", "prefill_ms has to be a number"),
        (HEAD + "m,none,,1,1x2x2,real\nm,none,,1,1x4x4,real\n", r"several of workload \(1x2x2, 1x4x4\)"),
        (HEAD + "m,none,,1,1x2x2,tiny\n", "tiny stand-ins"),
    ],
)
def test_times_that_do_not_compare_are_refused(tmp_path, text, message):
    file = tmp_path / "times.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_times([file])


def test_the_files_of_the_bench_are_read(tmp_path):
    from harness.bench import output  # imports torch

    shared = {"model": "m", "workload": "1x2x2", "weights": "real", "batch": 1, "device": "cpu"}
    rows = [{**shared, "method": "none", "budget": "1.0", "prefill_ms": 9.0, "prefill_iqr_ms": 1.5}]
    output.write(tmp_path / "bench", rows, {"machine": "x"})
    one, two = (read_times([tmp_path / f"bench.{kind}"]) for kind in ("csv", "json"))
    assert one.measured == two.measured == {"m": "workload 1x2x2, batch 1, weights real, device cpu"}
    assert one.frame.to_dict("records") == two.frame.to_dict("records")
    assert one.frame.iloc[0].tolist() == ["m", "none", "", 9.0, 1.5]


def test_raw_scores_are_plotted_without_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", partial(plots.save, formats=("svg",)))  # to draw takes long
    published = pd.read_csv("results/paper/published_scores.csv", dtype=str)
    # Drawing all takes a minute.
    shown = [("1", "keep=0.25"), ("2", "tokens=64"), ("2", "tokens=32"), ("7", "keep=0.25")]
    shown += [(table, None) for table, _ in shown]
    rows = [pair in shown for pair in published[["table", "budget"]].replace({np.nan: None}).itertuples(index=False)]
    published[rows].to_csv(tmp_path / "scores.csv", index=False)
    report = make(f"scores={tmp_path / 'scores.csv'}", f"plots={tmp_path / 'plots'}")
    names = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert {"1-qwen25vl7b-keep0.25-radar", "2-llava15_7b-budgets", "3-qwen25vl7b-lambda"} <= names
    assert report["plots"] == len(names)
    frame = of_scores(read_scores(Path("results/paper/published_scores.csv")))
    whole = frame[(frame["benchmark"] == "avg") & (frame["method"] == "idpruner") & (frame["budget"] == "keep=0.10")]
    assert whole["relative"].round(2).tolist()[0] == 86.47  # as published


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_contrasts_with_what_lies_behind_it(theme):
    colors = {name: pair[theme] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", CSS)}
    for text in ("ink", "muted", "accent", "right", "wrong"):
        for behind in ("paper", "raised"):
            bright, dim = sorted((luminance(colors[text]), luminance(colors[behind])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, behind)
    bright, dim = sorted((luminance(colors["others"]), luminance(colors["paper"])), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 1.8  # lines for comparison: lighter than methods, which have 3

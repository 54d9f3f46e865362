"""Archives: two files give what a folder of runs gives, and a damaged one gives nothing."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from run_folders import make_run, sealed_again

from harness import compare, export, status, tables
from harness.core import command
from harness.core.errors import UserError
from harness.results import archive
from harness.results.result import Result, collect, load_results

COMMITTED = Path(__file__).parents[2] / "results" / "pocket"
BASE = {"t_one": [1.0, 1.0, 0.0, 1.0], "t_two": [1.0, 0.5]}
PLACE = Path("m", "t_one+t_two")  # of every run below, in an archive
NEWER = {"names": list(BASE), "limit": None, "files": "newer"}  # the identity of the tasks: another setting


def half(values):
    return {task: [0.5 * value for value in each] for task, each in values.items()}


@pytest.fixture
def runs(tmp_path):
    """Three runs where an archive would have them, so that paths are equal, too."""
    root = tmp_path / "folder"
    make_run(root / PLACE, "none", BASE)
    make_run(root / PLACE, "low", half(BASE))
    make_run(root / PLACE, "low", BASE, lam=0.5)
    return root


@pytest.fixture
def archived(runs, tmp_path):
    write(runs, tmp_path / "archive")
    return tmp_path / "archive"


def write(runs, folder):
    export.main(command.compose("export", [f"runs={runs}", f"archive={folder}"]))


def methods(folder):
    return sorted(f"{run.method} {run.about['identity'].get('code', '')}".strip() for run in collect(folder))


def test_what_it_holds_is_what_the_files_held(runs, archived):
    markers = sorted(runs.rglob("DONE"))
    assert sorted(path.name for path in archived.iterdir()) == [archive.PROVENANCE, archive.SCORES]
    assert [run.name for run in archive.read(archived)] == [str(path.parent.relative_to(runs)) for path in markers]
    for marker, run in zip(markers, archive.read(archived), strict=True):
        held = {"run.json": run.about, "metrics.json": run.metrics, "DONE": run.finished}
        for name, value in {**held, "scores.json": run.per_question}.items():
            assert json.dumps(value) == json.dumps(json.loads((marker.parent / name).read_text()))


def test_every_kind_of_value_comes_back(tmp_path):
    kinds = [0.1, 1.0, 1, 2**60 + 1, True, False, None, "1.0", "", {"score": 1, "category": "ö"}, [1, [None]], 1e-300]
    scores = {
        "t": {"doc_id": [*range(5, 17)], "a,none": kinds, "b,none": kinds[::-1], "c,none": [None] * 12},
        "s": {"doc_id": [3]},  # a task that keeps no value per question
    }
    written = [archive.ArchivedRun(name, {"n": name}, {}, {}, scores) for name in ("b", "a")]
    archive.write(tmp_path, written)
    assert repr(archive.read(tmp_path)) == repr(written[::-1])  # repr: 1, 1.0 and True are equal


@pytest.mark.parametrize("part", ["", PLACE, PLACE.parent])
def test_tables_are_the_same(runs, archived, part):
    one, two = (tables.text_of("csv", tables.of_runs(load_results(str(root / part)))[0]) for root in (runs, archived))
    assert one == two
    assert one.count("\n") == 4


def test_a_path_into_it_is_a_run(runs, archived, capsys):
    said = []
    for root in (runs, archived):
        pair = sorted((runs / PLACE).glob("low-*"))
        a, b = (root / run.relative_to(runs) for run in pair)
        compare.main(command.compose("compare", [f"a={a}", f"b={b}"]))
        said.append(capsys.readouterr().out.replace(str(root), "ROOT"))
        baseline = compare.baseline_of(Result.of(a), Result.of(b))
        assert baseline is not None
        assert baseline.is_baseline
    assert said[0] == said[1]


def test_exported_files_are_the_same(runs, archived, tmp_path):
    for root in (runs, archived):
        export.write(load_results(str(root)), tmp_path / f"{root.name}.out")
    one, two = (tmp_path / f"{root.name}.out" for root in (runs, archived))
    assert pd.read_parquet(one / export.QUESTIONS).equals(pd.read_parquet(two / export.QUESTIONS))
    assert (one / export.LEADERBOARD).read_bytes() == (two / export.LEADERBOARD).read_bytes()


def test_run_folders_beside_it_count_too(archived):
    make_run(archived / PLACE, "high", BASE)
    assert methods(archived / PLACE) == ["baseline", "high", "low", "low"]
    assert methods(archived.parent / "archive") == methods(archived)


def test_where_nothing_is_one_line_says_so(archived):
    with pytest.raises(UserError, match=r"no finished run below runs=.*other"):
        load_results(str(archived / "other"))
    with pytest.raises(UserError, match="none-0 is no finished run: it has no DONE, and no archive holds it"):
        Result.of(archived / PLACE / "none-0")
    with pytest.raises(UserError, match="is an archive, whose runs are never reused"):
        status.main(command.compose("status", [f"runs={archived}"]))


def rewritten(folder, change=lambda header, lines: None, scores=None):
    """Write the provenance again after `change`, and `scores`, with checksums that fit."""
    head, *lines = (folder / archive.PROVENANCE).read_text().splitlines()
    header = json.loads(head)
    change(header, lines)
    text = "".join(line + "\n" for line in lines)
    header["sha256"][archive.PROVENANCE] = archive._sha256(text.encode())
    if scores is not None:
        (folder / archive.SCORES).write_bytes(scores)
        header["sha256"][archive.SCORES] = archive._sha256(scores)
    (folder / archive.PROVENANCE).write_text(json.dumps(header) + "\n" + text)


def truncate(folder):
    file = folder / archive.SCORES
    file.write_bytes(file.read_bytes()[:-100])


def truncate_with_checksum(folder):
    rewritten(folder, scores=(folder / archive.SCORES).read_bytes()[:-100])


def edit_a_score(folder):
    file = folder / archive.PROVENANCE
    text = file.read_text()
    assert "0.75" in text
    file.write_text(text.replace("0.75", "0.76"))


def leave_a_run_without_provenance(folder):
    rewritten(folder, lambda header, lines: lines.pop())


def leave_a_run_without_scores(folder):
    frame = pd.read_parquet(folder / archive.SCORES)
    rewritten(folder, scores=frame[~frame["run"].str.contains("none-")].to_parquet(None))


def drop_a_column(folder):
    rewritten(folder, scores=pd.read_parquet(folder / archive.SCORES).drop(columns="record").to_parquet(None))


DAMAGES = {
    truncate: "the SHA-256 of scores.parquet is not",
    truncate_with_checksum: "Parquet",
    edit_a_score: "the SHA-256 of provenance.jsonl is not",
    leave_a_run_without_provenance: "is in only one of provenance.jsonl and scores.parquet",
    leave_a_run_without_scores: "none-.* is in only one of provenance.jsonl and scores.parquet",
    drop_a_column: "record",
    lambda folder: (folder / archive.SCORES).unlink(): "No such file.*scores.parquet",
    lambda folder: (folder / archive.PROVENANCE).unlink(): "No such file.*provenance.jsonl",
    lambda folder: (folder / archive.PROVENANCE).write_text(""): "provenance.jsonl is empty",
    lambda folder: (folder / archive.PROVENANCE).write_text("[]\n"): "list indices",
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.items())
def test_a_damaged_one_is_refused_in_one_line(archived, damage, message):
    rewritten(archived)
    assert len(load_results(str(archived))) == 3  # what the damages build on is read
    damage(archived)
    for path in (archived, archived.parent, archived / PLACE):
        with pytest.raises(UserError, match=f"is a damaged archive .*{message}.*: restore") as caught:
            load_results(str(path))
        assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused(archived):
    rewritten(archived, lambda header, lines: header.update(format=3))
    with pytest.raises(UserError, match="is an archive of format 3, expected 1 to 2: install a newer harness"):
        load_results(str(archived))


def test_an_unfinished_run_is_refused(runs, tmp_path):
    (marker,) = (runs / PLACE).glob("none-*/DONE")
    marker.unlink()
    with pytest.raises(UserError, match=r"none-.* is no finished run: finish it or move it away"):
        write(runs, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_a_run_without_all_its_scores_is_refused(runs, tmp_path):
    (file,) = (runs / PLACE).glob("none-*/scores.json")
    scores = json.loads(file.read_text())
    scores["t_one"]["acc,none"].pop()
    file.write_text(json.dumps(scores))
    sealed_again(file.parent)
    with pytest.raises(UserError, match=r"scores\.json is damaged \(it does not have 4 questions of t_one in each"):
        write(runs, tmp_path / "archive")
    file.unlink()
    sealed_again(file.parent)
    with pytest.raises(UserError, match=r"none-.* has no scores.json"):
        write(runs, tmp_path / "archive")
    assert not (tmp_path / "archive").exists()


def test_two_runs_of_the_same_settings_are_refused(runs, tmp_path):
    make_run(runs / PLACE, "low", BASE, code="new")
    with pytest.raises(UserError, match=r"low-.* and .*low-.* have the same settings: move one of them away"):
        write(runs, tmp_path / "archive")


def test_two_folders_of_one_name_are_refused(runs, tmp_path):
    for number, folder in enumerate(sorted((runs / PLACE).glob("low-*"))):
        shutil.move(folder, runs / str(number) / "renamed")
    with pytest.raises(UserError, match=r"two different runs are called m/t_one.t_two/renamed"):
        write(runs, tmp_path / "archive")


def test_a_repeated_run_replaces_that_of_its_settings(archived, tmp_path, capsys):
    make_run(tmp_path / "new" / PLACE, "low", BASE, code="new")
    make_run(tmp_path / "new" / PLACE, "high", BASE, code="new")
    write(tmp_path / "new", archived)
    assert "2 runs written, 2 kept, 1 replaced" in capsys.readouterr().out
    assert methods(archived) == ["baseline", "high new", "low", "low new"]
    assert [run.score("t_one") for run in collect(archived) if run.about["identity"].get("code")] == [0.75, 0.75]
    before = (archived / archive.PROVENANCE).read_bytes()
    write(tmp_path / "new", archived)
    assert (archived / archive.PROVENANCE).read_bytes() == before


def test_an_unpruned_run_stays_while_others_are_relative_to_it(archived, tmp_path):
    new = tmp_path / "new" / PLACE
    for _ in "twice":  # the second time, the new unpruned run is there already
        make_run(new, "none", BASE, code="new", tasks=NEWER)
        make_run(new, "low", half(BASE), code="new", tasks=NEWER)
        write(tmp_path / "new", archived)
        assert methods(archived) == ["baseline", "baseline new", "low", "low new"]
        (table,), _ = tables.of_runs(collect(archived))
        assert table.frame["avg"].notna().all()
    make_run(new, "low", BASE, lam=0.5, code="new", tasks=NEWER)
    write(tmp_path / "new", archived)
    assert methods(archived) == ["baseline new", "low new", "low new"]


FILES = {
    "table.csv": "pocket/pocket",
    "blank.csv": "pocket/pocket_blank",
    "llava.csv": "pocket_llava/pocket_image",
    "llava_blank.csv": "pocket_llava/pocket_image_blank",
}


@pytest.mark.parametrize(("name", "part"), FILES.items())
def test_committed_tables_are_those_of_the_committed_archive(name, part):
    made, _ = tables.of_runs(load_results(str(COMMITTED / "runs" / part)))
    assert tables.text_of("csv", made) == (COMMITTED / name).read_text()


def test_where_a_run_lay_is_left_out(tmp_path):
    folder = make_run(tmp_path / "runs" / PLACE, "low", half(BASE))
    folder.amend({"config": {**folder.about()["config"], "runs": str(tmp_path)}})
    sealed_again(folder.path)
    write(tmp_path / "runs", tmp_path / "archive")
    assert str(tmp_path) not in (tmp_path / "archive" / archive.PROVENANCE).read_text()
    assert not any("runs" in json.loads(line)["run.json"]["config"] for line in committed_lines())


def committed_lines():
    return (COMMITTED / "runs" / archive.PROVENANCE).read_text().splitlines()[1:]

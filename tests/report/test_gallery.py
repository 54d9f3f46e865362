"""What a page shows of answers and kept tokens is what the runs recorded, and the most telling part of it."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from run_folders import sealed_again
from synthetic_runs import write_run

from harness.core.errors import UserError
from harness.report import answers, gallery, images
from harness.results.result import collect


def test_an_answer_is_read_as_it_was_written(tmp_path):
    folder = write_run(tmp_path, "random")
    (result,) = collect(tmp_path)
    found, score = answers.read(result), answers.scores(result)
    kept = [json.loads(line) for line in (folder.path / "kept.jsonl").read_text().splitlines()]
    said = [json.loads(line) for line in (folder.path / "responses.jsonl").read_text().splitlines()]
    assert len(found) == len(kept) == 40
    for line, response in zip(kept, said, strict=True):
        answer = found[line["task"], line["doc_id"]]
        assert np.flatnonzero(answer.kept()).tolist() == line["kept"]
        assert answer.text == response["response"]
        assert (score[line["task"], line["doc_id"]] >= 0.5) == (answer.text == "yes")


def test_a_run_whose_answers_are_gone_is_empty(tmp_path):
    folder = write_run(tmp_path, "random")
    (folder.path / "kept.jsonl").unlink()
    sealed_again(folder.path)
    assert not answers.read(collect(tmp_path)[0])
    assert gallery.gather(collect(tmp_path), 3) == gallery.EMPTY


@pytest.mark.parametrize(
    ("name", "message"), [("kept.jsonl", "is damaged in line 40"), ("scores.json", "cannot be read")]
)
def test_a_damaged_file_is_named(tmp_path, name, message):
    file = write_run(tmp_path, "random").path / name
    file.write_text(file.read_text()[:-20])
    sealed_again(file.parent)
    with pytest.raises(UserError, match=f"{name} {message}"):
        gallery.gather(collect(tmp_path), 3)


def test_the_chosen_questions_show_as_many_differences_as_any_choice_of_greedy_steps():
    right = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 0, 1], [1, 0, 1, 1, 0]], float)
    pairs = [{(a, b) for a in range(3) for b in range(3) if right[a, q] > right[b, q]} for q in range(5)]
    chosen = gallery.informative(right, 2)
    assert len(set.union(*(pairs[q] for q in chosen))) == 4  # of 6 ordered pairs; two questions cannot show more
    assert 0 not in chosen  # which all answer
    assert gallery.informative(right, 9) == [0, 1, 2, 3, 4]
    assert gallery.informative(np.full((3, 4), np.nan), 2) == [0, 1]


def test_without_scores_the_most_varied_answers_are_shown():
    assert gallery.varied([["a", "a"], ["a", "b"], ["a", "a"]], 2) == [0, 1]


def test_overlap_is_the_mean_jaccard_index(tmp_path):
    for method in ("random", "uniform", "greedy"):
        write_run(tmp_path, method)
    runs = [answers.read(result) for result in collect(tmp_path)]
    mean, blind, questions = gallery.overlap(runs)
    sets = [{q: set(np.flatnonzero(a.kept())) for q, a in run.items()} for run in runs]
    for a in range(3):
        for b in range(3):
            each = [len(sets[a][q] & sets[b][q]) / len(sets[a][q] | sets[b][q]) for q in sets[a]]
            assert mean[a, b] == pytest.approx(np.mean(each))
    assert questions == 40
    assert blind == pytest.approx(mean[0, 1], abs=0.03)  # the synthetic runs draw blindly


def test_a_sample_outlives_the_answers(tmp_path):
    for method in ("none", "random", "uniform"):
        write_run(tmp_path / "runs", method)
    results = collect(tmp_path / "runs")
    sample = gallery.gather(results, 3)
    (setting,) = sample["settings"]
    assert [q["task"] for q in setting["questions"]] == ["one"] * 3 + ["two"] * 3
    assert setting["answered"] == 40
    gallery.save(sample, tmp_path / "sample.json")
    assert gallery.load(tmp_path / "sample.json", results) == sample
    fewer = gallery.load(tmp_path / "sample.json", results[:2])
    assert fewer["settings"][0]["runs"] == [result.hash for result in results[:2]]
    assert all(len(question["answers"]) == 2 for question in fewer["settings"][0]["questions"])
    assert fewer["overlaps"] == []
    (tmp_path / "sample.json").write_text("{}")
    with pytest.raises(UserError, match=r"cannot read sample=.*sample\.json"):
        gallery.load(tmp_path / "sample.json", results)


def test_a_picture_fits_its_share():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8))
    assert len(images.encoded(noise, 20_000)) <= 20_000
    flat = Image.new("RGB", (56, 28), (200, 30, 30))
    whole = Image.open(io.BytesIO(images.encoded(flat, 20_000)))
    assert (whole.size, whole.convert("RGB").getpixel((5, 5))) == ((56, 28), (200, 30, 30))


def test_patches_unfold_to_the_picture_they_were_cut_from():
    about = type("Processor", (), {"merge_size": 2, "patch_size": 3})
    video = np.random.default_rng(0).random((4, 12, 18, 3), dtype=np.float32)  # 4 frames of 4 x 6 patches
    t, h, w, p = 2, 4, 6, 3
    rows = []
    for step in range(t):
        for row in range(0, h, 2):
            for column in range(0, w, 2):
                for y in (row, row + 1):
                    for x in (column, column + 1):
                        patch = video[2 * step : 2 * step + 2, y * p : y * p + p, x * p : x * p + p]
                        rows.append(patch.transpose(3, 0, 1, 2).ravel())
    steps = list(images._unfold(np.array(rows), t, h, w, about))
    assert np.array_equal(np.array(steps), video[::2])


def test_runs_of_the_same_questions_hold_them_once(tmp_path):
    for method in ("random", "uniform"):
        write_run(tmp_path, method)
    write_run(tmp_path, "fps", questions=3)
    one, other, third = (answers.read(result) for result in collect(tmp_path))
    sizes = {len(run) for run in (one, other, third)}
    assert sizes == {6, 40}
    whole = [result for result in collect(tmp_path) if len(answers.read(result)) == 40]
    first = answers.read(whole[0])
    assert answers.read(whole[1], first).rows is first.rows
    assert answers.read(whole[1]).rows is not first.rows

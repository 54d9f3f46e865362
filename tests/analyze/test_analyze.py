"""The analyses on a tiny model: what they say is what the model and the methods do, computed another way."""

import json
import math
import re
from importlib import import_module
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from fork_server import completed
from reference_prune import hooks
from synthetic_runs import write_run
from tiny_models import tiny_folder, tiny_qwen
from tiny_tasks import write_tiny_tasks

import harness
from harness.analyze import ablation, angles, bias, heldout, masks, pareto, redundancy, settings
from harness.analyze.collect import TokenProbe, read
from harness.analyze.questions import Source
from harness.core.errors import UserError
from harness.core.escape import visible
from harness.core.overrides import compose
from harness.evaluation.preflight import prepare
from harness.models import loading
from harness.pruning.handle import Kept
from harness.results.result import collect
from harness.results.stats import AVERAGE

QUICK = {"limit": 4, "min_tokens": 4, "resamples": 100, "draws": 2, "seeds": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of three decoder layers, and two tasks, of which one has videos."""
    root = tmp_path_factory.mktemp("analyze")
    tiny_qwen(layers=3).save_pretrained(tiny_folder(root))
    write_tiny_tasks(root / "tasks", 6)
    return root


def configured(place, analysis, *more):
    """An analysis of the tiny model, quick but for what `more` says."""
    model = [f"model.pretrained={place / 'tiny-qwen2.5-vl'}", "model.name=tiny"]
    tasks = ["tasks=[tiny_stills,tiny_clips]", f"tasks.include={place / 'tasks'}", f"out={place / analysis}"]
    given = {text.partition("=")[0] for text in more}
    known = compose(f"analyze_{analysis}", []).keys() - given
    quick = [f"{key}={value}" for key, value in QUICK.items() if key in known]
    return compose(f"analyze_{analysis}", prepare([*model, *tasks, *quick, *more]))


def ran(capsys, cfg, analysis):
    """The object on the last line, the table, and the lines before; the files hold the same."""
    for check in analysis.CHECKS:
        check(cfg)
    vars(analysis)[analysis.__name__.rpartition(".")[2]](cfg)
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    stem = found.pop("out")
    with open(found.pop("json", f"{stem}.json"), encoding="utf-8") as file:  # a long line names its file
        whole = json.load(file)
    assert found.keys() == whole.keys()
    assert all(value in (whole[key], len(whole[key])) for key, value in found.items() if value != whole[key])
    with open(f"{stem}.png", "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    return whole, pd.read_csv(f"{stem}.csv"), lines[:-2]


@pytest.fixture(scope="module")
def images(place):
    """The loaded model, and the questions that an analysis of four images asks it."""
    config = settings.about(configured(place, "angles"))
    loaded = loading.load(config.model)
    drawn = list(Source(config, loaded).drawn(0))
    return loaded, drawn


def test_every_picture_is_drawn_once_and_no_video(place, images):
    loaded, drawn = images
    assert sorted((question.task, question.doc_id) for question in drawn) == [("tiny_stills", i) for i in range(6)]
    config = settings.about(configured(place, "angles"))
    again, other = (list(Source(config, loaded).drawn(seed)) for seed in (0, 1))
    assert [it.doc_id for it in again] == [it.doc_id for it in drawn] != [it.doc_id for it in other]


@torch.no_grad()
def test_tokens_are_what_the_language_model_gets(images):
    loaded, (question, *_) = images
    inputs = question.inputs(loaded)
    before = hooks(loaded.model)
    tokens = read(loaded, question, TokenProbe())
    assert hooks(loaded.model) == before
    features = loaded.model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    torch.testing.assert_close(tokens.features, torch.cat(list(features.pooler_output)))


def test_angles_are_those_of_all_pairs(place, images, capsys):
    loaded, drawn = images
    cfg = configured(place, "angles")
    found, table, said = ran(capsys, cfg, angles)
    counts, obtuse = np.zeros(180, int), []
    for question in drawn[:4]:
        rows = read(loaded, question, TokenProbe()).features.double().tolist()
        degrees = [math.degrees(_angle(a, b)) for a, b in combinations(rows, 2)]
        obtuse.append(sum(angle > 90 for angle in degrees) / len(degrees))
        for angle in degrees:
            counts[int(angle)] += 1
    assert table["pairs"].tolist() == counts.tolist()
    assert found["images"] == 4
    assert found["beyond_90"]["mean"] == pytest.approx(np.mean(obtuse), abs=1e-6)
    assert found["beyond_90"]["low"] <= found["beyond_90"]["mean"] <= found["beyond_90"]["high"]
    assert "of pairs beyond 90 degrees" in said[0]


def _angle(a, b):
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return math.acos(max(-1.0, min(1.0, dot / math.hypot(*a) / math.hypot(*b))))


@torch.no_grad()
def test_redundancy_is_that_of_the_states_the_model_returns(place, images, capsys):
    loaded, drawn = images
    cfg = configured(place, "redundancy")
    found, table, _ = ran(capsys, cfg, redundancy)
    expected = []
    for question in drawn[:4]:
        inputs = question.inputs(loaded)
        visual = inputs["input_ids"][0] == loaded.model.config.image_token_id
        states = loaded.model(**inputs, output_hidden_states=True).hidden_states[:-1]  # the last has the norm behind it
        expected.append(_means(states, visual))
    assert table["layer"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(table[["cosine", "nearest"]].to_numpy()[:3], np.mean(expected, axis=0), atol=1e-5)
    assert found["layers"][0]["cosine"] == pytest.approx(table["cosine"][0], abs=1e-6)


def _means(states, visual):
    """Mean cosine of all pairs, and of nearest neighbours, of each layer's visual rows."""
    found = []
    for layer in states:
        rows = layer[0, visual].double().tolist()
        cos = [[math.cos(_angle(a, b)) for j, b in enumerate(rows) if j != i] for i, a in enumerate(rows)]
        found.append([np.mean(cos), np.mean([max(row) for row in cos])])
    return found


METHODS = "methods=[greedy,fps,random,{name:idpruner,lam:[0,0.5,1]},{name:scope,alpha:[0.5,2]}]"


def test_pareto_measures_every_point_under_the_same_importance(place, capsys):
    cfg = configured(place, "pareto", METHODS, "keep=[0.5,0.7]", "references=[complement,bbox]")
    found, table, said = ran(capsys, cfg, pareto)
    assert (found["importance"], found["draws_of_importance"], found["reference"]) == ("uniform", 2, "complement")
    assert sorted(set(table["keep"])) == [0.5, 0.7]
    by = table.set_index(["keep", "label"])["retention"]
    for keep in (0.5, 0.7):
        here = by[keep]
        assert here.max() == here["greedy"] == here["idpruner lam=1"]  # nothing retains more than the most important
        assert here["greedy"] > here["random"] > 0
        assert here["scope alpha=2"] > here["scope alpha=0.5"]  # drawn importance stands for its attention
        against = {it["theirs"]: it for it in found["verdicts"] if it["keep"] == keep}
        assert set(against) == {"greedy", "fps", "random", "scope"}
        assert against["greedy"]["difference"] == pytest.approx(0, abs=1e-6)
    assert ((table["retention_low"] <= table["retention"]) & (table["retention"] <= table["retention_high"])).all()
    assert sum(line.startswith("keep ") for line in said) == 8


def test_pareto_with_the_scorers_importance(capsys, tmp_path):
    quick = ["limit=2", "methods=[greedy,fps,{name:idpruner,lam:[0.1,0.9]}]", "importance=scorer", "resamples=100"]
    cfg = compose("analyze_pareto", prepare([*quick, "tasks=pocket_text", f"out={tmp_path}", "keep=0.2"]))
    found, table, _ = ran(capsys, cfg, pareto)
    assert found["draws_of_importance"] == 1
    by = table.set_index("label")["retention"]
    assert by.idxmax() == "greedy"
    assert by["greedy"] >= by["idpruner lam=0.9"] >= by["idpruner lam=0.1"]
    assert by["greedy"] > by["fps"]


def test_bias_is_the_distance_between_histograms(place, images, capsys):
    loaded, drawn = images
    names = "methods=[random,{name:fastv,layer:0},divprune]"
    cfg = configured(place, "bias", names, "keep=0.5", "bands=3", "limit=6")
    found, table, _ = ran(capsys, cfg, bias)
    with harness.prune(loaded.model, "fastv", keep=0.5, layer=0) as pruning, torch.inference_mode():
        for question in drawn:
            loaded.model(**question.inputs(loaded))
    shares = []
    for record in pruning.records:
        (_, h, w), mine, everyone = record.grids[0], [0.0] * 3, [0.0] * 3
        for index in range(h * w):
            band = int((index // w + 0.5) / h * 3)
            everyone[band] += 1 / record.n
            mine[band] += (index in record.kept) / record.k
        shares.append((mine, everyone))
    mine, everyone = np.mean(shares, axis=0)
    rows = table[(table["method"] == "fastv layer=0") & (table["axis"] == "rows")]
    np.testing.assert_allclose(rows[["kept", "all"]].to_numpy().T, [mine, everyone], atol=1e-5)
    told = next(it for it in found["distances"] if (it["method"], it["axis"]) == ("fastv layer=0", "rows"))
    assert told["low"] <= told["distance"] <= told["high"]
    assert told["distance"] < np.abs(mine - everyone).sum() / 2  # which is too high, since samples are uneven
    assert told["images"] == 6


def test_bias_knows_the_lower_right_from_the_whole():
    corner = [Kept(16, 4, [10, 11, 14, 15], [(1, 4, 4)])] * 5
    for axis in (0, 1):
        found = bias.uneven(*bias.histograms(corner, axis, 2), 100, 0)
        assert (found["distance"], found["low"], found["high"], found["shift"]) == (0.5, 0.5, 0.5, 0.25)
    steps = bias.places([(2, 1, 2), (1, 2, 1)])
    assert steps.tolist() == [[0.5, 0.5, 0.5, 0.5, 0.25, 0.75], [0.25, 0.75, 0.25, 0.75, 0.5, 0.5]]


def test_the_distance_of_an_even_choice_is_near_zero_and_of_an_uneven_one_its_own():
    """Ten images, whose samples are 0.1 from even by chance alone."""
    rng, plain, corrected = np.random.default_rng(0), [], []
    for shares in [[0.25] * 4, [0.55, 0.15, 0.15, 0.15]]:
        truth = sum(abs(share - 0.25) for share in shares) / 2
        for seed in range(40):
            mine = rng.multinomial(16, shares, size=10) / 16
            found = bias.uneven(mine, np.full((10, 4), 0.25), 200, seed)
            plain.append(np.abs(mine.mean(0) - 0.25).sum() / 2 - truth)
            corrected.append(found["distance"] - truth)
            assert found["low"] <= found["distance"] <= found["high"]
    assert abs(np.mean(corrected)) < 0.75 * np.mean(plain)


def test_masks_show_what_prune_keeps(place, images, capsys):
    loaded, drawn = images
    docs = "docs=[tiny_stills/5,tiny_stills/2]"
    cfg = configured(place, "masks", "methods=[random,divprune]", "keep=[0.5,0.25]", docs)
    found, table, _ = ran(capsys, cfg, masks)
    assert found["questions"] == ["tiny_stills/5", "tiny_stills/2"]
    asked, said = {question.doc_id: question for question in drawn}, []
    with harness.prune(loaded.model, "divprune", keep=0.25) as pruning, torch.inference_mode():
        for doc_id in (5, 2):
            inputs = asked[doc_id].inputs(loaded)
            tokens = loaded.model.generate(**inputs, max_new_tokens=masks.NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
            said.append(loaded.processor.decode(tokens, skip_special_tokens=True))
    rows = table[(table["method"] == "divprune") & (table["keep"] == 0.25)]
    assert [[int(index) for index in row.split()] for row in rows["kept"].map(str)] == [
        record.kept for record in pruning.records
    ]
    assert rows["answer"].fillna("").tolist() == list(map(visible, said))
    assert len(found["overlaps"]) == 2
    with pytest.raises(UserError, match="tiny_clips/1 is not about images alone"):
        masks.masks(configured(place, "masks", "methods=[random]", "docs=[tiny_clips/1]"))


MISTAKES = {
    "pareto importance=attention": "importance must be one of uniform, scorer, got attention",
    "pareto references=[ball]": "references must be some of bbox, gauss",
    "pareto ours=fastv": "ours=fastv is none of the methods: dpp, fps",
    "pareto methods=[{name:idpruner,lam:[0,1]},fastv]": "fastv acts at layer:1",
    "pareto methods=[{name:idpruner,lam:[0,2]}]": "lam must be",
    "pareto methods=[{name:scope,alpha:[1],combined:[add]},idpruner]": "a curve has one parameter",
    "pareto methods=[greedy,greedy,idpruner]": "methods names greedy more than once",
    "pareto keep=1.0": "keep=1.0 keeps everything",
    "pareto methods=[]": "nothing to compare",
    "bias methods=[resize]": "resize makes images smaller",
    "bias bands=1": "bands must be a whole number of at least 2",
    "masks docs=[pocket_text]": "docs takes a task and a number",
    "angles limit=0": "limit must be a whole number of at least 1, got 0",
}


def checked(analysis, *overrides):
    cfg = compose(f"analyze_{analysis}", prepare(list(overrides)))
    for check in import_module(f"harness.analyze.{analysis}").CHECKS:
        check(cfg)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_before_a_model_is_loaded(mistake, tmp_path):
    analysis, change = mistake.split(maxsplit=1)
    with pytest.raises(UserError, match=re.escape(MISTAKES[mistake])):
        checked(analysis, change, f"out={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    write_run(root, "none", questions=60)
    for keep, less in ((0.25, 0.0), (0.1, 0.15)):
        write_run(root, "dpp", keep, 0.6 - less, 60)
        for lam, skill in ((0.1, 0.4), (0.5, 0.7), (0.9, 0.5)):
            write_run(root, "idpruner", keep, skill - less, 60, lam=lam)
            write_run(root, "hybrid", keep, skill - 0.15 - less, 60, lam=lam)
    return root


def command(*arguments, cwd):
    return completed(cwd, "harness.analyze", *arguments)


@pytest.mark.usefixtures("fork_server")
def test_the_ablation_of_a_sweep_from_the_command_line(sweep, tmp_path):
    done = command("ablation", f"runs={sweep}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    table = pd.read_csv(tmp_path / "results" / "analysis" / "ablation" / "m.csv")
    assert len(table) == 14
    scores = {(run.method, run.budget, ablation.lam_of(run)): run for run in collect(sweep)}
    base = scores["baseline", "", None]

    def percent(*key):
        return 50 * sum(scores[key].score(task) / base.score(task) for task in ("one", "two"))

    ours = table[(table["method"] == "idpruner") & (table["budget"] == "keep=0.25")].set_index("lambda")
    assert ours.loc[0.5, AVERAGE] == pytest.approx(percent("idpruner", "keep=0.25", 0.5), abs=0.01)
    told = {(it["budget"], it["against"], it["lambda"]): it for it in found["differences"]}
    assert len(told) == 16
    gain = told["keep=0.1", "hybrid", 0.5]
    expected = percent("idpruner", "keep=0.1", 0.5) - percent("hybrid", "keep=0.1", 0.5)
    assert gain["difference"] == pytest.approx(expected, abs=0.001)
    assert gain["low"] < gain["difference"] < gain["high"]
    best = told["keep=0.25", "dpp", "best"]["difference"]
    assert best == max(told["keep=0.25", "dpp", lam]["difference"] for lam in (0.1, 0.5, 0.9))


def test_variants_are_chosen_by_one_half_and_judged_by_the_other(sweep, tmp_path, capsys):
    heldout.heldout(compose("analyze_heldout", [f"runs={sweep}", f"out={tmp_path}"]))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    runs = {(run.method, run.budget, ablation.lam_of(run)): run for run in collect(sweep)}
    unpruned = runs["baseline", "", None]

    def percent(run, chooses):
        ratios = []
        for task in ("one", "two"):
            half = [heldout.chooses(f"{task}/{i}") == chooses for i in range(60)]  # a question without a picture is one
            scores = (np.array(each.per_question[task]["accuracy,none"])[half] for each in (run, unpruned))
            mine, base = (part.mean() for part in scores)
            ratios.append(100 * mine / base)
        return sum(ratios) / 2

    def best(method, budget):
        return max(
            (run for (name, of, _), run in runs.items() if (name, of) == (method, budget)),
            key=lambda run: percent(run, True),
        )

    assert len(found["verdicts"]) == 4
    for verdict in found["verdicts"]:
        mine, theirs = (best(method, verdict["budget"]) for method in ("idpruner", verdict["method"].split()[0]))
        assert verdict["gain"] == pytest.approx(percent(theirs, False) - percent(mine, False), abs=1e-3)
        assert verdict["low"] < verdict["gain"] < verdict["high"]
    table = pd.read_csv(tmp_path / "m.csv")
    assert len(table) == 14
    assert table.groupby(["budget", "method"])["chosen"].sum().tolist() == [1] * 6


def test_what_is_judged_has_to_be_there(sweep, tmp_path):
    cfg = compose("analyze_heldout", [f"runs={sweep}", "ours=random", f"out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match=r"no run of ours=random"):
        heldout.heldout(cfg)
    assert not (tmp_path / "out").exists()


def test_an_ablation_without_a_sweep_says_how_to_make_one(sweep, tmp_path):
    for runs, more in ((tmp_path / "none", []), (sweep, ["methods=[dpp]"])):
        cfg = compose("analyze_ablation", [f"runs={runs}", f"out={tmp_path / 'out'}", *more])
        with pytest.raises(UserError, match=r"python -m harness -m experiment=ablation"):
            ablation.ablation(cfg)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fork_server")
def test_the_first_word_names_an_analysis(tmp_path):
    done = command("paretto", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the first word names an analysis, got paretto: did you mean pareto?\n",
    )
    listed = command("--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert len(listed.stdout.splitlines()) == 10

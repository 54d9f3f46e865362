"""`python -m harness.train`: what it leaves, that a killed one goes on, and that processes share its batches."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conversations import write_conversations
from fork_server import Forks
from safetensors.torch import load_file
from tiny_models import HIDDEN, tiny_folder, tiny_llava, tiny_llava_processor

from harness.core import command as cli
from harness.core.errors import UserError
from harness.models.scorer import PARTS, VisionSelectorScorer, load_scorer
from harness.train import __main__ as train
from harness.train.loop import Training

SETTINGS = ("batch=6", "valid=5", "steps=5", "every=2", "lr=0.01", "keep=0.5", "model.batch_size=2", "limit=null")
LOSSES = ["train_answers", "train_mask", "valid_answers", "valid_mask", "pruned_answers"]


class Place:
    """Two tiny models, a file of conversations, and commands on them."""

    def __init__(self, root: Path, said: Path):
        self.root, self.forks = root, Forks(root, said)
        self.models = {"pocket": tiny_folder(root), "pocket_llava": root / "tiny-llava"}
        tiny_llava().save_pretrained(self.models["pocket_llava"])
        tiny_llava_processor().save_pretrained(self.models["pocket_llava"])
        self.data = write_conversations(root / "data", 17)

    def call(self, out: str, *more: str, model: str = "pocket") -> list[str]:
        named = [f"model={model}", f"model.pretrained={self.models[model]}", f"model.name={model}"]
        return ["harness.train", *named, f"data={self.data}", *SETTINGS, f"out={out}", *more]

    def curve(self, out: str) -> pd.DataFrame:
        return pd.read_csv(self.root / out / "curve.csv")

    def scorer(self, out: str) -> dict[str, torch.Tensor]:
        return load_file(self.root / out / "scorer" / "model.safetensors")

    def left(self, out: str) -> dict[str, bytes]:
        """What a training leaves for others."""
        files = [self.root / out / "curve.csv", *(self.root / out / "scorer").iterdir()]
        return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def place(tmp_path_factory, fork_server):
    return Place(tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("said"))


@pytest.fixture(scope="module")
def alone(place):
    """What one process prints and leaves, unbroken."""
    return place.forks.run(*place.call("alone"), before=partial(noting, place.root / "alone.pt")), place.left("alone")


def noting(file):
    """To run first in a process: keep the gradients that it updates by."""
    plain, seen = Training._share_gradient, []

    def noted(self):
        plain(self)
        seen.append({name: parameter.grad.clone() for name, parameter in self.scorer.named_parameters()})
        torch.save(seen, file)

    Training._share_gradient = noted


def killed(number):
    """To run first in a process: be killed in front of that update of its own."""
    plain, calls = Training.advance, []

    def counted(self):
        calls.append(self)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self)

    Training.advance = counted


def test_it_leaves_a_curve_and_a_scorer_in_the_released_layout(place, alone):
    command, files = alone
    assert set(files) == {"curve.csv", "config.json", "model.safetensors"}
    config = {"in_features": HIDDEN, "hidden_dim": HIDDEN // 2, "init_scale": 1e-4, "architecture": "TransformerScorer"}
    assert json.loads(files["config.json"]) == config
    tensors = place.scorer("alone")
    assert set(tensors) == set(PARTS)
    scorer = load_scorer(place.root / command.report["scorer"], HIDDEN)
    assert all(torch.equal(tensors[name], parameter) for name, parameter in scorer.named_parameters())
    curve = place.curve("alone")
    assert curve["step"].tolist() == [0, 2, 4, 5]
    assert curve["bce_weight"].tolist() == pytest.approx([0.1, 0.1 + 1.9 * 0.4, 0.1 + 1.9 * 0.8, 2.0])
    assert curve.iloc[0][["train_answers", "train_mask"]].isna().all()
    assert curve.drop(columns=["train_answers", "train_mask"]).notna().all(axis=None)
    report = dict(command.report)
    paths = {"scorer": "alone/scorer", "curve": "alone/curve.csv", "plot": "alone/curve.png", "model": "pocket"}
    assert {name: report.pop(name) for name in paths} == paths
    assert report == pytest.approx(curve.iloc[-1].to_dict(), rel=1e-4, abs=1e-6)
    assert (place.root / command.report["plot"]).read_bytes().startswith(b"\x89PNG")


def test_it_begins_as_published(place, alone):
    """Weights drawn with a deviation of 1e-4, biases of zero: the first mask is even, so its BCE that of the share."""
    torch.manual_seed(42)
    start = VisionSelectorScorer(HIDDEN, HIDDEN // 2)
    first = torch.load(place.root / "alone.pt")[0]
    assert all(float(gradient.abs().max()) > 0 for name, gradient in first.items() if name.endswith("weight"))
    drawn = load_file(place.root / "alone" / "scorer" / "model.safetensors")
    assert not torch.equal(drawn["q_proj.weight"], start.q_proj.weight)
    assert start.q_proj.weight.std().item() == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_killed_training_goes_on_and_leaves_the_same_bytes(place, alone, step):
    """Killed before anything is learned, between two checkpoints, and behind one."""
    out = f"killed{step}"
    assert place.forks.start(*place.call(out), before=partial(killed, step)).end() == -signal.SIGKILL
    assert place.curve(out)["step"].max() == (step - 1) // 2 * 2
    again = place.forks.run(*place.call(out))
    assert "Traceback" not in again.err
    assert place.left(out) == alone[1]


def test_a_finished_training_is_only_reported(place, alone):
    again = place.forks.run(*place.call("alone"), before=partial(killed, 1))
    assert again.report == alone[0].report
    assert place.left("alone") == alone[1]


def test_two_processes_have_the_gradient_of_one(place, alone):
    shared = place.root / "two.pt"
    commands = place.forks.launch(2, *place.call("two"), before={0: partial(noting, shared)})
    assert [command.end() for command in commands] == [0, 0], commands[0].err
    assert commands[1].out == ""
    ours, theirs = (torch.load(file) for file in (shared, place.root / "alone.pt"))
    for name, gradient in theirs[0].items():
        torch.testing.assert_close(ours[0][name], gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max() + 1))
    two, one = place.curve("two"), place.curve("alone")
    pd.testing.assert_frame_equal(two[["step", *LOSSES]], one[["step", *LOSSES]], rtol=2e-2)


def test_a_launch_of_which_one_is_killed_ends_and_goes_on_alone(place, alone):
    commands = place.forks.launch(2, *place.call("half"), before={1: partial(killed, 4)})
    assert [command.end() for command in commands] == [2, -signal.SIGKILL]
    (error,) = commands[0].errors
    assert "another process of this run has ended" in error
    place.forks.run(*place.call("half"))
    assert place.curve("half")["step"].tolist() == [0, 2, 4, 5]


def test_another_family_learns(place):
    """Always the same four questions, and nothing but their answers to learn."""
    data = write_conversations(place.root / "few", 9, most=1)
    more = (f"data={data}", "batch=4", "steps=16", "every=1", "lr=0.02", "bce=[0,0]")
    report = place.forks.run(*place.call("llava", *more, model="pocket_llava")).report
    losses = place.curve("llava")["train_answers"]
    assert report["model"] == "pocket_llava"
    assert losses.iloc[-1] < losses.iloc[1] - 0.1
    load_scorer(place.root / report["scorer"], HIDDEN)


def test_other_settings_do_not_go_on_from_what_is_there(place, alone):
    refused = place.forks.run(*place.call("alone", "lr=0.02"), code=2)
    assert refused.errors == [
        "error: alone holds a training with lr=0.01, not 0.02: choose another out=, or start again with force=true"
    ]
    assert place.left("alone") == alone[1]


def test_force_begins_anew_and_a_given_scorer_is_where_it_begins(place, alone):
    place.forks.run(*place.call("anew", "steps=1"))
    report = place.forks.run(
        *place.call("anew", "force=true", f"model.scorer={place.root / 'alone' / 'scorer'}")
    ).report
    assert report["step"] == 5
    assert place.curve("anew")["valid_answers"][0] == pytest.approx(place.curve("alone")["valid_answers"].iloc[-1])


def test_a_damaged_checkpoint_is_one_line(place):
    (place.root / "damaged").mkdir()
    (place.root / "damaged" / "state.pt").write_bytes(b"PK")
    refused = place.forks.run(*place.call("damaged"), code=2)
    assert len(refused.errors) == 1
    assert "damaged/state.pt cannot be read" in refused.errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data=null", "data is null: pass a .json or .jsonl of conversations"),
        ("data=nowhere.json", "no file at data=nowhere.json"),
        ("limit=0", "limit must be a whole number of at least 1, got 0"),
        ("limit=5", "data has 5 conversations, of which valid=5 are held out"),
        ("batch=0", "batch must be a whole number of at least 1, got 0"),
        ("lr=0", "lr must be above 0"),
        ("soft=1.0", "soft must lie between 0 and 1, got 1.0"),
        ("keep=1.0", "keep must lie between 0 and 1, got 1.0"),
        ("bce=[0.1]", "bce must be two weights"),
        ("bce=much", "bce must be a list"),
        ("model.scorer=nowhere", "no scorer at model.scorer=nowhere"),
        ("model.pretrained=/nowhere", "no model folder at /nowhere"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(place, change, message):
    with pytest.raises(UserError, match=message):
        train.check(cli.compose("train", train.prepare([*place.call("wrong")[1:], change])))
    assert not (place.root / "wrong").exists()


def test_an_unknown_recipe_is_not_passed_over():
    with pytest.raises(UserError, match=r"unknown recipe pockt: did you mean pocket\?"):
        train.prepare(["model=pocket", "recipe=pockt"])
    published = cli.compose("train", train.prepare(["model=pocket", "recipe=published"]))
    assert (published.data, published.lr) == (None, 5e-5)


def test_the_pocket_models_have_a_recipe_of_their_own_and_others_the_published_one():
    pocket, llava, real = (cli.compose("train", [f"model={name}"]) for name in ("pocket", "pocket_llava", "qwen25vl7b"))
    for cfg in (pocket, llava):
        train.check(cfg)
        assert (cfg.data, cfg.lr, cfg.keep) == ("pocket", 3e-3, 0.1)
    assert (real.data, real.lr, real.soft, real.warmup, list(real.bce)) == (None, 5e-5, 0.2, 0.03, [0.1, 2.0])


@pytest.mark.parametrize("model", ["pocket", "pocket_llava"])
@pytest.mark.parametrize("other", ["hiprune", "random"])
def test_the_committed_scorers_beat_what_has_not_learned(model, other):
    results = Path(__file__).parents[2] / "results" / "analysis" / "train"
    average = pd.read_csv(results / model / f"against_{other}.csv", index_col="task").loc["avg"]
    said = f"| {average['a']:.2f} | {average['b']:.2f} | {average['difference']:+.2f} ({average['low']:+.2f} to"
    assert average["low"] > 0
    assert said in (results / "README.md").read_text()

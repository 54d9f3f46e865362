"""The prior is the mean of the attention that the plain model pays, and a run with it says so."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from questions import ask, picture
from safetensors import safe_open
from tiny_internvl import tiny_internvl, tiny_internvl_processor
from tiny_models import tiny_folder, tiny_qwen
from tiny_tasks import write_tiny_tasks

import methods
from harness import d2prior
from harness.__main__ import main
from harness.core import command
from harness.core.config import ModelConfig, validate
from harness.core.errors import UserError
from harness.evaluation import runner
from harness.evaluation.preflight import locate, prepare
from harness.evaluation.pruner import pruner_of
from harness.evaluation.run_context import RunContext
from harness.evaluation.run_plan import plan
from harness.models import loading
from harness.models.limits import PixelLimits
from harness.models.model_folder import ModelFolder
from harness.models.preprocessing import to_inputs
from methods.d2pruner_prior import average

LIMITS = PixelLimits(3136, 200704, 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("prior")
    for seed in (0, 1):
        tiny_qwen(seed=seed, layers=3).save_pretrained(tiny_folder(root / str(seed)))
    write_tiny_tasks(root / "tasks", 4)
    return root


def overrides(place, *more, tasks="[tiny_stills,tiny_clips]", seed=0):
    model = f"model.pretrained={place / str(seed) / 'tiny-qwen2.5-vl'}"
    return prepare([model, f"tasks={tasks}", f"tasks.include={place / 'tasks'}", *more])


@pytest.fixture(scope="module")
def made(place):
    """The report of the command on two tasks, of which one has videos only."""
    cfg = command.compose("d2prior", overrides(place, f"out={place / 'p' / 'prior.safetensors'}", "limit=3"))
    d2prior.check(cfg)
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda line, **_: said.append(line))
        d2prior.main(cfg)
    return json.loads(said[-1])


@torch.no_grad()
def test_it_is_the_mean_of_the_plain_models_attention(place, made):
    config = validate(command.compose("config", overrides(place, "model.attn=eager")))
    loaded = loading.load(config.model)
    maps = []
    for messages in list(d2prior.prompts(config.tasks, "Describe this image."))[:3]:
        inputs = to_inputs(loaded.processor, [messages], LIMITS)
        received = loaded.model(**inputs, output_attentions=True).attentions[1][0].mean(0)[-1]
        _, h, w = inputs["image_grid_thw"][0].tolist()
        visual = inputs["input_ids"][0] == loaded.model.config.image_token_id
        maps.append((received[visual], (1, h // 2, w // 2)))
    with safe_open(made["prior"], "pt") as file:
        prior, about = file.get_tensor("prior"), file.metadata()
    torch.testing.assert_close(prior.double(), average(maps), atol=1e-7, rtol=1e-4)
    assert (about["layer"], about["count"], about["grid"]) == ("1", "3", "24x24")
    assert about["tasks"] == "tiny_stills,tiny_clips"
    assert about["prompt"] == "Describe this image."


@torch.no_grad()
def test_each_tile_of_an_image_is_a_map():
    model, processor = tiny_internvl(attn="eager", layers=3), tiny_internvl_processor()
    loaded = SimpleNamespace(
        model=model, device=model.device, processor=processor, config=ModelConfig(name="tiny", pretrained="tiny")
    )
    asked = [ask(picture(112, 224)), ask(picture(112, 112))]  # two tiles and a thumbnail, and a single one
    maps = list(d2prior.attention(loaded, asked, layer=1))
    assert [grid for _, grid in maps] == [(1, 4, 4)] * 4
    expected = []
    for one in asked:
        inputs = to_inputs(processor, [one], None)
        received = model(**inputs, output_attentions=True).attentions[1][0].mean(0)[-1]
        expected.append(received[inputs["input_ids"][0] == model.config.image_token_id].view(-1, 16))
    found = torch.stack([part for part, _ in maps]).float()
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-6, rtol=1e-4)


def test_a_run_names_its_prior_and_is_known_by_it(place, made, capsys, monkeypatch):
    monkeypatch.chdir(place)
    d2 = ["method=d2pruner", "keep=0.5", f"method.prior={made['prior']}", "limit=2"]
    main(RunContext(), command.compose("config", overrides(place, *d2, tasks="tiny_stills")))
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    assert report["method"] == f"d2pruner (prior {made['digest'][:8]})"
    assert f"/d2pruner-prior-{made['digest'][:8]}-0.5-" in report["run"]
    assert "note: prior was made from images of tiny_stills, which this run evaluates" in out
    about = json.loads((place / report["run"] / "run.json").read_text())
    assert about["made_from"]["prior"]["digest"] == made["digest"]
    assert about["made_from"]["prior"]["model"] == about["identity"]["model"]["weights"]
    assert about["identity"]["method"]["params"]["prior"] == made["digest"]
    assert about["config"]["method"]["prior"] == made["prior"]


def test_a_prior_beside_the_weights_is_recorded_by_name():
    run = validate(command.compose("config", prepare(["method=d2pruner"])))
    resolved = plan(locate(run))
    about = runner._about(resolved, resolved.runs[-1].pruner)
    assert about["config"]["method"]["prior"] == "d2prior.safetensors"
    assert about["made_from"]["prior"]["tasks"] == "pocket_scenes"


def test_plain_attention_is_a_label_too(place):
    run = validate(command.compose("config", overrides(place, "method=d2pruner", "method.prior=none")))
    resolved = plan(locate(run))
    pruner = resolved.runs[-1].pruner
    assert pruner.label == "d2pruner-prior-none-0.25"
    assert runner._about(resolved, pruner)["method"] == "d2pruner (prior none)"
    assert replace(pruner, method=methods.load("random"), name="random").label == "random-0.25"


def test_a_prior_of_another_model_or_layer_is_refused(place, made):
    run = validate(command.compose("config", overrides(place, "method=d2pruner", f"method.prior={made['prior']}")))
    with pytest.raises(UserError, match=r"method.prior was made with tiny-qwen2.5-vl \(\w+\), not with the model in"):
        pruner_of(run, ModelFolder(place / "1" / "tiny-qwen2.5-vl"))
    run.method["layer"] = 0
    with pytest.raises(UserError, match="was made at decoder layer 1, the method is at layer:0"):
        pruner_of(run, ModelFolder(place / "0" / "tiny-qwen2.5-vl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [("layer=2", "this qwen2_5_vl has 3 layers"), ("limit=0", "at least 1"), ("prompt=[a]", "prompt must be one text")],
)
def test_mistakes_are_found_before_the_model_is_loaded(place, change, message):
    with pytest.raises(UserError, match=message):
        d2prior.check(command.compose("d2prior", overrides(place, change)))


def test_images_that_give_nothing_are_one_line(place):
    with pytest.raises(UserError, match="tiny_clips: a prior needs the attention of at least one image of two tokens"):
        d2prior.main(command.compose("d2prior", overrides(place, tasks="tiny_clips")))


def test_a_question_that_cannot_be_shown_is_one_line(place):
    with pytest.raises(UserError, match=r"a question cannot be shown: the question contains <.image_pad.>"):
        d2prior.main(command.compose("d2prior", overrides(place, "prompt='<|image_pad|>'", tasks="tiny_stills")))

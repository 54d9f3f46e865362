"""LLaVA-OneVision-1.5 from a folder as released: loading, scorers, inputs, configuration and the command itself."""

import json

import pytest
import torch
from composed_sweeps import composed
from fork_server import completed
from questions import LIMITS, ask, picture
from reference_prune import generate, inputs_of
from safetensors.torch import load_file, save_file
from tiny_llavaov15 import llavaov15_processor, released_folder, save_older_files
from tiny_models import HIDDEN, tiny_folder, tiny_qwen
from tiny_tasks import write_tiny_tasks

import harness
from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.evaluation import identity
from harness.evaluation.pruner import check_scorer, pruner_of
from harness.models import llavaov15, loading, scorer
from harness.models.llavaov15.modeling import LlavaOnevision15ForConditionalGeneration
from harness.models.model_folder import ModelFolder
from harness.models.preprocessing import to_inputs


@pytest.fixture(scope="module")
def processor():
    return llavaov15_processor()


@pytest.fixture
def folder(tmp_path, processor):
    """Weights, configurations and code as they lie on the Hub; the code ends the program that runs it."""
    folder, _ = released_folder(tmp_path / "released")
    save_older_files(processor, folder)
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        about = json.loads((folder / name).read_text())
        stolen = dict.fromkeys(("AutoProcessor", "AutoImageProcessor"), "stolen.Thing")
        stolen["AutoTokenizer"] = ["stolen.Thing", "stolen.Thing"]
        (folder / name).write_text(json.dumps({**about, "auto_map": stolen}))
    return folder


def config_of(folder, **options):
    return ModelConfig(name="tiny", pretrained=str(folder), dtype="float32", device="cpu", **options)


class TestFolder:
    @torch.no_grad()
    def test_it_loads_by_its_type_and_none_of_its_code_runs(self, folder, processor):
        loaded = loading.load(config_of(folder))
        assert type(loaded.model) is LlavaOnevision15ForConditionalGeneration
        assert loaded.model.config.unpack == "released"
        assert torch.equal(loaded.model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])
        inputs = to_inputs(loaded.processor, [ask(picture(56, 84), [picture(56, 56)] * 3)], LIMITS)
        with harness.prune(loaded.model, "uniform", keep=0.5) as pruning:
            loaded.model(**inputs)
        assert [(record.n, record.k) for record in pruning.records] == [(18, 9)]

    def test_unpack(self, folder):
        assert loading.load(config_of(folder, unpack="fixed")).model.config.unpack == "fixed"

    def test_other_families_know_nothing_of_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(llavaov15, "register", lambda: pytest.fail("registered for another family"))
        other = tiny_folder(tmp_path)
        assert type(loading.load(config_of(other)).model) is type(tiny_qwen())
        with pytest.raises(UserError, match=r"unpack=fixed is for LLaVA-OneVision-1.5 alone, .* has a qwen2_5_vl"):
            loading.load(config_of(other, unpack="fixed"))

    def test_code_of_a_family_that_nobody_knows_does_not_run_either(self, folder):
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**about, "model_type": "of_tomorrow"}))
        with pytest.raises(UserError, match="contains custom code"):
            loading.load(config_of(folder))


class TestScorer:
    """VisionSelector's release for this family holds the scorer among the tensors of the vision tower."""

    @torch.no_grad()
    def test_among_the_tensors(self, folder, processor):
        torch.manual_seed(1)
        mine = scorer.VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)
        tensors = {f"model.visual.importance_scorer.{name}": tensor for name, tensor in mine.state_dict().items()}
        save_file(load_file(folder / "model.safetensors") | tensors, folder / "model.safetensors", {"format": "pt"})
        run = composed("method=visionselector", "keep=0.5", f"model.pretrained={folder}")
        pruner, model = pruner_of(run, ModelFolder(folder)), loading.load(config_of(folder)).model
        inputs = inputs_of(processor, ["mixed"])
        with pruner.attach(model) as found:
            generate(model, inputs, max_new_tokens=1)
        with harness.prune(model, "visionselector", keep=0.5, scorer=mine) as given:
            generate(model, inputs, max_new_tokens=1)
        assert found.records == given.records
        assert found.records[0].k == 20

    def test_of_another_width(self, folder, tmp_path):
        scorer.save_scorer(scorer.VisionSelectorScorer(HIDDEN + 1, 8), tmp_path / "scorer")
        with pytest.raises(ValueError, match=f"width {HIDDEN + 1}, this model's have {HIDDEN}"):
            check_scorer(tmp_path / "scorer", ModelFolder(folder))


class TestInputs:
    @pytest.mark.parametrize("frames", [1, 2, 3, 4, 9])
    def test_every_frame_has_tokens_of_its_own(self, processor, frames):
        inputs = to_inputs(processor, [ask([picture(84, 56, seed=i) for i in range(frames)])], LIMITS)
        assert inputs["video_grid_thw"].tolist() == [[min(frames, 4), 4, 6]]
        assert [float(seconds) for seconds in inputs["second_per_grid_ts"]] == [0.5]


class TestConfiguration:
    @pytest.mark.parametrize("size", ["8b", "4b"])
    def test_model(self, size):
        model = composed(f"model=llavaov15_{size}", "method=none").model
        assert model.pretrained == f"lmms-lab/LLaVA-OneVision-1.5-{size.upper()}-Instruct"
        assert (model.name, model.unpack, model.dtype) == (f"llavaov15_{size}", "released", "bfloat16")

    def test_unpack(self):
        with pytest.raises(UserError, match=r"model\.unpack must be null or one of released, fixed, got other"):
            composed("model=llavaov15_8b", "method=none", "model.unpack=other")

    def test_unpacking_is_a_part_of_the_identity(self, folder):
        def about(unpack):
            overrides = ["model=llavaov15_8b", f"model.pretrained={folder}", "method=none", f"model.unpack={unpack}"]
            return identity.Identity(composed(*overrides), ModelFolder(folder)).model

        assert about("released") != about("fixed")


@pytest.mark.usefixtures("fork_server")
def test_the_command(folder, tmp_path):
    tasks = write_tiny_tasks(tmp_path / "tasks", 4)
    chosen = [
        "tasks=[tiny_stills,tiny_clips]",
        f"tasks.include={tasks}",
        "model=llavaov15_8b",
        f"model.pretrained={folder}",
    ]
    options = ["model.dtype=float32", "model.device=cpu", "model.max_pixels=50176", "model.min_pixels=3136"]
    done = completed(tmp_path, "harness", "method=visionzip", "keep=0.5", "runs=out", *chosen, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["model"], report["method"], report["budget"]) == ("llavaov15_8b", "visionzip", "0.5")
    kept = [json.loads(line) for line in (tmp_path / report["run"] / "kept.jsonl").read_text().splitlines()]
    assert len(kept) == 8
    assert all(line["k"] == max(1, round(line["n"] * 0.5)) < line["n"] for line in kept)

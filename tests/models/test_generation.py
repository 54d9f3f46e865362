"""Ways of generating that go around a cut are refused before a question is asked, whoever asks for them."""

import json

import pytest
from tiny_models import tiny_folder

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.evaluation.generation import generation_arguments
from harness.models.generation import check
from harness.models.loading import load

SETTINGS = [
    {"penalty_alpha": 0.6},
    {"num_beam_groups": 2},
    {"num_return_sequences": 3},
    {"cache_implementation": "static"},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 4},
    {"dola_layers": "high"},
    {"force_words_ids": [[5]]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_a_checkpoint_or_task_that_asks_for_it_is_refused(settings):
    (key,) = settings
    with pytest.raises(UserError, match=rf"^there asks for {key}=.*: remove {key} there$"):
        check({**settings, "do_sample": True, "top_k": 50}, "there")
    with pytest.raises(UserError, match=rf"^the task's generation_kwargs asks for {key}="):
        generation_arguments({**settings, "max_new_tokens": 8}, 0)


def test_what_leaves_the_cut_alone_passes():
    check({"penalty_alpha": None, "num_beam_groups": 1, "num_beams": 4, "cache_implementation": "dynamic"}, "there")


def test_a_loaded_checkpoint_is_asked(tmp_path):
    folder = tiny_folder(tmp_path)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cache_implementation": "static"}))
    with pytest.raises(UserError, match=r"generation_config\.json asks for cache_implementation=static, "):
        load(ModelConfig(name="tiny", pretrained=str(folder), dtype="float32", device="cpu"))

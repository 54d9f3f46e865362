"""A prompt that the model was not made for is refused before anything is computed for it."""

import re

import pytest
from questions import LIMITS, ask, picture
from tiny_families import BUILDERS, tiny
from tiny_models import tiny_processor

from harness.models.bad_input import BadInput
from harness.models.context import context_length
from harness.models.preprocessing import to_inputs


class Config:
    """A configuration of a language model alone."""

    def __init__(self, length, **rope):
        self.max_position_embeddings = length
        self.rope_parameters = rope or None

    def get_text_config(self):
        return self


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (Config(4096), 4096),
        (Config(128_000, rope_type="default", mrope_section=[16, 24, 24]), 128_000),
        (Config(32_768, rope_type="yarn", factor=4.0), 131_072),
        (Config(32_768, rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768), 131_072),
        (Config(131_072, rope_type="yarn", factor=4.0, original_max_position_embeddings=32_768), 131_072),
        (Config(131_072, rope_type="llama3", factor=8.0, original_max_position_embeddings=8192), 131_072),
        (Config(4096, rope_type="linear", factor=2.0), 8192),
    ],
)
def test_the_context_is_that_of_the_configuration(config, length):
    assert context_length(config) == length


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_says_how_many_tokens_it_takes(family):
    config = tiny(family)[0].config
    assert context_length(config) == config.get_text_config().max_position_embeddings


def test_a_configuration_without_a_context_is_an_error():
    config = Config(1)
    del config.max_position_embeddings
    with pytest.raises(AttributeError):
        context_length(config)


def test_the_longest_prompt_of_a_batch_has_to_fit():
    processor = tiny_processor()
    batch = [ask(picture(56, 56)), ask(picture(112, 112), text="and a longer one?")]
    lengths = to_inputs(processor, batch, LIMITS)["attention_mask"].sum(1).tolist()
    to_inputs(processor, batch, LIMITS, max(lengths))
    with pytest.raises(BadInput, match=f"^the prompt has {lengths[1]} tokens, the model takes {lengths[1] - 1}$"):
        to_inputs(processor, batch, LIMITS, max(lengths) - 1)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_question_that_contains_what_stands_for_an_image_is_refused(family):
    processor = BUILDERS[family][1]()
    limits = LIMITS if hasattr(processor.image_processor, "merge_size") else None
    to_inputs(processor, [ask(picture(56, 56), text="Is it an <im age>?")], limits)
    for name in ("image_token", "video_token"):
        if token := getattr(processor, name, None):
            with pytest.raises(BadInput, match=f"^the question contains {re.escape(token)}, "):
                to_inputs(processor, [ask(picture(56, 56), text=f"Is {token} it?")], limits)

"""The question in the prompts of LLaVA: Vicuna's template, and Qwen's as the pocket model has it."""

import pytest
import torch
from tiny_models import tiny_llava

from harness.models import adapter_for
from harness.pocket.recipe.vocab import CHAT_TEMPLATE, build_tokenizer

# What Llama's tokenizer makes of these words.
BOS, IMAGE, BREAK, SPACE = 1, 5, 13, 29871
SYSTEM = [319, 13563, 29889]  # "A chat."
USER, ASSISTANT = [3148, 1001, 29901], [319, 1799, 9047, 13566, 29901]
WHAT = [1724, 338, 372, 29973]  # "What is it?"
PROMPTS = {
    "image first": ([BOS, *USER, IMAGE, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "with spaces": ([BOS, *USER, SPACE, IMAGE, SPACE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "image last": ([BOS, *USER, *WHAT, IMAGE, *ASSISTANT], WHAT),
    "two images": ([BOS, *USER, IMAGE, BREAK, IMAGE, BREAK, *WHAT, BREAK, *WHAT, *ASSISTANT], [*WHAT, BREAK, *WHAT]),
    "system prompt": ([BOS, *SYSTEM, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "later turns": ([BOS, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT, 3869, 2, 11889, 29901, *WHAT, *ASSISTANT], WHAT),
    "earlier turns": ([BOS, *USER, *SYSTEM, *ASSISTANT, 3869, 2, *USER, IMAGE, BREAK, *WHAT, *ASSISTANT], WHAT),
    "no template": ([BOS, *WHAT, IMAGE, BREAK, *WHAT], WHAT + WHAT),
    "no question": ([BOS, *USER, IMAGE, BREAK, *ASSISTANT], []),
}


class TestQuestion:
    @pytest.mark.parametrize("padding", [([0, 0], []), ([], [0, 0])])
    @pytest.mark.parametrize("name", PROMPTS)
    def test_vicuna(self, name, padding):
        model = tiny_llava(text="llama")
        model.config.image_token_index = IMAGE
        for config in (model.config.text_config, model.generation_config):
            config.bos_token_id, config.eos_token_id, config.pad_token_id = BOS, 2, 0
        prompt, words = PROMPTS[name]
        ids = torch.tensor(padding[0] + prompt + padding[1])
        rows = adapter_for(model).question(ids, (ids == IMAGE).int())
        assert ids[rows].tolist() == words

    def test_qwens_template_as_the_pocket_model_has_it(self):
        tokenizer = build_tokenizer()
        model = tiny_llava(text="qwen2")
        to_id = tokenizer.convert_tokens_to_ids
        model.config.image_token_index = to_id("<|image_pad|>")
        for config in (model.config.text_config, model.generation_config):
            config.eos_token_id, config.pad_token_id = to_id("<|im_end|>"), to_id("<|endoftext|>")
        content = [{"type": "image"}, {"type": "text", "text": "What color is the star ?"}]
        turns = [{"role": "user", "content": content}]
        prompt = tokenizer.apply_chat_template(
            turns, chat_template=CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
        )
        prompt = "<|endoftext|>" * 3 + prompt.replace("<|image_pad|>", "<|image_pad|>" * 16)
        ids = torch.tensor(tokenizer(prompt)["input_ids"])
        rows = adapter_for(model).question(ids, (ids == model.config.image_token_id).int())
        assert tokenizer.decode(ids[rows]).strip() == "What color is the star ?"

"""InternVL2.5 as converted to stock classes: InternLM2.5 as a Llama, with its own tokenizer's ids, and InternViT-6B."""

import copy
import re

import pytest
import torch
from probes import Keys, Watch
from tiny_families import exactly_k, variants
from tiny_internvl import VIT_6B, tiny_internvl
from uncached_reference import Cut, Prompt

import harness
import methods
from harness.models.internvl import InternVL

PAD, BOS, END, START, IMG, IMG_END, CONTEXT = 2, 1, 92542, 92543, 92544, 92545, 92546  # ids of InternLM2.5's tokenizer
USER, ASSISTANT, BREAK = [1008], [525, 11353], 364
QUESTION = [3, 3500, BREAK, 77, 345]
TEXT = {
    "model_type": "llama",
    "vocab_size": 92553,
    "bos_token_id": BOS,
    "eos_token_id": PAD,
    "pad_token_id": PAD,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
}


@pytest.fixture(scope="module", params=["300M", "6B"])
def model(request):
    vision = VIT_6B if request.param == "6B" else {}
    model = tiny_internvl(text=TEXT, image=CONTEXT, **vision)
    model.generation_config.eos_token_id = END
    return model


def turn(role, *words):
    return [START, *role, BREAK, *words, END, BREAK]


def prompt(tiles, question):
    image = [IMG, *[CONTEXT] * 16 * tiles, IMG_END, BREAK]
    return [BOS, *turn([9843], 8, 9), *turn(USER, *image, *question), START, *ASSISTANT, BREAK]


@pytest.fixture(scope="module")
def inputs():
    """Two prompts, of which the first is padded on the left."""
    rows = [prompt(1, QUESTION), prompt(3, [*QUESTION, 4, 5])]
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    torch.manual_seed(0)
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(4, 3, 112, 112)}


@torch.no_grad()
def test_the_question_is_found_among_the_ids_of_its_tokenizer(model, inputs):
    watch = Watch()
    with harness.prune(model, watch, keep=0.5):
        model(**inputs)
    for tokens, words in zip(watch.seen, (QUESTION, [*QUESTION, 4, 5]), strict=True):
        assert torch.equal(tokens.text, model.get_input_embeddings()(torch.tensor(words)))


@pytest.mark.parametrize(("name", "params"), variants())
@torch.no_grad()
def test_every_method_keeps_exactly_k(model, inputs, scorer, name, params):
    params = params | exactly_k(name)
    if reason := InternVL.refusal(methods.load(name)):
        with pytest.raises(ValueError, match=re.escape(reason)), harness.prune(model, name, tokens=6, **params):
            pass
        return
    with harness.prune(model, name, tokens=6, scorer=scorer, **params) as pruning:
        model.generate(**inputs, max_new_tokens=2)
    assert [(record.n, record.k, len(record.grids)) for record in pruning.records] == [(16, 6, 1), (48, 6, 3)]


@pytest.mark.parametrize("method", ["divprune", Keys(layer=1)], ids=str)
@torch.no_grad()
def test_pruned_is_what_the_kept_rows_alone_give(model, inputs, method):
    alone = {"input_ids": inputs["input_ids"][1:], "pixel_values": inputs["pixel_values"][1:]}
    with harness.prune(model, method, tokens=6) as pruning:
        logits = model(**alone).logits[0]
    cut = Cut(getattr(method, "layer", -1), torch.tensor(pruning.records[0].kept))
    torch.testing.assert_close(logits, Prompt.of(model, alone).logits(model, cut), atol=1e-4, rtol=1e-4)


def test_ids_of_another_tokenizer_are_refused(model, inputs):
    config, model = copy.deepcopy(model.config), copy.deepcopy(model)
    InternVL.check(methods.load("cdpruner"), config)
    config.image_token_id = 128_200
    InternVL.check(methods.load("fastv"), config)
    with pytest.raises(ValueError, match="whose image_token_id is 92546, here it is 128200"):
        InternVL.check(methods.load("cdpruner"), config)
    model.generation_config.eos_token_id = PAD
    with (
        pytest.raises(ValueError, match=r"ends at <\|im_end\|>, id 92542, but eos_token_id .* is \[2, 2\]"),
        harness.prune(model, "cdpruner", tokens=6),
    ):
        model(**inputs)

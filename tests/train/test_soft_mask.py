"""What the language model gets under the soft mask, what it is asked, and that it stays as it is."""

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from questions import ask, picture
from test_soft_gradient import soft
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor
from tiny_llava_onevision import tiny_llava_onevision, tiny_llava_onevision_processor
from tiny_models import DINOV2, HIDDEN, tiny_llava, tiny_llava_processor, tiny_processor, tiny_qwen
from tiny_qwen2 import tiny_qwen2, tiny_qwen2_processor
from tiny_qwen3 import tiny_qwen3, tiny_qwen3_processor

import harness
from harness.core.config import ModelConfig
from harness.models import adapter_for
from harness.models.limits import limits_of
from harness.models.preprocessing import to_inputs
from harness.models.scorer import VisionSelectorScorer
from harness.train.batches import IGNORE, Batch, answer_loss, to_batch
from harness.train.conversations import Example
from harness.train.soft_mask import SoftMask

FAMILIES = {
    "qwen2_5_vl": (tiny_qwen, tiny_processor),
    "llava": (tiny_llava, tiny_llava_processor),
    "llava-dinov2": (partial(tiny_llava, tower=DINOV2), partial(tiny_llava_processor, DINOV2)),
    "llava_next": (tiny_llava_next, tiny_llava_next_processor),
    "qwen2_vl": (tiny_qwen2, tiny_qwen2_processor),
    "llava_onevision": (tiny_llava_onevision, tiny_llava_onevision_processor),
    "qwen3_vl": (tiny_qwen3, tiny_qwen3_processor),
}
SHARE = 0.3


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    """A frozen tiny model with its processor, as `harness.models.loading.load` gives them."""
    model, processor = (make() for make in FAMILIES[request.param])
    model.requires_grad_(False)
    config = ModelConfig(name="tiny", pretrained="tiny")
    return SimpleNamespace(model=model, processor=processor, config=config, device=model.device)


@pytest.fixture(scope="module")
def examples():
    """Prompts and answers of several lengths."""
    return [Example(ask(picture(56 * (1 + i), 112), text=f"{'Why' * i}?"), "no " * i + "yes") for i in range(3)]


@pytest.fixture(scope="module")
def batch(loaded, examples):
    return to_batch(loaded, examples)


@pytest.fixture(scope="module")
def scorer(loaded, batch):
    """Logits with a deviation of 2: some weights near 0 and 1, none at them."""
    torch.manual_seed(1)
    made = VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)
    features = entering(loaded, batch)["inputs_embeds"][visual_rows(loaded, batch)]
    with torch.no_grad():
        made.q_proj.weight *= 2 / made(features).std()
    return made


def visual_rows(loaded, batch):
    """Rows of patches: newlines have no weight, and stay."""
    placeholders = batch.inputs["input_ids"] == loaded.model.config.image_token_id
    newline = getattr(loaded.model.model, "image_newline", None)
    return placeholders if newline is None else placeholders & ~newlines(loaded, batch, newline)


def newlines(loaded, batch, newline):
    return (entering(loaded, batch)["inputs_embeds"] == newline).all(-1)


def masked(loaded, scorer, batch):
    mask = SoftMask(adapter_for(loaded.model), scorer, SHARE)
    with mask.attached():
        answers, _ = answer_loss(loaded.model, batch)
    return answers, mask.take(len(batch.labels))


def entering(loaded, batch, scorer=None):
    """What the decoder gets, plain or under a scorer's mask."""
    seen, adapter = {}, adapter_for(loaded.model)
    decoder = loaded.model.get_submodule(adapter.decoder.path)
    with nullcontext() if scorer is None else SoftMask(adapter, scorer, SHARE).attached():
        # Behind the mask's own hook.
        handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
        answer_loss(loaded.model, batch)
    handle.remove()
    return seen


def quadratic(scorer, x):
    """The scorer as the paper writes it: the mean over all pairs of tokens."""
    w = {name: value.double() for name, value in scorer.state_dict().items()}
    q = x.double() @ w["q_proj.weight"].T + w["q_proj.bias"]
    k = x.double() @ w["k_proj.weight"].T + w["k_proj.bias"]
    return (q @ k.T).mean(1) / w["q_proj.bias"].numel() ** 0.5


def test_visual_tokens_fade_by_their_weight_and_text_does_not(loaded, batch, scorer):
    plain, faded = entering(loaded, batch), entering(loaded, batch, scorer)
    visual = visual_rows(loaded, batch)
    assert torch.equal(faded["inputs_embeds"][~visual], plain["inputs_embeds"][~visual])
    for row, before, after in zip(visual, plain["inputs_embeds"], faded["inputs_embeds"], strict=True):
        x = before[row]
        logits = quadratic(scorer, x).numpy()
        p = torch.from_numpy(soft(logits, max(1, int(SHARE * len(x))))).float().unsqueeze(1)
        assert float(p.max() - p.min()) > 0.4  # or there would be nothing to see
        torch.testing.assert_close(after[row], p * x, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loaded", ["qwen3_vl"], indirect=True)
def test_deepstack_fades_along(loaded, batch, scorer):
    plain, faded = entering(loaded, batch), entering(loaded, batch, scorer)
    visual = visual_rows(loaded, batch)
    p = faded["inputs_embeds"][visual].norm(dim=1) / plain["inputs_embeds"][visual].norm(dim=1)
    assert len(plain["deepstack_visual_embeds"]) == 3
    for before, after in zip(plain["deepstack_visual_embeds"], faded["deepstack_visual_embeds"], strict=True):
        torch.testing.assert_close(after, before * p.unsqueeze(1), atol=1e-5, rtol=1e-4)


def test_bce_is_between_the_mask_and_its_hard_top_k(loaded, batch, scorer):
    plain = entering(loaded, batch)["inputs_embeds"]
    visual = visual_rows(loaded, batch)
    _, found = masked(loaded, scorer, batch)
    for row, states, value in zip(visual, plain, found, strict=True):
        logits = quadratic(scorer, states[row]).numpy()
        k = max(1, int(SHARE * len(logits)))
        p = torch.from_numpy(soft(logits, k))
        hard = torch.from_numpy(logits >= sorted(logits)[-k])
        expected = -torch.where(hard, p, 1 - p).log().mean()
        assert value.item() == pytest.approx(float(expected), rel=1e-3)


def test_gradient_reaches_the_scorer_and_nothing_else(loaded, batch, scorer):
    """Along its own direction the loss moves by the gradient's squared length: finite differences through the model."""
    scorer = deepcopy(scorer)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    def loss():
        answers, binary = masked(loaded, scorer, batch)
        return answers / batch.answered + 0.5 * binary.mean()

    loss().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in scorer.named_parameters()}
    squared = sum(float((g.double() ** 2).sum()) for g in gradients.values())
    assert squared > 1e-6
    step = 2e-3 / squared  # to either side the loss moves by as much
    with torch.no_grad():
        moved = []
        for sign in (1, -2):  # to one side, then to the other
            for name, parameter in scorer.named_parameters():
                parameter += sign * step * gradients[name]
            moved.append(float(loss()))
    assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(squared, rel=0.03)
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def followed(loaded, example, tokens):
    """One prompt [1, S] and `tokens` behind it, put together by hand."""
    inputs = to_inputs(loaded.processor, [example.messages], limits_of(loaded.processor, loaded.config))
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(tokens)], dim=1)
    return inputs


def test_loss_is_what_transformers_computes_of_each_conversation(loaded, examples, batch):
    """Each alone, without padding and with `labels` of the whole sequence."""
    expected, end = 0.0, loaded.model.generation_config.eos_token_id
    for example in examples:
        answer = torch.tensor(
            [loaded.processor.tokenizer(example.answer, add_special_tokens=False)["input_ids"] + [end]]
        )
        inputs = followed(loaded, example, answer)
        labels = inputs["input_ids"].clone()
        labels[:, : -answer.shape[1]] = IGNORE
        expected += float(loaded.model(**inputs, labels=labels).loss) * answer.shape[1]
    assert batch.answered == sum(len(example.answer) + 1 for example in examples)  # a token a byte
    assert float(answer_loss(loaded.model, batch)[0]) == pytest.approx(expected, rel=1e-4)


def test_right_is_what_greedy_decoding_says(loaded, examples):
    nothing = torch.zeros(1, 0, dtype=torch.long)
    prompt = followed(loaded, examples[1], nothing)
    said = loaded.model.generate(**prompt, max_new_tokens=4, do_sample=False)[:, prompt["input_ids"].shape[1] :]
    inputs = followed(loaded, examples[1], said)
    assert bool(answer_loss(loaded.model, Batch(inputs, said))[1])
    for place in range(said.shape[1]):
        other = said.clone()
        other[0, place] += 1
        assert not bool(answer_loss(loaded.model, Batch(inputs, other))[1])


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_pruned_answers_of_a_batch_are_those_of_its_rows(loaded, examples, batch, scorer, keep):
    """Where rows keep different numbers of tokens, answers still end in the last column."""
    with torch.no_grad(), harness.prune(loaded.model, "visionselector", keep=keep, scorer=scorer):
        together, right = answer_loss(loaded.model, batch)
        apart = [answer_loss(loaded.model, to_batch(loaded, [example])) for example in examples]
    assert float(together) == pytest.approx(sum(float(loss) for loss, _ in apart), rel=1e-4)
    assert right.tolist() == [bool(one) for _, one in apart]


def test_a_mask_that_saw_no_image_is_an_error(loaded, batch, scorer):
    mask = SoftMask(adapter_for(loaded.model), scorer, SHARE)
    answer_loss(loaded.model, batch)  # outside
    with pytest.raises(RuntimeError, match="3 prompts went in, the visual tokens of 0 were masked"):
        mask.take(3)


def test_the_hooks_are_gone_afterwards(loaded, batch, scorer):
    before = answer_loss(loaded.model, batch)[0]
    masked(loaded, scorer, batch)
    assert float(answer_loss(loaded.model, batch)[0]) == float(before)
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())

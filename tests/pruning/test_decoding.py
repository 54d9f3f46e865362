"""Decoding through the cache of a cut prefill gives, token by token, the logits of a fresh pass without a cache.

The reference (`recomputation`) shares no code with the hooks: it replays what the method kept and merged, row by row
and layer by layer, and never lets the method choose again.
"""

from contextlib import nullcontext
from functools import cache, partial, wraps

import pytest
import torch
from probes import MergeInside, Stages
from reference_prune import equally_long, inputs_of
from tiny_families import COUNTING, EQUALLY_LONG, tiny
from torch.overrides import TorchFunctionMode
from transformers_names import CACHE, COUNTS_PADDING, ENCODES_FIRST, cache_of
from uncached_reference import Cut, Prompt

import harness
import methods
from harness.models import FAMILIES, adapter_class

TOKENS = 6  # decoded in each turn
TURN = [65, 66, 67]  # what the user says next
KEEP = 0.3
# One method for each way to cut: drop or merge in front of layer 0, behind a layer, in front of a layer's MLP, often.
BEFORE = {
    "random": partial(methods.load, "random"),
    "avg_pool": partial(methods.load, "avg_pool"),
    "visionzip": partial(methods.load, "visionzip"),
}
INSIDE = {
    "fastv": partial(methods.load, "fastv"),
    "fastv_paper": partial(methods.load, "fastv", variant="paper"),
    "sparsevlm": partial(methods.load, "sparsevlm", budget_at="end"),
    "pyramiddrop": partial(methods.load, "pyramiddrop", budget_at="end"),
    "merge_inside": partial(MergeInside, layer=1),
    "three_cuts": Stages,
    "three_cuts_before_mlps": partial(Stages, variant="paper"),
    "three_merges": partial(Stages, layers=(0, 1, 2), of_next=True, merges=True),
    "input_and_later": partial(Stages, layers=(-1, 1, 2), merges=True, hidden="output"),
}
TEXT_ALONE = ("just a question, no picture", [], [])
SCENES = {
    "one prompt": ["adjacent"],
    "one image each": ["one image", TEXT_ALONE, "small image"],
    "unequal lengths": ["text between", TEXT_ALONE, "small image"],
    "equal lengths": ["adjacent", "one image"],  # where unequal numbers of tokens are cut
    "video": ["mixed", "video"],
    "one video": ["mixed", "one image"],
}
MIXING = ("llava", "llava_next", "llava_onevision", "internvl")  # families in which beams get other images
SHOWN = ["one prompt", "unequal lengths", "equal lengths", "video"]


class Float64(TorchFunctionMode):
    """Within it, `Tensor.float` is `Tensor.double`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (torch.Tensor.double if function is torch.Tensor.float else function)(*args, **(kwargs or {}))


def in_float64(forward):
    @wraps(forward)
    def wide(*args, **kwargs):
        with Float64():
            return forward(*args, **kwargs)

    return wide


@pytest.fixture(autouse=True)
def float64_angles(request, monkeypatch):
    """Widen rotary angles, which are float32 in any model: a padded prompt may stand elsewhere than alone."""
    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    for name, module in tiny(family)[0].named_modules() if family else ():
        if name.endswith("rotary_emb"):
            monkeypatch.setattr(module, "forward", in_float64(module.forward))


def over(before, inside):
    """Parametrize over families, cuts `before` the language model and `inside` it, and the scenes shown to each.

    Where positions count tokens, a cut before the language model comes with both settings of `positions`.
    """
    cases = []
    for family in FAMILIES:
        adapter = adapter_class(family)
        settings = ["keep", "compact"] if family in COUNTING else ["keep"]
        cuts = [(method, positions, before) for method in BEFORE for positions in settings]
        cuts += [(method, "keep", inside) for method in INSIDE]
        for method, positions, scenes in cuts:
            for scene in scenes:
                scene = "one video" if scene == "video" and family in EQUALLY_LONG else scene
                if "video" not in scene or "video" in adapter.media:
                    name = "-".join([family, method, positions, scene.replace(" ", "_")])
                    cases.append(pytest.param(family, method, positions, scene, id=name))
    return pytest.mark.parametrize(("family", "method", "positions", "scene"), cases)


@cache
def show(processor, scene, side="left"):
    """Return the inputs of the scene's prompts in a batch, padded on one side, and of each of them alone.

    All tests share them: change none.
    """
    samples = SCENES[scene]
    if scene == "equal lengths":
        samples = equally_long(processor, samples)
    return inputs_of(processor, samples, side), [inputs_of(processor, [sample]) for sample in samples]


PLAIN = {}  # id of inputs -> these inputs, so that no others get the id, and what `Prompt` says of them


def plain(model, inputs):
    """Return what the plain model passes to its decoder, once for inputs that tests share."""
    if id(inputs) not in PLAIN:
        PLAIN[id(inputs)] = inputs, Prompt.of(model, inputs)
    return PLAIN[id(inputs)][1]


class Block:
    """A prune block that notes what its method chose, and the comparison with the same cut made by hand."""

    def __init__(self, model, method, positions):
        self.model, self.method, self.positions = model, (BEFORE | INSIDE)[method](), positions
        self.calls, select = [], self.method.select_batch  # selections of each cut

        def select_batch(*args):
            chosen = select(*args)
            self.calls.append(chosen)
            return chosen

        self.method.select_batch = select_batch

    def __enter__(self):
        self._prune = harness.prune(self.model, self.method, keep=KEEP, positions=self.positions)
        return self._prune.__enter__()

    def __exit__(self, *error):
        return self._prune.__exit__(*error)

    def check(self, prompts, answers, logits, greedy=range(TOKENS)):
        """Compare what was decoded, after the last choices, one a prompt.

        `logits[row][i]` [V] are those before the token `answers[row][i]`; `greedy` are the i at which this token must
        be the likeliest.
        """
        depth, compact = self.model.config.get_text_config().num_hidden_layers, self.positions == "compact"
        sizes = [len(plain(self.model, inputs).visual) for inputs in prompts]
        plans = [self.method.cuts(n, round(KEEP * n), depth) for n in sizes]
        layers = sorted({cut.layer for plan in plans for cut in plan})
        calls = dict(zip(layers, map(iter, self.calls[-len(layers) :]), strict=True))
        assert len(answers) == len(logits) == len(prompts)
        for inputs, plan, answer, steps in zip(prompts, plans, answers, logits, strict=True):
            prompt = plain(self.model, inputs)
            visual = len(prompt.visual)
            chosen = [next(calls[cut.layer]) for cut in plan]
            assert not visual or len(chosen[-1].kept) == round(KEEP * visual)
            assert len(answer) >= TOKENS
            cuts = [Cut(at.layer, s.kept, s.owner, s.mix, compact) for at, s in zip(plan, chosen, strict=True)]
            before_each = prompt.logits(self.model, cuts, answer)[-len(answer) - 1 : -1]
            for i, (token, ours, expected) in enumerate(zip(answer, steps, before_each, strict=True)):
                torch.testing.assert_close(ours.double(), expected.double(), atol=1e-4, rtol=1e-4)
                assert i not in greedy or token == int(likeliest(self.model, expected))
            if visual:  # the cut made a difference, up to the last step
                uncut = prompt.logits(self.model, Cut(-1, torch.arange(visual)), answer[:-1])[-1]
                assert (uncut - steps[-1]).abs().max() > 1e-2


def likeliest(model, logits):
    """Return the tokens of the highest `logits` [..., V], the end of the text not among them."""
    end = torch.tensor([model.generation_config.eos_token_id])
    return logits.index_fill(-1, end, -torch.inf).argmax(-1)


def generate(model, inputs, **kwargs):
    """Decode TOKENS tokens of every prompt; return the output, and the answers [B, TOKENS]."""
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    output = model.generate(**inputs, **length, return_dict_in_generate=True, output_logits=True, **kwargs)
    return output, output.sequences[:, inputs["input_ids"].shape[1] :]


@over(before=SHOWN, inside=SHOWN)
@torch.no_grad()
def test_generation(family, method, positions, scene):
    model, processor = tiny(family)
    inputs, prompts = show(processor, scene)
    with (block := Block(model, method, positions)):
        output, answers = generate(model, inputs)
    block.check(prompts, answers.tolist(), torch.stack(output.logits, dim=1))


@over(before=["one image each", "unequal lengths"], inside=["one image each", "unequal lengths"])
@torch.no_grad()
def test_beams(family, method, positions, scene):
    model, processor = tiny(family)
    inputs, prompts = show(processor, scene)
    if scene == "unequal lengths" and family in MIXING and not ENCODES_FIRST:
        # Upstream copies the images a, b of a prompt as a, a, b, b, pruned or not.
        own_order = "the images of a prompt in its own order"
        with pytest.raises(ValueError, match=own_order), Block(model, method, positions):
            generate(model, inputs, num_beams=3)
        return
    with (block := Block(model, method, positions)):
        output, answers = generate(model, inputs, num_beams=3)
    paths = output.beam_indices[:, :TOKENS].tolist()
    logits = [[step[beam] for step, beam in zip(output.logits, path, strict=True)] for path in paths]
    block.check(prompts, answers.tolist(), logits, greedy=())


# Nobody passes a mask: a cut before the language model brings its own, layers that see every token have none.
@over(before=["unequal lengths", "equal lengths"], inside=["equal lengths"])
@torch.no_grad()
def test_a_second_turn_on_the_cache(family, method, positions, scene):
    """By hand: an answer token by token, the user's words at once, a second answer."""
    model, processor = tiny(family)
    inputs, prompts = show(processor, scene)
    placeholder = [model.config.image_token_id]  # once it is decoded, a token like others
    turns = [None] * TOKENS + [TURN] + [None] * TOKENS + [placeholder, None, None]  # None: the likeliest token
    tokens, greedy = torch.empty(len(prompts), 0, dtype=torch.long), []
    with (block := Block(model, method, positions)):
        output = model(**inputs, use_cache=True)
        logits = output.logits[:, -1:]
        for turn in turns:
            if turn is None:
                greedy.append(tokens.shape[1])
            new = likeliest(model, logits[:, -1:]) if turn is None else torch.tensor([turn] * len(prompts))
            output = model(input_ids=new, use_cache=True, **{CACHE: cache_of(output)})
            tokens, logits = torch.cat([tokens, new], dim=1), torch.cat([logits, output.logits], dim=1)
    block.check(prompts, tokens.tolist(), logits[:, :-1], greedy)


@over(before=["unequal lengths"], inside=["unequal lengths"])
@torch.no_grad()
def test_an_answer_by_hand_after_padding_on_the_right(family, method, positions, scene):
    """Each row counts on from its own last token, not from the padding behind it."""
    model, processor = tiny(family)
    (inputs, prompts), rows = show(processor, scene, side="right"), range(len(SCENES[scene]))
    mask, tokens = inputs["attention_mask"], torch.empty(len(rows), 0, dtype=torch.long)
    with (block := Block(model, method, positions)) as pruning:
        output = model(**inputs, use_cache=True)
        dropped = [record.n - record.k + sum(record.newlines or ()) for record in pruning.records]  # all newlines go
        last = [int(n) - gone - 1 for n, gone in zip(mask.sum(1), dropped, strict=True)]
        new = logits = output.logits[rows, last].unsqueeze(1)
        for _ in range(TOKENS):
            new = likeliest(model, new)
            mask, tokens = torch.cat([mask, torch.ones_like(new)], dim=1), torch.cat([tokens, new], dim=1)
            output = model(input_ids=new, attention_mask=mask, use_cache=True, **{CACHE: cache_of(output)})
            new, logits = output.logits, torch.cat([logits, output.logits], dim=1)
    block.check(prompts, tokens.tolist(), logits[:, :-1])


@over(before=["unequal lengths"], inside=["unequal lengths"])
@torch.no_grad()
def test_generation_that_counts_on_from_padding_is_refused(family, method, positions, scene):
    model, processor = tiny(family)
    inputs, _ = show(processor, scene, side="right")
    refused = pytest.raises(ValueError, match="not the next one after the pruned cache")
    with refused if COUNTS_PADDING else nullcontext(), Block(model, method, positions):
        generate(model, inputs)


@over(before=["unequal lengths"], inside=["unequal lengths"])
@torch.no_grad()
def test_a_second_turn_as_the_whole_conversation(family, method, positions, scene):
    model, processor = tiny(family)
    inputs, prompts = show(processor, scene)
    with (block := Block(model, method, positions)):
        words = {"suppress_tokens": processor.tokenizer.all_special_ids}  # no placeholders
        _, answers = generate(model, inputs, **words)
        turns = torch.cat([answers, torch.tensor([TURN] * len(prompts))], dim=1)
        output, answers = generate(model, extended(inputs, turns))
    prompts = [extended(prompt, turn.unsqueeze(0)) for prompt, turn in zip(prompts, turns, strict=True)]
    block.check(prompts, answers.tolist(), torch.stack(output.logits, dim=1))


def extended(inputs, turns):
    """Append the tokens `turns` [B, T] to the prompts."""
    text = {"input_ids": turns, "attention_mask": torch.ones_like(turns), "mm_token_type_ids": torch.zeros_like(turns)}
    longer = {name: torch.cat([inputs[name], new], dim=1) for name, new in text.items() if name in inputs}
    return {**inputs, **longer}

"""What every family promises: pruned, it computes what the plain model does of the kept rows, and nothing else changes.

The reference (`uncached_reference`) takes what the plain model hands to its decoder and runs the decoder's layers by
hand. How answers are decoded, for every way to cut, is in tests/pruning/test_decoding.py.
"""

import copy
import re
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from attention_kernels import KERNELS, with_kernel
from PIL import Image
from probes import Keys, MergeBefore, MergeInside, Watch
from reference_prune import SAMPLES, equally_long, generate, hooks, inputs_of
from tiny_families import COUNTING, EQUALLY_LONG, OTHER_TOWERS, exactly_k, tiny, variants
from tiny_models import IMAGE
from transformers_names import CACHE, cache_of
from uncached_reference import Cut, Prompt

import harness
import methods
from harness.evaluation.resize_baseline import resizing
from harness.models import FAMILIES, adapter_class
from harness.models.adapter import Adapter
from harness.models.limits import PixelLimits
from harness.models.vision_tower import VisionTower
from harness.results import method_groups
from methods.budget import Budget

TEXT_ALONE = ("just a question, no picture", [], [])
TURN = torch.tensor([[65, 66, 67]])
CUTS = {
    "before": "uniform",
    "merged before": MergeBefore(),
    "after layer 0": Keys(layer=0),
    "in layer 1": Keys(layer=1, variant="paper"),
    "after layer 2": Keys(layer=2),
    "merged after layer 1": MergeInside(layer=1),
}
# Methods that merge with weights, and the parameters with which they cut once.
MIXING = {"vlmpruner": {}, "prumerge": {}, "prumerge_plus": {}, "fastvid": {}}
MIXING |= {name: {"stages": "input"} for name in ("holitom", "flashvid", "prunevid")}
every_cut = pytest.mark.parametrize("cut", CUTS)
one_cut_of_a_kind = pytest.mark.parametrize("cut", ["before", "after layer 2"])


@dataclass
class Family:
    """The tiny model of a family in float32, its processor, and what the plain model makes of its samples."""

    builder: str
    _prompts: dict = field(default_factory=dict)

    def __post_init__(self):
        self.name = self.builder.partition("-")[0]
        self.model, self.processor = tiny(self.builder, torch.float32)
        shown = adapter_class(self.name).media
        self.samples = [name for name, (_, _, clips) in SAMPLES.items() if "video" in shown or not clips]
        self.batch = ["one image", "mixed", "adjacent", "video"]
        if "video" not in shown:
            self.batch[1::2] = ["text between", "small image"]
        if self.name in EQUALLY_LONG:
            self.batch[1] = "text between"

    def inputs(self, *samples, side="left"):
        return inputs_of(self.processor, samples, side)

    def prompt(self, sample):
        """Return what the plain model hands to its decoder of one sample."""
        if str(sample) not in self._prompts:
            self._prompts[str(sample)] = Prompt.of(self.model, self.inputs(sample))
        return self._prompts[str(sample)]

    def logits(self, sample, record, method, answer=(), positions="keep"):
        """Return the logits [L, V] of what `method` kept of a sample, and of an answer to it, made by hand."""
        kept, layer = torch.tensor(record.kept, dtype=torch.long), getattr(method, "layer", -1)
        merges = isinstance(method, MergeBefore | MergeInside) and record.n > 0
        owner = torch.arange(record.n).clamp(max=record.k - 1) if merges else None
        return self.prompt(sample).logits(self.model, Cut(layer, kept, owner, compact=positions == "compact"), answer)

    def dropped(self, sample, record):
        """Return how many rows of a sample the cut has dropped; with a token go all newlines."""
        newlines = len(self.prompt(sample).newlines) if record.k < record.n else 0
        return record.n - record.k + newlines

    def uncut(self, sample):
        """Return the logits [S, V] of the plain prompt."""
        prompt = self.prompt(sample)
        return prompt.logits(self.model, Cut(-1, torch.arange(len(prompt.visual))))

    def refuses(self, method):
        """Return whether this family cannot run a method, which is an error as soon as it is asked for."""
        reason = adapter_class(self.name).refusal(method)
        if reason is not None:
            with pytest.raises(ValueError, match=f"^{re.escape(reason)}$"), harness.prune(self.model, method, keep=0.5):
                pass
        return reason is not None

    def unlike(self, attn="sdpa", dtype=torch.float32):
        """Return a copy of the model with another kernel, or in another precision."""
        return with_kernel(copy.deepcopy(self.model).to(dtype), attn)


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHER_TOWERS])
def family(request):
    return Family(request.param)


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "params"), variants())
@torch.no_grad()
def test_every_method_keeps_exactly_k_whatever_the_kernel(family, scorer, name, params):
    """In float64, where rounding chooses no token; two prompts, of which one is padded, and the other one alone."""
    model = tiny(family.builder)[0]
    params = params | exactly_k(name)
    if family.refuses(methods.load(name, **params)):
        return

    def under(attn, samples, length=1):
        with harness.prune(with_kernel(model, attn), name, tokens=6, scorer=scorer, **params) as pruning:
            answers = generate(model, family.inputs(*samples), max_new_tokens=length)
        ks = [pruning.method.count_kept(pruning.budget, record.grids) for record in pruning.records]
        assert ks == [6] * len(answers) or params.get("variant") == "paper"  # which may round for each image
        assert [(record.k, len(set(record.kept))) for record in pruning.records] == [(k, k) for k in ks]
        assert all(0 <= min(record.kept) <= max(record.kept) < record.n for record in pruning.records)
        return [(record, answer[0]) for record, answer in zip(pruning.records, answers, strict=True)]

    both = ["adjacent", "one image"]
    try:
        expected = under("sdpa", both, length=2)
        assert under("flash_like", both) == expected
        assert under("eager", both[:1]) == expected[:1]  # alone: its float32 softmax makes NaN of padding in float64
    finally:
        with_kernel(model, "sdpa")


def test_methods_that_compare_frames_need_a_family_that_shows_them_together():
    over_time = {name for name in methods.names() if methods.get(name).compares_frames}
    assert over_time == set(method_groups.groups()["temporal"])
    for name in FAMILIES:
        refused = {method for method in methods.names() if adapter_class(name).refusal(methods.load(method))}
        assert refused & over_time == (over_time if name == "internvl" else set())
    reason = "its models get each frame as an image of its own"
    expected = f"vidcom2 compares frames of a video, which family internvl does not support: {reason}"
    assert adapter_class("internvl").refusal(methods.load("vidcom2")) == expected


@torch.no_grad()
def test_smaller_images_where_the_resolution_is_dynamic(family):
    model, processor = family.model, family.processor
    resize, adapter = methods.load("resize"), adapter_class(model.config.model_type)
    if adapter.fixed_size:
        with pytest.raises(ValueError, match=f"saves no tokens in family {adapter.family}: "):
            adapter.check(resize, model.config)
        return
    side = 2 * processor.image_processor.patch_size  # pixels of a token
    image, frames = Image.new("RGB", (4 * side, 2 * side)), [Image.new("RGB", (2 * side, 2 * side))] * 4
    parts = [{"type": "image", "url": image}, {"type": "video", "url": frames}, {"type": "text", "text": "?"}]
    limits = PixelLimits(side**2, 64 * side**2, 4)
    with resizing(model, Budget(keep=0.25)) as block:
        model(**block.inputs(processor, [[{"role": "user", "content": parts}]], limits))
        (record,) = block.take()
    steps = 4 // processor.video_processor.temporal_patch_size
    assert (record.grids, record.shown) == ([(1, 2, 4), (steps, 2, 2)], [(1, 1, 2), (steps, 1, 1)])
    assert (record.n, record.budget, record.k) == (8 + 4 * steps, 2 + steps, 2 + steps)


class TestOnePrompt:
    @every_cut
    @torch.no_grad()
    def test_logits_of_every_sample(self, family, cut):
        method = CUTS[cut]
        for sample in family.samples:
            with harness.prune(family.model, method, keep=0.4) as pruning:
                (logits,) = family.model(**family.inputs(sample)).logits
            (record,) = pruning.records
            assert record.k == len(record.kept) == max(1, round(record.n * 0.4)) < record.n
            assert record.n == len(family.prompt(sample).visual) == sum(t * h * w for t, h, w in record.grids)
            close(logits, family.logits(sample, record, method))
            plain = family.uncut(sample)
            assert len(logits) == len(plain) - family.dropped(sample, record)
            assert (logits[-1] - plain[-1]).abs().max() > 1e-2

    @torch.no_grad()
    def test_compact_positions_where_positions_count_tokens(self, family):
        prune = partial(harness.prune, family.model, positions="compact")
        if family.name not in COUNTING:
            with pytest.raises(ValueError, match="time, row and column"), prune("uniform", keep=0.4):
                pass
            return
        with pytest.raises(ValueError, match="fastv cuts after a decoder layer"), prune("fastv", keep=0.4):
            pass
        for sample in family.samples:
            with prune("uniform", keep=0.4) as pruning:
                (logits,) = family.model(**family.inputs(sample)).logits
            (record,) = pruning.records
            close(logits, family.logits(sample, record, "uniform", positions="compact"))
            assert (logits - family.logits(sample, record, "uniform")).abs().max() > 1e-3

    @torch.no_grad()
    def test_half_precision(self, family):
        model, sample = family.unlike(dtype=torch.bfloat16), family.batch[1]
        with harness.prune(model, "uniform", keep=0.5) as pruning:
            logits = model(**family.inputs(sample)).logits[0].float()
        expected = family.logits(sample, pruning.records[0], "uniform")
        assert (logits - expected).norm() / expected.norm() < 0.1

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("hidden", ["normed_input", "output", "normed_output"])
    @torch.no_grad()
    def test_state_of_a_layer(self, family, monkeypatch, hidden, side):
        """What a method is shown of a decoder layer is what the plain model has there."""
        model, states, entered, choose, layer = family.unlike("eager"), [], {}, Keys._select, 1
        monkeypatch.setattr(Keys, "_select", lambda *args: states.append(args[1]) or choose(*args))
        samples = family.batch[:2]
        with harness.prune(model, Keys(layer=layer, hidden=hidden), keep=0.3):
            model(**family.inputs(*samples, side=side))
        decoder = model.model.language_model
        for number, module in enumerate(decoder.layers):
            module.register_forward_pre_hook(lambda _, args, number=number: entered.update({number: args[0][0]}))
        for sample, tokens in zip(samples, states, strict=True):
            maps = model(**family.inputs(sample), output_attentions=True).attentions[layer][0]
            prompt, state = family.prompt(sample), tokens.llm
            assert torch.equal(state.visual_idx, prompt.visual)
            close(tokens.features, prompt.states[0, prompt.visual])
            scores = state.q @ state.k.repeat_interleave(2, dim=0).mT / state.q.shape[-1] ** 0.5
            scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
            torch.testing.assert_close(scores.softmax(-1), maps, atol=1e-5, rtol=1e-4)
            expected = {
                "normed_input": decoder.layers[layer].input_layernorm(entered[layer]),
                "output": entered[layer + 1],
                "normed_output": decoder.norm(entered[layer + 1]),
            }
            torch.testing.assert_close(state.hidden, expected[hidden], atol=1e-3, rtol=1e-3)


class TestBatches:
    @pytest.mark.parametrize("attn", KERNELS)
    @pytest.mark.parametrize("method", ["random", "idpruner", Keys(layer=0), Keys(layer=1, variant="paper")], ids=str)
    @torch.no_grad()
    def test_a_batch_of_four_equals_one_by_one_and_the_reference(self, family, scorer, method, attn):
        model, samples, seeds = family.unlike(attn), family.batch, [5, 6, 7, 8]
        with harness.prune(model, method, keep=0.3, scorer=scorer) as pruning:
            pruning.seed(seeds)
            together = generate(model, family.inputs(*samples))
            records, alone = pruning.take(), []
            for seed, sample in zip(seeds, samples, strict=True):
                pruning.seed(seed)
                alone += generate(model, family.inputs(sample))
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert together == [answer + [padding] * (len(together[0]) - len(answer)) for answer in alone]
        for sample, record, answer in zip(samples, records, alone, strict=True):
            logits = family.logits(sample, record, method, answer)
            assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer

    @pytest.mark.parametrize("fit", ["k", "official"])
    @pytest.mark.parametrize("name", [*MIXING, "vidcom2", "evs", "dycoke"])  # with a fit of their own
    @torch.no_grad()
    def test_what_a_method_mixes_is_the_same_in_a_batch_alone_and_in_the_reference(self, family, name, fit):
        model, samples, method = tiny(family.name)[0], family.batch, methods.load(name, fit=fit, **MIXING.get(name, {}))
        selections, alone = [], []
        if family.refuses(method):
            return
        with harness.prune(model, method, keep=0.3) as pruning:
            together = generate(model, family.inputs(*samples))
            records = pruning.take()
            for sample in samples:
                alone += generate(model, family.inputs(sample))
                selections += [selection for selection, _ in pruning.latest]
        assert pruning.records == records
        padding = model.generation_config.pad_token_id
        assert together == [answer + [padding] * (len(together[0]) - len(answer)) for answer in alone]
        for sample, selection, answer in zip(samples, selections, alone, strict=True):
            cut = Cut(int(method.stage.partition(":")[2] or -1), selection.kept, mix=selection.mix)
            logits = Prompt.of(model, family.inputs(sample)).logits(model, cut, answer)
            assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer

    @pytest.mark.parametrize("name", ["holitom", "flashvid", "prunevid"])
    @torch.no_grad()
    def test_cuts_at_the_input_and_inside_are_those_of_the_reference(self, family, name, monkeypatch):
        model, method, selections = tiny(family.name)[0], methods.load(name, budget_at="entry"), []
        if family.refuses(method):
            return
        choose = type(method)._select
        monkeypatch.setattr(type(method), "_select", lambda *a: selections.append(choose(*a)) or selections[-1])
        for sample in family.batch[:2]:
            selections.clear()
            with harness.prune(model, method, keep=0.6) as pruning:
                (answer,) = generate(model, family.inputs(sample))
            stages = pruning.records[0].stages
            assert (len(stages), stages[0].layer) == (2, -1)
            cuts = [Cut(at.layer, each.kept, mix=each.mix) for at, each in zip(stages, selections, strict=True)]
            logits = Prompt.of(model, family.inputs(sample)).logits(model, cuts, answer)
            assert logits[-len(answer) - 1 : -1].argmax(-1).tolist() == answer

    @pytest.mark.parametrize("name", ["visionzip", "fastv"])
    @torch.no_grad()
    def test_a_budget_per_tile_in_a_batch_and_alone(self, family, name):
        model, samples = tiny(family.name)[0], family.batch[:3]
        with harness.prune(model, name, per_tile=2) as pruning:
            together = generate(model, family.inputs(*samples))
            alone = [generate(model, family.inputs(sample))[0] for sample in samples]
        *batch, first, second, third = pruning.records
        assert batch == [first, second, third]
        padding = model.generation_config.pad_token_id
        assert together == [answer + [padding] * (len(together[0]) - len(answer)) for answer in alone]
        for record in batch:
            assert set(record.per_tile) == {2}
            assert record.k == 2 * len(record.per_tile) == len(record.kept) < record.n

    @every_cut
    @torch.no_grad()
    def test_right_padding_and_a_text_among_others(self, family, cut):
        samples = ["one image", TEXT_ALONE, family.batch[1]]
        with harness.prune(family.model, CUTS[cut], keep=0.3) as pruning:
            logits = family.model(**family.inputs(*samples, side="right")).logits
        assert (pruning.records[1].n, pruning.records[1].k) == (0, 0)
        for row, sample, record in zip(logits, samples, pruning.records, strict=True):
            expected = family.logits(sample, record, CUTS[cut])
            close(row[: len(expected)], expected)

    @every_cut
    @torch.no_grad()
    def test_prompts_of_one_length_show_no_side_and_come_out_padded_on_the_left(self, family, cut):
        samples = equally_long(family.processor, ["adjacent", "one image"])
        inputs = family.inputs(*samples, side="right")
        assert bool(inputs["attention_mask"].all())
        with harness.prune(family.model, CUTS[cut], keep=0.3) as pruning:
            logits = family.model(**inputs).logits
        whole = inputs["input_ids"].shape[1]
        lengths = [whole - family.dropped(*pair) for pair in zip(samples, pruning.records, strict=True)]
        assert lengths[0] != lengths[1]
        for row, sample, record, length in zip(logits, samples, pruning.records, lengths, strict=True):
            expected = family.logits(sample, record, CUTS[cut])
            assert len(expected) == length
            close(row[-length:], expected)

    @torch.no_grad()
    def test_several_answers_to_one_prompt_share_one_draw(self, family):
        samples = family.batch[:2]
        with harness.prune(family.model, "random", keep=0.3) as pruning:
            generate(family.model, family.inputs(*samples), do_sample=True, num_return_sequences=3)
        assert [record.n for record in pruning.records] == [len(family.prompt(sample).visual) for sample in samples]


class TestDecoding:
    @every_cut
    @torch.no_grad()
    def test_each_layers_cache_is_as_long_as_what_it_saw_and_goes_on(self, family, cut):
        model, method, inputs = family.model, CUTS[cut], family.inputs("text between")
        with harness.prune(model, method, keep=0.25) as pruning:
            cache = cache_of(model(**inputs, use_cache=True))
            lengths, copied = [len(layer.keys[0, 0]) for layer in cache.layers], copy.deepcopy(cache)
            turns = [model(input_ids=TURN, use_cache=True, **{CACHE: it}).logits[0] for it in (cache, copied)]
        (record,), whole, layers = pruning.records, inputs["input_ids"].shape[1], len(model.model.language_model.layers)
        before = getattr(method, "layer", -1) + 1
        assert lengths == [whole] * before + [whole - family.dropped("text between", record)] * (layers - before)
        expected = family.logits("text between", record, method, TURN[0].tolist())[-3:]
        close(turns[0], expected)
        close(turns[1], expected)

    @one_cut_of_a_kind
    @torch.no_grad()
    def test_assisted_decoding_and_chunks(self, family, cut):
        letters = "".join(map(chr, range(32, 127)))
        inputs = family.inputs((IMAGE + letters + "?", [(112, 112)], []))
        with harness.prune(family.model, CUTS[cut], keep=0.25):
            plain = generate(family.model, inputs, max_new_tokens=20)
            assert generate(family.model, inputs, max_new_tokens=20, prompt_lookup_num_tokens=3) == plain
            assert generate(family.model, inputs, max_new_tokens=20, prefill_chunk_size=100) == plain

    @one_cut_of_a_kind
    @torch.no_grad()
    def test_the_whole_conversation_with_its_cache(self, family, cut):
        """generate() counts by layer 0: right if it holds everything, refused if not."""
        model, method, inputs = family.model, CUTS[cut], family.inputs("one image")
        length = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        with harness.prune(model, method, keep=0.25) as pruning:
            output = model.generate(**inputs, **length, return_dict_in_generate=True)
            ids = torch.cat([output.sequences, TURN], dim=1)
            again = partial(model.generate, ids, **length, past_key_values=output.past_key_values)
            if cut == "before":
                with pytest.raises(ValueError, match="is not the next one after the pruned cache"):
                    again()
                return
            more = again()[0, inputs["input_ids"].shape[1] :].tolist()
        logits = family.logits("one image", pruning.records[0], method, more)[-5:-1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        assert logits.argmax(-1).tolist() == more[-4:]


class TestNothingElseChanges:
    @pytest.mark.parametrize("method", ["random", *CUTS.values()], ids=str)
    @torch.no_grad()
    def test_keeping_all_is_bit_identical(self, family, method):
        model, inputs = family.model, family.inputs(*family.batch[:3])
        plain, answers = model(**inputs, output_hidden_states=True), generate(model, inputs)
        before = hooks(model)
        with harness.prune(model, method, keep=1.0) as pruning:
            pruned, again = model(**inputs, output_hidden_states=True), generate(model, inputs)
        assert torch.equal(plain.logits, pruned.logits)
        assert all(map(torch.equal, plain.hidden_states, pruned.hidden_states))
        assert answers == again
        assert [record.kept for record in pruning.records] == [list(range(record.n)) for record in pruning.records]
        assert hooks(model) == before

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"use_cache": False}, "leave the cache on"), ({"cache_implementation": "static"}, "cache_implementation")],
    )
    @torch.no_grad()
    def test_generation_that_cannot_be_pruned_is_refused(self, family, options, message):
        with pytest.raises(ValueError, match=message), harness.prune(family.model, "uniform", keep=0.3):
            generate(family.model, family.inputs("one image"), **options)

    def test_labels_are_refused(self, family):
        inputs = family.inputs("one image")
        with pytest.raises(ValueError, match="labels do not fit"), harness.prune(family.model, "uniform", keep=0.3):
            family.model(**inputs, labels=inputs["input_ids"])

    @torch.no_grad()
    def test_a_tower_that_is_read_gives_the_same_features(self, family):
        model, prompt = family.model, family.prompt("one image")
        watch, before = Watch(), hooks(model)
        with harness.prune(model, watch, keep=0.5):
            model(**family.inputs("one image"))
        assert torch.equal(watch.seen[0].features, prompt.states[0, prompt.visual])
        assert hooks(model) == before


@pytest.mark.parametrize(
    ("base", "old", "new"), [(Adapter, "adding", "added_arguments"), (VisionTower, "units", "segments")]
)
def test_a_family_that_overrides_an_old_name_is_refused(base, old, new):
    with pytest.raises(TypeError, match=f"^Mine.{old} would not be called: rename it to {new}$"):
        type("Mine", (base,), {old: lambda self: None})

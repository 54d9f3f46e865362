"""What methods are shown of the vision tower and of the question, against the attention that the model computes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from probes import Watch
from reference_prune import SAMPLES, generate, hooks, inputs_of
from tiny_families import BUILDERS, EQUALLY_LONG, OTHER_TOWERS, tiny
from tiny_internvl import VIT_6B, squares, tiny_internvl
from tiny_llavaov15 import tiny_llavaov15
from tiny_models import DINOV2, IMAGE, SIGLIP, tiny_llava, tiny_qwen
from tiny_qwen2 import tiny_qwen2
from tiny_qwen3 import tiny_qwen3
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers_names import states_of

import harness
from harness.models import FAMILIES, adapter_class, adapter_for
from methods.base import PAPER, AttentionSpec, Method, Signal

BOTH = ("last", "middle")
SPECS = {
    "official": AttentionSpec(BOTH),
    "paper": replace(PAPER, roles=BOTH),
    "all queries": AttentionSpec(BOTH, queries="all"),
    "all queries, no key of CLS": AttentionSpec(BOTH, queries="all", cls_key=False),
    "joined heads of the layer after": AttentionSpec(("after", "last"), heads="joined"),
    "mean query from 64 patches": AttentionSpec(BOTH, cls_key=False, mean_query_from=64),
    "mean query, keys of tokens": AttentionSpec(BOTH, keys="tokens", mean_query_from=1),
    "all queries, keys of tokens": AttentionSpec(BOTH, queries="all", keys="tokens"),
}


def window_order(grids):
    """Tokens of each step in the order of its windows of 2 x 2 tokens (56 pixels), row by row; naive."""
    order, start = [], 0
    for t, h, w in grids:
        for step in range(t):
            for top in range(0, h, 2):
                for left in range(0, w, 2):
                    for y in range(top, min(top + 2, h)):
                        order += [start + (step * h + y) * w + x for x in range(left, min(left + 2, w))]
        start += t * h * w
    return order


def fours(patches):
    return patches.unflatten(0, (-1, 4))


def images_of_64(patches):
    return squares(patches.unflatten(0, (-1, 64)))


@dataclass
class Tower:
    """A family's tower: a model to prune, and a reference in float64 that notes q and k of its vision layers."""

    builder: str  # of the processor: family, or family-tower
    build: Callable
    attention: str  # a layer's attention, below model.model
    grouped: Callable  # patches [P, ...] -> those of each token [N, patches, ...]
    layers: tuple[int, int, int]  # last, middle ("official"), middle ("paper")
    released: tuple[int, int, int, int]  # of the released model: its depth, and these three
    after: int  # the layer after the last, or that one again
    rows: int = 0  # of an image, the first being CLS; 0: whatever its grid says, without CLS
    has_cls: bool = True
    _signals: dict = field(default_factory=dict)

    def start(self):
        self.family = self.builder.partition("-")[0]
        self.model, self.processor = self.build(), (BUILDERS | OTHER_TOWERS)[self.builder][1]()
        self.reference, self.notes, self.states = copy.deepcopy(self.model).double(), {}, []

        def spy(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
            self.notes.setdefault(id(module), []).append((query, key))
            maps = (scaling * query @ key.mT).softmax(-1)
            return (maps @ value).transpose(1, 2), maps

        ALL_ATTENTION_FUNCTIONS.register("spy", spy)
        last = self.reference.get_submodule("model." + self.attention.format(self.layers[0]).rpartition(".")[0])
        last.register_forward_hook(lambda module, args, output: self.states.append(states_of(output)))
        self.tower_of(self.reference).config._attn_implementation = "spy"
        shown = adapter_class(self.family).media
        self.samples = [name for name, (_, _, clips) in SAMPLES.items() if "video" in shown or not clips]
        self.batch = ["mixed", "one image", "video", "adjacent"] if "video" in shown else self.samples
        if self.family in EQUALLY_LONG:
            self.batch.remove("video")
        return self

    def tower_of(self, model):
        return model.get_submodule("model." + self.attention.split(".")[0])

    def inputs(self, *samples, side="left"):
        return inputs_of(self.processor, samples, side)

    def encode(self, model, inputs, kind="image"):
        """Return the features of the images or videos of `inputs`."""
        dtype, pixels = model.dtype, "pixel_values" if kind == "image" else "pixel_values_videos"
        grids = [inputs[f"{kind}_grid_thw"]] if f"{kind}_grid_thw" in inputs else []
        return getattr(model.model, f"get_{kind}_features")(inputs[pixels].to(dtype), *grids, return_dict=True)

    def units(self, inputs, kind):
        """Return the rows of each image or step of a video, and the place of each token among those of the tower."""
        if self.rows:
            return [self.rows] * len(inputs["pixel_values"]), None
        grids = [(t, h // 2, w // 2) for t, h, w in inputs[f"{kind}_grid_thw"].tolist()]
        units = [4 * h * w + self.has_cls for t, h, w in grids for _ in range(t)]
        order = window_order(grids)
        windows = self.family == "qwen2_5_vl"
        return units, torch.tensor(order).argsort() if windows else torch.arange(len(order))

    def expected(self, sample, role, spec):
        """Return scores [N], keys [N, d], states [N, C] and the number of queries, in the order of placeholders."""
        which = (str(sample), role, str(spec))
        if which not in self._signals:
            self._signals[which] = self._expected(sample, role, spec)
        return self._signals[which]

    def _expected(self, sample, role, spec):
        inputs, tokens, count = self.inputs(sample), {}, 0
        layer = self.layers[0 if role == "last" else 1 if spec.numbering == "official" else 2]
        layer = self.after if role == "after" else layer
        module = self.reference.get_submodule("model." + self.attention.format(layer))
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels not in inputs:
                continue
            self.notes.clear(), self.states.clear()
            self.encode(self.reference, inputs, kind)
            q, k = (
                torch.cat([x for chunk in self.notes[id(module)] for x in chunk[part]], dim=1).double()
                for part in (0, 1)
            )
            if spec.heads == "joined":
                q, k = (torch.cat(list(part), dim=-1)[None] for part in (q, k))
            units, place = self.units(inputs, kind)
            assert sum(units) == q.shape[1]
            rows = torch.cat([states.flatten(0, -2) for states in self.states])
            states = [part[self.has_cls :] for part in rows.split(units)]
            scores, keys = [], []
            for queries, here in zip(q.split(units, 1), k.split(units, 1), strict=True):
                if self.has_cls and spec.queries == "cls":
                    queries = queries[:, :1]
                elif not self.has_cls and spec.mean_query_from and here.shape[1] >= spec.mean_query_from:
                    queries = queries.mean(1, keepdim=True)
                seen = here
                if spec.keys == "tokens":
                    means = self.grouped(here[:, self.has_cls :].transpose(0, 1)).mean(1).transpose(0, 1)
                    seen = torch.cat([here[:, : self.has_cls], means], dim=1)
                maps = (queries @ seen.mT * here.shape[-1] ** -0.5).softmax(-1)
                if self.has_cls and not spec.cls_key:
                    maps = maps[..., 1:] / maps[..., 1:].sum(-1, keepdim=True)
                count += queries.shape[1]
                scores.append(maps.mean(0).sum(0)[-(seen.shape[1] - self.has_cls) :])
                keys.append(here.mean(0)[self.has_cls :])
            received = torch.cat(scores) if spec.keys == "tokens" else self.grouped(torch.cat(scores)).sum(1)
            read = received, *(self.grouped(torch.cat(x)).mean(1) for x in (keys, states))
            tokens[kind] = zip(*(rows if place is None else rows[place] for rows in read), strict=True)
        ids = {getattr(self.model.config, f"{kind}_token_id"): kind for kind in tokens}
        both = [next(tokens[ids[token]]) for token in inputs["input_ids"][0].tolist() if token in ids]
        return *(torch.stack(read).float() for read in zip(*both, strict=True)), count

    def check(self, tokens, sample, spec):
        for role in spec.roles:
            scores, keys, states, count = self.expected(sample, role, spec)
            torch.testing.assert_close(tokens.vit_attention[role], scores, atol=1e-5, rtol=1e-4)
            if role == spec.roles[0]:
                torch.testing.assert_close(tokens.vit_keys, keys, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(tokens.vit_features, states, atol=1e-4, rtol=1e-4)
            if not (self.has_cls and spec.cls_key):  # each query shares out 1
                assert scores.sum() == pytest.approx(count, rel=1e-4)
        assert tokens.has_cls == self.has_cls


def qwen():
    """A tower whose middle layers of both numberings attend in windows."""
    return tiny_qwen(depth=4, fullatt_block_indexes=[3])


def alone(patches):
    return patches[:, None]


CLIP, INTERN, QWEN = (
    "vision_tower.encoder.layers.{}.self_attn",
    "vision_tower.encoder.layer.{}.attention",
    "visual.blocks.{}.attn",
)
TOWERS = {
    "qwen2_5_vl": (qwen, QWEN, fours, (3, 1, 2), (32, 31, 15, 16), 3, 0, False),
    "llava": (lambda: tiny_llava(depth=6), CLIP, alone, (4, 2, 2), (24, 22, 8, 9), 5, 17),
    f"llava-{SIGLIP}": (
        lambda: tiny_llava(depth=6, tower=SIGLIP), CLIP, alone, (4, 2, 2), (26, 24, 8, 9), 5, 16, False
    ),
    f"llava-{DINOV2}": (
        lambda: tiny_llava(depth=6, tower=DINOV2), INTERN, alone, (4, 2, 2), (24, 22, 8, 9), 5, 17
    ),
    "llavaonevision1_5": (lambda: tiny_llavaov15(depth=6), QWEN, fours, (5, 3, 4), (24, 23, 15, 16), 5),
    "qwen2_vl": (tiny_qwen2, QWEN, fours, (3, 1, 2), (32, 31, 15, 16), 3, 0, False),
    "qwen3_vl": (tiny_qwen3, QWEN, fours, (3, 1, 2), (27, 26, 12, 13), 3, 0, False),
    "internvl": (tiny_internvl, INTERN, images_of_64, (3, 1, 1), (24, 23, 8, 9), 3, 65),
    "internvl, 6B": (
        lambda: tiny_internvl(**VIT_6B), INTERN, images_of_64, (3, 1, 1), (45, 44, 15, 16), 3, 65
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=TOWERS)
def tower(request):
    return Tower(request.param.split(",")[0], *TOWERS[request.param]).start()


def test_every_family_is_here():
    """Families that cut tiles have this in tests of their own, since the rows of their prompts are no tower's rows."""
    assert set(FAMILIES) - {"llava_next", "llava_onevision"} <= set(TOWERS)


class TestVisionTower:
    @pytest.mark.parametrize("name", SPECS)
    @torch.no_grad()
    def test_attention_and_keys_of_every_sample(self, tower, name):
        for sample in tower.samples:
            watch = Watch(wanted=SPECS[name])
            with harness.prune(tower.model, watch, keep=0.5):
                tower.model(**tower.inputs(sample))
            tower.check(watch.seen[0], sample, SPECS[name])

    @pytest.mark.parametrize("how", ["forward", "generate", "beams"])
    @torch.no_grad()
    def test_in_a_batch_each_sample_gets_its_own(self, tower, how):
        watch, inputs = Watch(), tower.inputs(*tower.batch)
        with harness.prune(tower.model, watch, keep=0.5):
            if how == "forward":
                tower.model(**inputs)
            else:
                generate(tower.model, inputs, max_new_tokens=2, num_beams=3 if how == "beams" else 1)
        for sample, tokens in zip(tower.batch, watch.seen, strict=True):
            tower.check(tokens, sample, SPECS["official"])

    @torch.no_grad()
    def test_the_reference_computes_what_the_model_does(self, tower):
        inputs = tower.inputs("adjacent")
        ours, plain = (tower.encode(model, inputs).pooler_output for model in (tower.reference, tower.model))
        torch.testing.assert_close(torch.cat(list(ours)).float(), torch.cat(list(plain)), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @torch.no_grad()
    def test_the_model_keeps_its_kernel_and_its_answer(self, tower, attn):
        model, inputs = copy.deepcopy(tower.model), tower.inputs("adjacent")
        model.set_attn_implementation(attn)
        before, plain = hooks(model), tower.encode(model, inputs).pooler_output
        with harness.prune(model, Watch(), keep=0.5):
            again = tower.encode(model, inputs).pooler_output
        assert all(map(torch.equal, plain, again))
        assert hooks(model) == before
        assert tower.tower_of(model).config._attn_implementation == attn

    @torch.no_grad()
    def test_half_precision(self, tower):
        model, watch = copy.deepcopy(tower.model).to(torch.bfloat16), Watch()
        with harness.prune(model, watch, keep=0.5):
            model(**tower.inputs("adjacent"))
        assert watch.seen[0].vit_attention["last"].dtype == watch.seen[0].vit_features.dtype == torch.float32

    @torch.no_grad()
    def test_the_comparison_rounds_to_half_precision_after_each_operation(self, tower, monkeypatch):
        model, watch, read = copy.deepcopy(tower.model).to(torch.bfloat16), Watch(wanted=PAPER), []
        kind, inputs = type(adapter_for(model).tower), tower.inputs("adjacent")
        qk = kind.qk
        monkeypatch.setattr(kind, "qk", lambda *args: (read.append(qk(*args)), read[-1])[1])
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
        ((q, k),) = read
        assert q.dtype == k.dtype == torch.bfloat16
        cls, (units, place) = int(tower.has_cls), tower.units(inputs, "image")
        scores, keys = [], []
        for queries, here in zip(q.split(units, 1), k.split(units, 1), strict=True):
            queries = queries[:, :1] if cls else queries
            logits = torch.matmul(queries, here[:, cls:].transpose(-1, -2)) / here.shape[-1] ** 0.5
            scores.append(torch.softmax(logits, dim=-1).mean(dim=0).sum(dim=0))
            keys.append(here[:, cls:].transpose(0, 1))
        scores, keys = tower.grouped(torch.cat(scores)).sum(1), tower.grouped(torch.cat(keys)).mean(1).mean(1)
        order = slice(None) if place is None else place
        assert torch.equal(watch.seen[0].vit_attention["last"], scores[order].float())
        assert torch.equal(watch.seen[0].vit_keys, keys[order].float())

    def test_layers_of_the_tiny_and_of_the_released_model(self, tower):
        released, depth = copy.deepcopy(tower.model), tower.released[0]
        config = released.config.vision_config
        setattr(config, "depth" if hasattr(config, "depth") else "num_hidden_layers", depth)
        for model, layers in ((tower.model, tower.layers), (released, tower.released[1:])):
            layer = adapter_for(model).tower.layer
            roles = [("last", "official"), ("middle", "official"), ("middle", "paper")]
            assert tuple(layer(*role) for role in roles) == layers
            assert layer("last", "paper") == layers[0]
        after = tower.released[1] + (tower.family == "llava")  # which has a layer after the features
        assert adapter_for(released).tower.layer("after", "official") == after


class TestWhatIsRead:
    """On one family: no other code runs for the others."""

    @torch.no_grad()
    def test_what_was_encoded_elsewhere_cannot_be_read(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        grids = {"image_grid_thw": inputs["image_grid_thw"]}
        outside = model.model.get_image_features(inputs.pop("pixel_values"), **grids, return_dict=True)
        with pytest.raises(ValueError, match="outside the prune block"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs, mm_encoder_outputs={"image": outside})
        with pytest.raises(ValueError, match="pass pixels"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs)

    def test_a_layer_that_does_not_run_its_projection(self, processor, monkeypatch):
        model = qwen()
        monkeypatch.setattr(model.model.visual.blocks[3], "forward", lambda states, **kwargs: states)
        with pytest.raises(RuntimeError, match=r"layer 3 of 'model\.visual'"), harness.prune(model, Watch(), keep=0.5):
            model(**inputs_of(processor, ["one image"]))

    def test_a_layer_that_does_not_run(self, processor, monkeypatch):
        model = qwen()
        monkeypatch.setattr(Watch, "needs", frozenset({Signal.VIT_FEATURES}))

        def without_its_last_layer():
            with harness.prune(model, Watch(), keep=0.5):
                del model.model.visual.blocks[3]
                model(**inputs_of(processor, ["one image"]))

        with pytest.raises(RuntimeError, match=r"layer 3 of .* did not run"):
            without_its_last_layer()

    @torch.no_grad()
    def test_nothing_is_read_where_all_stays_or_nobody_asks(self, model, processor, monkeypatch):
        inputs = inputs_of(processor, ["one image"])
        computed = lambda *args: pytest.fail("attention was computed")  # noqa: E731
        monkeypatch.setattr("harness.models.vision_tower.attention_received", computed)
        with harness.prune(model, Watch(), keep=1.0):
            model(**inputs)
        with harness.prune(model, "uniform", keep=0.5):
            model(**inputs)

    @torch.no_grad()
    def test_only_the_layer_that_is_asked_for(self, model, processor):
        watch = Watch(wanted=AttentionSpec())
        with harness.prune(model, watch, keep=0.5):
            model(**inputs_of(processor, ["one image"]))
        assert set(watch.seen[0].vit_attention) == {"last"}

    def test_defaults_of_methods(self):
        assert Method().attention_spec == AttentionSpec()
        assert Watch(variant="paper", wanted=PAPER).attention_spec.mean_query_from == 6144

    def test_layers_of_the_smallest_tower(self):
        tower = adapter_for(tiny_qwen(depth=2)).tower
        roles = [("last", "paper"), ("middle", "official"), ("middle", "paper")]
        assert [tower.layer(*role) for role in roles] == [1, 0, 1]

    @torch.no_grad()
    def test_no_layer_after_that_of_the_features(self):
        """CLIP's last layer is not part of LLaVA's features."""
        model, processor, plain = tiny_llava(depth=6), BUILDERS["llava"][1](), tiny_llava(depth=6).model
        for late in model.model.vision_tower.encoder.layers[5:]:
            late.mlp.fc2.weight.fill_(torch.nan)
        watch, inputs = Watch(), inputs_of(processor, ["one image"])
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
        states = plain.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
        torch.testing.assert_close(watch.seen[0].features, plain.multi_modal_projector(states[-2][:, 1:])[0])
        torch.testing.assert_close(watch.seen[0].vit_features, states[-2][0, 1:])


SYSTEM = "<|im_start|>system\nYou help.<|im_end|>\n"
TURN = "<|im_start|>user\n{}<|im_end|>\n"
ASK = "<|im_start|>assistant\n"
PROMPTS = {
    "image first": (SYSTEM + TURN.format(f"{IMAGE}What is it?") + ASK, "What is it?"),
    "text first": (SYSTEM + TURN.format(f"What is\nthis {IMAGE}") + ASK, "What is\nthis "),
    "around": (SYSTEM + TURN.format(f"a {IMAGE} b\n {IMAGE} c?") + ASK, "a  b\n  c?"),
    "no system prompt": (TURN.format(f"{IMAGE}user\nuser?") + ASK, "user\nuser?"),
    "nothing to answer": (TURN.format(f"{IMAGE}why?"), "why?"),
    "earlier turns": (SYSTEM + TURN.format("hi") + ASK + "yes<|im_end|>\n" + TURN.format(f"{IMAGE}so?") + ASK, "so?"),
    "later turns": (SYSTEM + TURN.format(f"{IMAGE}so?") + ASK + "yes<|im_end|>\n" + TURN.format("hm") + ASK, "so?"),
    "no template": (f"see {IMAGE} what?", "see  what?"),
    "no question": (SYSTEM + TURN.format(IMAGE) + ASK, ""),
    "pocket template": (f"<|im_start|>u{IMAGE} Is it?<|im_end|><|im_start|>a", " Is it?"),
}


class TestQuestion:
    """Of the families that have Qwen's template; LLaVA's is in test_signals_llava.py."""

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "llavaonevision1_5", "qwen3_vl"])
    @torch.no_grad()
    def test_words_of_the_turn(self, family, side):
        model, processor = tiny(family, torch.float32)
        for text, question in PROMPTS.values():
            images, watch = [(56, 84)] * text.count(IMAGE), Watch()
            longer = ("x" * 200 + IMAGE, [(56, 84)], [])
            with harness.prune(model, watch, keep=0.5):
                model(**inputs_of(processor, [(text, images, []), longer], side))
            ids = processor.tokenizer(question, return_tensors="pt")["input_ids"].long()
            assert torch.equal(watch.seen[0].text, model.get_input_embeddings()(ids)[0]), text
            assert len(watch.seen[1].text) == 200

    def test_padding_that_ends_turns_as_in_the_released_models(self, model, processor):
        adapter = adapter_for(model)
        model.generation_config.eos_token_id, before = (
            [*map(processor.tokenizer.convert_tokens_to_ids, ("<|im_end|>", "<|endoftext|>"))],
            model.generation_config.eos_token_id,
        )
        try:
            for text, question in PROMPTS.values():
                images = [(56, 84)] * text.count(IMAGE)
                ids = inputs_of(processor, [(text, images, []), ("x" * 200 + IMAGE, [(56, 84)], [])])["input_ids"][0]
                rows = adapter.question(ids, (ids == model.config.image_token_id).int())
                assert processor.tokenizer.decode(ids[rows]) == question
        finally:
            model.generation_config.eos_token_id = before

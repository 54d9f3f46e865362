"""The LLaVA-OneVision-1.5 port: sizes and names of the release, arithmetic against plain float64 transcriptions."""

import json
import math

import pytest
import torch
from gathered import inputs_of
from safetensors.torch import load_file, save_file
from tiny import CHAT_TEMPLATE, HIDDEN, IMAGE, VIDEO, tiny_tokenizer
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3Model,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.models.llavaov15 import MODEL_TYPE, register
from harness.models.llavaov15.configuration import LlavaOnevision15Config, RiceVitConfig
from harness.models.llavaov15.modeling import LlavaOnevision15ForConditionalGeneration, LlavaOnevision15Model
from harness.models.llavaov15.vision import RiceVisionModel, patch_angles

TEXT = {
    "vocab_size": 512,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "initializer_range": 0.2}
GRIDS = {
    "one image": [[1, 4, 6]],
    "two images": [[1, 4, 4], [1, 2, 6]],
    "frames": [[3, 4, 2]],
    "image and frames": [[1, 6, 2], [2, 2, 4]],
}


def tiny_llavaov15(attn="sdpa", seed=0):
    """Random weights everywhere, also where a fresh model has ones and zeros."""
    ids = tiny_tokenizer().convert_tokens_to_ids
    special = {"bos_token_id": None, "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>")}
    config = LlavaOnevision15Config(
        text_config={**TEXT, **special},
        vision_config=VISION,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
    )
    config._attn_implementation = attn
    torch.manual_seed(seed)
    model = LlavaOnevision15ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for name in ("eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, special[name])
    return model


@pytest.fixture(scope="module")
def tiny():
    return tiny_llavaov15()


@pytest.fixture(scope="module")
def processor():
    patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 1}
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, **pixels),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**patches, **pixels),
        chat_template=CHAT_TEMPLATE,
    )


def pixels_of(grids, seed=0):
    grid = torch.tensor(grids)
    count = int(grid.prod(-1).sum())
    return torch.randn(count, 588, generator=torch.Generator().manual_seed(seed)), grid


def vision_of(model, unpack="released"):
    """The model's tower, with its own configuration."""
    tower = RiceVisionModel._from_config(RiceVitConfig(**{**VISION, "text_hidden_size": HIDDEN, "unpack": unpack}))
    tower.load_state_dict(model.model.visual.state_dict())
    return tower.eval()


class TestSizes:
    def test_parameters_of_the_8b_model(self):
        with torch.device("meta"):
            model = LlavaOnevision15ForConditionalGeneration(LlavaOnevision15Config())

        def count(module):
            return sum(parameter.numel() for parameter in module.parameters())

        visual, text = model.model.visual, model.model.language_model
        assert {count(block) for block in visual.blocks} == {12_596_224}
        assert count(visual.blocks) == 302_309_376
        assert count(visual.patch_embed) == 602_112
        assert (count(visual.merger.mlp), count(visual.merger.ln_q)) == (33_562_624, 2_048)
        assert {count(layer) for layer in text.layers} == {192_946_432}
        assert (count(text.layers[0].mlp), count(text.layers)) == (150_994_944, 6_946_071_552)
        assert count(text.embed_tokens) == count(model.lm_head) == 622_329_856
        rest = 1024 + 32 + 2 * 1024 + 4096  # CLS and its angles, the norms before the blocks and after the layers
        parts = 302_309_376 + 602_112 + 33_562_624 + 2_048 + 6_946_071_552 + 2 * 622_329_856
        assert count(model) == parts + rest
        assert text.config.rope_parameters["rope_theta"] == 1e6


def expected_shapes(vision, text, depth, layers):
    """Names and shapes of the release, from the description's tables."""
    d, f, w = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"]
    shapes = {
        "class_embedding": [d],
        "class_pos_emb": [1, d // vision["num_heads"] // 2],
        "patch_embed.proj.weight": [d, 3, 14, 14],
        "pre_layernorm.weight": [d],
        "pre_layernorm.bias": [d],
        "merger.ln_q.weight": [d],
        "merger.ln_q.bias": [d],
        "merger.mlp.0.weight": [4 * d, 4 * d],
        "merger.mlp.0.bias": [4 * d],
        "merger.mlp.2.weight": [w, 4 * d],
        "merger.mlp.2.bias": [w],
    }
    block = {"norm1": [d], "norm2": [d], "attn.qkv": [3 * d, d], "attn.proj": [d, d], "mlp.fc1": [f, d]}
    block["mlp.fc2"] = [d, f]
    for i in range(depth):
        for name, shape in block.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    named = {f"model.visual.{name}": shape for name, shape in shapes.items()}
    q, kv = (text[key] * text["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    m = text["intermediate_size"]
    layer = {
        **{"input_layernorm": [w], "post_attention_layernorm": [w]},
        **{"self_attn.q_proj": [q, w], "self_attn.k_proj": [kv, w], "self_attn.v_proj": [kv, w]},
        **{"self_attn.o_proj": [w, q], "self_attn.q_norm": [text["head_dim"]], "self_attn.k_norm": [text["head_dim"]]},
        **{"mlp.gate_proj": [m, w], "mlp.up_proj": [m, w], "mlp.down_proj": [w, m]},
    }
    for i in range(layers):
        named |= {f"model.language_model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    table = [text["vocab_size"], w]
    named |= {"model.language_model.embed_tokens.weight": table, "model.language_model.norm.weight": [w]}
    return {**named, "lm_head.weight": table}


def released_folder(folder, extra=()):
    """A checkpoint of random tensors under the released names, with a configuration that names code of its own."""
    config = tiny_llavaov15().config.to_dict()
    config |= {"architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"], "vision_start_token_id": 5}
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "stolen.Thing")
    config["vision_config"] |= {"embed_dim": VISION["hidden_size"]}
    del config["vision_config"]["unpack"]
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope["rope_theta"], "rope_scaling": None}
    generator = torch.Generator().manual_seed(3)
    shapes = expected_shapes(VISION, TEXT, VISION["depth"], TEXT["num_hidden_layers"])
    tensors = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors | dict(extra), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "stolen.py").write_text("raise SystemExit('code of the checkpoint was executed')")
    return folder, tensors


def plain_config(config):
    """Everything but what saving and loading add."""
    tree = json.loads(config.to_json_string(use_diff=False))
    for part in (tree, tree["text_config"], tree["vision_config"]):
        for key in ("architectures", "dtype", "transformers_version", "_name_or_path"):
            part.pop(key, None)
    return tree


class TestCheckpoint:
    def test_released_names_load_completely(self, tmp_path):
        register()
        folder, tensors = released_folder(tmp_path)
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert type(model) is LlavaOnevision15ForConditionalGeneration
        assert not any(info.values())
        state = model.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
        assert model.config.text_config.rope_parameters == {"rope_theta": 1e6, "rope_type": "default"}

    def test_saved_and_loaded_again(self, tiny, tmp_path):
        register()
        tiny.save_pretrained(tmp_path)
        assert load_file(tmp_path / "model.safetensors").keys() == tiny.state_dict().keys()
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny.parameters(), strict=True))
        assert plain_config(AutoConfig.from_pretrained(tmp_path)) == plain_config(tiny.config)
        inner, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(inner) is LlavaOnevision15Model
        assert not info["missing_keys"]

    def test_a_scorer_among_the_tensors_is_tolerated(self, tmp_path):
        register()
        parts = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
        extra = {f"model.visual.importance_scorer.{part}": torch.zeros(4, 4) for part in parts}
        folder, _ = released_folder(tmp_path, extra)
        _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not info["unexpected_keys"]

    def test_unpack_is_an_argument_of_loading(self, tmp_path):
        register()
        folder, _ = released_folder(tmp_path)
        model = AutoModelForImageTextToText.from_pretrained(folder, unpack="fixed")
        assert model.model.visual.config.unpack == model.config.unpack == "fixed"
        assert AutoModelForImageTextToText.from_pretrained(folder).config.unpack == "released"
        with pytest.raises(Exception, match="other"):
            AutoModelForImageTextToText.from_pretrained(folder, unpack="other")

    def test_a_missing_tensor_is_reported(self, tmp_path):
        register()
        folder, tensors = released_folder(tmp_path)
        del tensors["model.visual.class_pos_emb"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert info["missing_keys"] == {"model.visual.class_pos_emb"}

    def test_widths(self):
        assert LlavaOnevision15Config().vision_config.text_hidden_size == 4096
        assert LlavaOnevision15Config(text_config={"hidden_size": 2560}).vision_config.text_hidden_size == 2560
        with pytest.raises(ValueError, match="text_hidden_size is 2560"):
            LlavaOnevision15Config(vision_config={"text_hidden_size": 2560})

    def test_what_the_port_does_not_compute_is_refused(self):
        with pytest.raises(ValueError, match="full attention"):
            LlavaOnevision15Config(text_config={"use_sliding_window": True, "sliding_window": 8})
        with pytest.raises(Exception, match="temporal_patch_size"):
            LlavaOnevision15Config(vision_config={"temporal_patch_size": 2})

    def test_tied_embeddings(self):
        config = LlavaOnevision15Config(text_config={**TEXT, "tie_word_embeddings": True}, vision_config=VISION)
        model = LlavaOnevision15ForConditionalGeneration(config)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        assert tiny_llavaov15().lm_head.weight is not tiny_llavaov15().get_input_embeddings().weight


def norm64(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu64(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def rotate64(x, angles):
    """x [N, d], angles [N, d / 2]: pairs (j, j + d / 2) turn by angle j."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def plain_vision(model, pixels, grids, fixed):
    """The tower in float64, one unit, one head at a time."""
    w = {name: tensor.double() for name, tensor in model.model.visual.state_dict().items()}
    width, heads = VISION["hidden_size"], VISION["num_heads"]
    size, quarter = width // heads, width // heads // 2
    patches, outputs, start, lengths = pixels.double(), [], 0, []
    for t, h, v in grids:
        places = [(2 * r + i, 2 * c + j) for r in range(h // 2) for c in range(v // 2) for i in (0, 1) for j in (0, 1)]
        frequencies = [10_000 ** (-2 * j / quarter) for j in range(quarter // 2)]
        angles = [[r * f for f in frequencies] + [c * f for f in frequencies] for r, c in places]
        angles = torch.cat([w["class_pos_emb"], torch.tensor(angles, dtype=torch.float64)])
        for _ in range(t):
            x = patches[start : start + h * v] @ w["patch_embed.proj.weight"].flatten(1).T
            x = torch.cat([w["class_embedding"].view(1, -1), x])
            x = norm64(x, w["pre_layernorm.weight"], w["pre_layernorm.bias"], 1e-5)
            for i in range(VISION["depth"]):
                b = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in w.items()}
                y = norm64(x, b["norm1.weight"], b["norm1.bias"], 1e-5) @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
                found = []
                for head in range(heads):
                    q, k, v_ = (y[:, part * width + head * size :][:, :size] for part in range(3))
                    scores = rotate64(q, angles) @ rotate64(k, angles).T / math.sqrt(size)
                    found.append(scores.softmax(-1) @ v_)
                x = x + torch.cat(found, -1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
                y = norm64(x, b["norm2.weight"], b["norm2.bias"], 1e-5) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
                x = x + gelu64(y) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
            outputs.append(x)
            lengths.append(h * v)
            start += h * v
    packed = torch.cat(outputs)
    if fixed:
        rows = torch.cat([output[1:] for output in outputs])
    else:
        rows, begin = torch.zeros(sum(lengths), width, dtype=torch.float64), 0
        for length in lengths:
            rows[begin : begin + length] = packed[begin + 1 : begin + length + 1]
            begin += length
    x = norm64(rows, w["merger.ln_q.weight"], w["merger.ln_q.bias"], 1e-5).reshape(-1, 4 * width)
    x = gelu64(x @ w["merger.mlp.0.weight"].T + w["merger.mlp.0.bias"])
    return rows, x @ w["merger.mlp.2.weight"].T + w["merger.mlp.2.bias"]


class TestVision:
    @pytest.mark.parametrize("unpack", ["released", "fixed"])
    @pytest.mark.parametrize("name", GRIDS)
    @torch.no_grad()
    def test_like_the_plain_transcription(self, tiny, name, unpack):
        pixels, grid = pixels_of(GRIDS[name])
        output = vision_of(tiny, unpack)(pixels, grid_thw=grid)
        rows, tokens = plain_vision(tiny, pixels, GRIDS[name], unpack == "fixed")
        torch.testing.assert_close(output.last_hidden_state.double(), rows, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.pooler_output.double(), tokens, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_unpacking_differs_from_the_second_unit_on(self, tiny):
        pixels, grid = pixels_of(GRIDS["frames"])
        released, fixed = (vision_of(tiny, kind)(pixels, grid_thw=grid).last_hidden_state for kind in UNPACK)
        assert torch.equal(released[:8], fixed[:8])
        assert (released[8:] - fixed[8:]).abs().amin(0).max() > 1e-3
        assert torch.equal(released[9:16], fixed[8:15])  # one row per earlier unit
        assert torch.equal(released[18:24], fixed[16:22])
        single = [vision_of(tiny, kind)(pixels[:8], grid_thw=torch.tensor([[1, 4, 2]])) for kind in UNPACK]
        assert torch.equal(single[0].pooler_output, single[1].pooler_output)

    @pytest.mark.parametrize("prompts", [None, [0, 0, 0, 0], [0, 0, 1, 2], [0, 3, 3, 3], [1, 2, 3, 4]])
    @torch.no_grad()
    def test_released_unpacking_begins_anew_with_every_prompt(self, tiny, prompts):
        tower, sizes = vision_of(tiny), [[1, 4, 4], [2, 2, 6], [1, 2, 2], [1, 4, 2]]
        pixels, grid = pixels_of(sizes)
        index = None if prompts is None else torch.tensor(prompts)
        together = tower(pixels, grid_thw=grid, prompts=index).pooler_output
        alone, parts = [], pixels.split(grid.prod(-1).tolist())
        for prompt in sorted(set(prompts or [0])):
            mine = [i for i in range(4) if prompts is None or prompts[i] == prompt]
            alone.append(tower(torch.cat([parts[i] for i in mine]), grid_thw=grid[mine]).pooler_output)
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_units_do_not_see_each_other(self, tiny):
        tower = vision_of(tiny, "fixed")
        pixels, grid = pixels_of(GRIDS["two images"])
        together = tower(pixels, grid_thw=grid).pooler_output
        alone = [
            tower(part, grid_thw=g.view(1, 3)).pooler_output
            for part, g in zip(pixels.split([16, 12]), grid, strict=True)
        ]
        torch.testing.assert_close(together, torch.cat(alone))

    @torch.no_grad()
    def test_kernels_agree(self, tiny):
        ALL_ATTENTION_FUNCTIONS.register("flash_like", flash_like)
        pixels, grid = pixels_of(GRIDS["image and frames"])
        outputs = []
        for attn in ("sdpa", "eager", "flash_like"):
            tower = vision_of(tiny)
            tower.config._attn_implementation = attn
            outputs.append(tower(pixels, grid_thw=grid).pooler_output)
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-5)

    def test_rotation_is_float32_in_half_precision(self, tiny):
        seen = []
        tower = vision_of(tiny).bfloat16()
        hook = tower.blocks[0].attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.extend(kwargs["position_embeddings"]), with_kwargs=True
        )
        pixels, grid = pixels_of(GRIDS["one image"])
        assert tower(pixels, grid_thw=grid).pooler_output.dtype == torch.bfloat16
        hook.remove()
        assert [tensor.dtype for tensor in seen] == [torch.float32] * 2
        assert [list(tensor.shape) for tensor in seen] == [[25, 16]] * 2  # a CLS row in front, the head's width

    def test_angles_of_the_released_size(self):
        angles = patch_angles(torch.tensor([[2, 4, 2]]), merge=2, dim=32)
        assert angles.shape == (16, 32)
        assert torch.equal(angles[:8], angles[8:])
        assert angles[:8, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]  # rows of the patches, in 2x2 order
        assert angles[:8, 16].tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
        torch.testing.assert_close(angles[2, :16], 10_000 ** -(torch.arange(16) / 16))

    def test_what_does_not_fit_is_named(self, tiny):
        tower = vision_of(tiny)
        pixels, grid = pixels_of(GRIDS["one image"])
        with pytest.raises(ValueError, match=r"1176 values a patch.*takes 588.*temporal_patch_size 1"):
            tower(pixels.repeat(1, 2), grid_thw=grid)
        with pytest.raises(ValueError, match="have 24 patches, pixel_values 20"):
            tower(pixels[:20], grid_thw=grid)
        with pytest.raises(ValueError, match="multiples of 2"):
            tower(pixels[:9], grid_thw=torch.tensor([[1, 3, 3]]))


UNPACK = ("released", "fixed")


def plain_decoder(model, embeds, positions):
    """Logits in float64 of one sequence `embeds` [S, D], one head at a time."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    heads, size, groups = TEXT["num_attention_heads"], TEXT["head_dim"], 2
    angles = positions.double().view(-1, 1) * torch.tensor([1e6 ** (-2 * j / size) for j in range(size // 2)]).double()

    def rms(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    x = embeds.double()
    hidden_future = torch.ones(len(x), len(x)).triu(1).bool()
    for i in range(TEXT["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}"
        y, found = rms(x, f"{layer}.input_layernorm"), []
        for head in range(heads):
            attn, kv = f"{layer}.self_attn", head // groups
            q = y @ w[f"{attn}.q_proj.weight"][head * size :][:size].T
            k = y @ w[f"{attn}.k_proj.weight"][kv * size :][:size].T
            v = y @ w[f"{attn}.v_proj.weight"][kv * size :][:size].T
            q, k = rotate64(rms(q, f"{attn}.q_norm"), angles), rotate64(rms(k, f"{attn}.k_norm"), angles)
            scores = (q @ k.T / math.sqrt(size)).masked_fill(hidden_future, -math.inf)
            found.append(scores.softmax(-1) @ v)
        x = x + torch.cat(found, -1) @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = rms(x, f"{layer}.post_attention_layernorm")
        gate, up = y @ w[f"{layer}.mlp.gate_proj.weight"].T, y @ w[f"{layer}.mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    return rms(x, "model.language_model.norm") @ w["lm_head.weight"].T


class TestDecoder:
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @torch.no_grad()
    def test_whole_model_like_the_plain_transcriptions(self, processor, attn):
        model, inputs = tiny_llavaov15(attn), inputs_of(processor, ["mixed"])
        ids = inputs["input_ids"][0]
        embeds = model.get_input_embeddings().weight[ids].double()
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            _, tokens = plain_vision(model, inputs[pixels], inputs[f"{kind}_grid_thw"].tolist(), fixed=False)
            embeds[ids == getattr(model.config, f"{kind}_token_id")] = tokens
        expected = plain_decoder(model, embeds, torch.arange(len(ids)))
        torch.testing.assert_close(model(**inputs).logits[0].double(), expected, atol=2e-3, rtol=1e-3)

    @torch.no_grad()
    def test_like_qwen3(self, tiny):
        stock = Qwen3Model(Qwen3Config(**TEXT, rope_parameters={"rope_type": "default", "rope_theta": 1e6})).eval()
        stock.load_state_dict(tiny.model.language_model.state_dict())
        ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
        ours, theirs = (model(input_ids=ids, output_hidden_states=True) for model in (tiny.model.language_model, stock))
        assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 3

    @torch.no_grad()
    def test_scale_of_the_query_and_key_projections_does_not_matter(self):
        model = tiny_llavaov15()
        ids = torch.arange(20, 40).view(1, -1)
        before = model(input_ids=ids).logits
        model.model.language_model.layers[0].self_attn.q_proj.weight *= 7.0
        model.model.language_model.layers[1].self_attn.k_proj.weight *= 5.0
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like"])
    @torch.no_grad()
    def test_positions_may_jump(self, attn):
        """Where tokens are missing; Qwen3Model takes a jump for the start of another sequence."""
        model = tiny_llavaov15()
        with_kernel(model, attn)
        embeds = model.get_input_embeddings()(torch.arange(30, 42))
        positions = torch.tensor([1, 2, 3, 7, 8, 20, 21, 22, 30, 31, 32, 33])
        expected = plain_decoder(model, embeds, positions)
        for use_cache in (True, False):
            logits = model(inputs_embeds=embeds[None], position_ids=positions[None], use_cache=use_cache).logits
            torch.testing.assert_close(logits[0].double(), expected, atol=1e-3, rtol=1e-3)


def with_kernel(model, attn):
    """Give the decoder a kernel; "flash_like" keeps FlashAttention's contract on the CPU."""
    ALL_ATTENTION_FUNCTIONS.register("flash_like", flash_like)
    ALL_MASK_ATTENTION_FUNCTIONS.register("flash_like", flash_attention_mask)
    model.model.language_model.config._attn_implementation = attn


def flash_like(module, query, key, value, attention_mask, scaling, position_ids=None, cu_seq_lens_q=None, **kwargs):
    """Padding comes as a mask [B, S], units as bounds; positions would mean packed sequences and must not come."""
    assert position_ids is None
    assert attention_mask is None or attention_mask.ndim == 2
    output = torch.zeros_like(query)
    groups, steps = query.shape[1] // key.shape[1], query.shape[2]
    if cu_seq_lens_q is not None:
        assert cu_seq_lens_q.dtype == torch.int32
        assert kwargs["max_length_q"] == cu_seq_lens_q.diff().max()
        for start, end in zip(cu_seq_lens_q[:-1].tolist(), cu_seq_lens_q[1:].tolist(), strict=True):
            part = (tensor[:, :, start:end] for tensor in (query, key, value))
            output[:, :, start:end] = functional.scaled_dot_product_attention(*part, scale=scaling)
        return output.transpose(1, 2), None
    for row in range(len(query)):
        rows = slice(None) if attention_mask is None else attention_mask[row].bool()
        new = slice(None) if attention_mask is None else attention_mask[row, -steps:].bool()
        q, k, v = query[row][:, new], key[row][:, rows], value[row][:, rows]
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).log()
        output[row][:, new] = (q @ k.transpose(1, 2) * scaling + seen).softmax(-1) @ v
    return output.transpose(1, 2), None


def answers(model, inputs, **kwargs):
    output = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **kwargs)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


class TestGeneration:
    NAMES = ("one image", "video", "text between", "mixed")

    @pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like"])
    @torch.no_grad()
    def test_left_padded_batch_equals_single(self, processor, attn):
        model = tiny_llavaov15()
        with_kernel(model, attn)
        together = inputs_of(processor, self.NAMES)
        assert not bool(together["attention_mask"].all())
        logits, batch = model(**together).logits, answers(model, together)
        for row, name in enumerate(self.NAMES):
            single = inputs_of(processor, [name])
            alone = model(**single).logits[0]
            torch.testing.assert_close(logits[row, -len(alone) :], alone, atol=1e-4, rtol=1e-4)
            assert [batch[row]] == answers(model, single)

    @torch.no_grad()
    def test_with_and_without_cache(self, tiny, processor):
        inputs = inputs_of(processor, self.NAMES)
        expected = answers(tiny, inputs)
        for other in ({"use_cache": False}, {"cache_implementation": "static"}):
            assert answers(tiny, inputs, **other) == expected

    @torch.no_grad()
    def test_decoding_by_hand(self, tiny, processor):
        """Positions come from the mask, which holds the cached tokens too."""
        inputs = inputs_of(processor, self.NAMES)
        full = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.full((4, 2), 65)], 1)}
        full["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(4, 2, dtype=torch.long)], 1)
        cache = tiny(**inputs, use_cache=True).past_key_values
        mask = full["attention_mask"]
        step = tiny(input_ids=full["input_ids"][:, -2:], attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(step, tiny(**full).logits[:, -2:], atol=1e-4, rtol=1e-4)
        assert torch.equal(tiny(**full, logits_to_keep=1).logits, tiny(**full).logits[:, -1:])

    @torch.no_grad()
    def test_beams_and_several_answers(self, tiny, processor):
        inputs = inputs_of(processor, ["one image"])
        beams = tiny.generate(**inputs, max_new_tokens=4, num_beams=3, num_return_sequences=2, do_sample=False)
        assert beams.shape[0] == 2
        assert answers(tiny, inputs) == answers(tiny, inputs, num_beams=1)

    @torch.no_grad()
    def test_text_alone(self, tiny, processor):
        inputs = inputs_of(processor, [("only words", [], []), ("fewer", [], [])])
        single = inputs_of(processor, [("fewer", [], [])])
        assert answers(tiny, inputs)[1:] == answers(tiny, single)

    def test_loss_trains_every_part(self, processor):
        model, inputs = tiny_llavaov15(), inputs_of(processor, ["one image"])
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestMismatch:
    def test_counts(self, tiny, processor):
        inputs = inputs_of(processor, ["one image"])
        short = {key: inputs[key][:, 10:] for key in ("input_ids", "attention_mask")}
        with pytest.raises(ValueError, match="16 image placeholders for 20 image tokens"):
            tiny(**{**inputs, **short})
        with pytest.raises(ValueError, match="20 image placeholders for 0 image tokens"):
            tiny(input_ids=inputs["input_ids"])
        with pytest.raises(ValueError, match="0 video placeholders for 20 video tokens"):
            tiny(**inputs, pixel_values_videos=inputs["pixel_values"], video_grid_thw=inputs["image_grid_thw"])

    def test_what_is_missing(self, tiny, processor):
        inputs = inputs_of(processor, ["one image"])
        embeds = tiny.get_input_embeddings()(inputs["input_ids"])
        with pytest.raises(ValueError, match="image_grid_thw"):
            tiny(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
        pixels = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
        with pytest.raises(ValueError, match="need input_ids"):
            tiny(inputs_embeds=embeds, **pixels)
        with pytest.raises(ValueError, match="pass input_ids or inputs_embeds"):
            tiny()


class TestProcessor:
    def older(self, folder, processor):
        """The files of older releases: no processor_config.json, one file for images and videos."""
        processor.tokenizer.save_pretrained(folder)
        pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28}
        patches = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 1}
        names = {"image_processor_type": "Qwen2VLImageProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, **patches, **names}))
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))

    @pytest.mark.parametrize("files", ["saved", "older", "older with its class"])
    @torch.no_grad()
    def test_found_from_the_checkpoints_own_files(self, tmp_path, processor, files):
        register()
        folder, _ = released_folder(tmp_path / MODEL_TYPE)
        if files == "saved":
            processor.save_pretrained(folder)
        else:
            self.older(folder, processor)
        if files == "older with its class":
            file = folder / "preprocessor_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "processor_class": "Qwen2_5_VLProcessor"}))
        found = AutoProcessor.from_pretrained(folder)
        assert type(found) is Qwen2_5_VLProcessor
        assert found.image_processor.temporal_patch_size == found.video_processor.temporal_patch_size == 1
        assert found.image_processor.size["longest_edge"] == 64 * 28 * 28
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "?"}]}]
        prompt = found.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert IMAGE in prompt
        assert VIDEO in prompt
        inputs = inputs_of(found, ["mixed"])
        assert inputs["pixel_values"].shape[1] == inputs["pixel_values_videos"].shape[1] == 588
        assert inputs["video_grid_thw"].tolist() == [[4, 4, 6]]
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert model(**inputs).logits.isfinite().all()

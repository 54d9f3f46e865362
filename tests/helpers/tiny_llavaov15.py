"""LLaVA-OneVision-1.5 for tests: a tiny model, a checkpoint as released, and plain float64 implementations."""

import json
import math

import torch
from safetensors.torch import save_file
from tiny_models import CHAT_TEMPLATE, HIDDEN, built, ends, placeholders, tiny_tokenizer
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from harness.models.llavaov15.configuration import LlavaOnevision15Config, RiceVitConfig
from harness.models.llavaov15.modeling import LlavaOnevision15ForConditionalGeneration
from harness.models.llavaov15.vision import RiceVisionModel

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


PATCHES = {
    **{"patch_size": 14, "merge_size": 2, "temporal_patch_size": 1},
    **{"min_pixels": 4 * 28 * 28, "max_pixels": 64 * 28 * 28},
}


GRIDS = {
    "one image": [[1, 4, 6]],
    "two images": [[1, 4, 4], [1, 2, 6]],
    "frames": [[3, 4, 2]],
    "image and frames": [[1, 6, 2], [2, 2, 4]],
}


def tiny_llavaov15(attn="sdpa", seed=0, layers=2, depth=2, dtype=torch.float32, **options):
    """Build a model of random weights, also where a new model has ones and zeros."""
    config = LlavaOnevision15Config(
        text_config={**TEXT, **ends(), "num_hidden_layers": layers},
        vision_config={**VISION, "depth": depth},
        **placeholders(),
        **options,
    )
    model = built(LlavaOnevision15ForConditionalGeneration, config, dtype, attn, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def llavaov15_processor():
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PATCHES),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**PATCHES),
        chat_template=CHAT_TEMPLATE,
    )


def save_older_files(processor, folder):
    """Write the files of older releases: no processor_config.json, one file for images and videos."""
    processor.tokenizer.save_pretrained(folder)
    about = {**PATCHES, "image_processor_type": "Qwen2VLImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


def pixels_of(grids, seed=0):
    grid = torch.tensor(grids)
    count = int(grid.prod(-1).sum())
    return torch.randn(count, 588, generator=torch.Generator().manual_seed(seed)), grid


def vision_of(model, unpack="released"):
    """Return a copy of the model's tower, with its own configuration."""
    tower = RiceVisionModel._from_config(RiceVitConfig(**{**VISION, "text_hidden_size": HIDDEN, "unpack": unpack}))
    tower.load_state_dict(model.model.visual.state_dict())
    return tower.eval()


def expected_shapes(vision, text, depth, layers):
    """Return names and shapes of the released tensors, from the tables of its description."""
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
    """Write a checkpoint of random tensors under the released names, whose configuration refers to remote code."""
    config = tiny_llavaov15().config.to_dict()
    config |= {"architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"]}
    del config["vision_end_token_id"]
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
    """Return the configuration without the keys that saving and loading add."""
    tree = json.loads(config.to_json_string(use_diff=False))
    for part in (tree, tree["text_config"], tree["vision_config"]):
        for key in ("architectures", "dtype", "transformers_version", "_name_or_path"):
            part.pop(key, None)
    return tree


def norm64(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def gelu64(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def rotate64(x, angles):
    """Rotate the pairs (j, j + d / 2) of x [N, d] by angle j of angles [N, d / 2]."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


def plain_vision(model, pixels, grids, fixed):
    """Compute the tower in float64, one image or frame and one head at a time."""
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
                contexts = []
                for head in range(heads):
                    q, k, v_ = (y[:, part * width + head * size :][:, :size] for part in range(3))
                    scores = rotate64(q, angles) @ rotate64(k, angles).T / math.sqrt(size)
                    contexts.append(scores.softmax(-1) @ v_)
                x = x + torch.cat(contexts, -1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
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


UNPACK = ("released", "fixed")


def plain_decoder(model, embeds, positions):
    """Compute the logits in float64 of one sequence `embeds` [S, D], one head at a time."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    heads, size, groups = TEXT["num_attention_heads"], TEXT["head_dim"], 2
    angles = positions.double().view(-1, 1) * torch.tensor([1e6 ** (-2 * j / size) for j in range(size // 2)]).double()

    def rms(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    x = embeds.double()
    hidden_future = torch.ones(len(x), len(x)).triu(1).bool()
    for i in range(TEXT["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}"
        y, contexts = rms(x, f"{layer}.input_layernorm"), []
        for head in range(heads):
            attn, kv = f"{layer}.self_attn", head // groups
            q = y @ w[f"{attn}.q_proj.weight"][head * size :][:size].T
            k = y @ w[f"{attn}.k_proj.weight"][kv * size :][:size].T
            v = y @ w[f"{attn}.v_proj.weight"][kv * size :][:size].T
            q, k = rotate64(rms(q, f"{attn}.q_norm"), angles), rotate64(rms(k, f"{attn}.k_norm"), angles)
            scores = (q @ k.T / math.sqrt(size)).masked_fill(hidden_future, -math.inf)
            contexts.append(scores.softmax(-1) @ v)
        x = x + torch.cat(contexts, -1) @ w[f"{layer}.self_attn.o_proj.weight"].T
        y = rms(x, f"{layer}.post_attention_layernorm")
        gate, up = y @ w[f"{layer}.mlp.gate_proj.weight"].T, y @ w[f"{layer}.mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    return rms(x, "model.language_model.norm") @ w["lm_head.weight"].T


def answers(model, inputs, **kwargs):
    output = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **kwargs)
    return output[:, inputs["input_ids"].shape[1] :].tolist()

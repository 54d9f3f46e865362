"""A dress rehearsal at full size: python scripts/rehearse.py MODEL FOLDER [--keep 0.25] [--limit 2]

MODEL is qwen25vl3b, qwen25vl7b or llava15_7b. FOLDER gets a checkpoint in the released layout: the full-size
configuration, shards of bfloat16 noise, the released image processor's settings, and the real tokenizer: Qwen's
vocabulary is in the wheel of `dashscope`, Llama's in the source archive of `llama-cpp-python` (pip downloads them; the
latter needs `pip install gguf`). Then the main job runs on two local benchmarks of pictures of 1 to 2 megapixels,
unpruned and with IDPruner, and its decoding is proved. Answers of noise mean nothing: what is printed is whether it
fits and finishes, peak memory, and where the time goes.
"""

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from harness.core.config import shipped  # noqa: E402  (this checkout, whatever is installed)
from harness.core.files import to_json  # noqa: E402
from harness.models.cost import architectures  # noqa: E402
from harness.models.scorer import VisionSelectorScorer, save_scorer  # noqa: E402

SHARD = 2_000_000_000  # bytes
SPREAD = 0.02  # standard deviation of weights; those of norms are 1
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
WORDS += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = [  # from number 151,643 on
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]


def write_weights(folder: Path, config: Any, seed: int = 0) -> int:
    """Write noise in shards, one in memory at a time, with the names that the model's own class saves; return bytes."""
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    tensors = [(name, tensor.shape) for name, tensor in model.state_dict().items() if name not in tied]
    generator = torch.Generator().manual_seed(seed)
    shards: list[dict[str, torch.Size]] = [{}]
    for name, shape in tensors:
        if shards[-1] and sum(size.numel() * 2 for size in shards[-1].values()) + shape.numel() * 2 > SHARD:
            shards.append({})
        shards[-1][name] = shape
    index: dict[str, str] = {}
    for place, shard in enumerate(shards, 1):
        file = f"model-{place:05d}-of-{len(shards):05d}.safetensors"
        drawn = {name: noise(name, shape, generator) for name, shape in shard.items()}
        save_file(drawn, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(2 * shape.numel() for _, shape in tensors)
    about = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(to_json(about))
    return total


def noise(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return ones for a norm's weight, zeros for a bias, noise for all else."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=torch.bfloat16)
    if "norm" in name or "ln_q" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, SPREAD, generator=generator)


def merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the two parts that each token of several bytes is made of, by joining the pair of lowest rank first."""
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            joined = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(range(len(joined)), key=joined.__getitem__)
            if joined[best] >= rank:
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            yield parts[0], parts[1]


def write_tokenizer(folder: Path, ranks: dict[bytes, int]) -> None:
    """Write Qwen's BPE as `tokenizer.json`, with its special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = [(spelled(a), spelled(b)) for a, b in merges(ranks)]
    tokenizer = Tokenizer(models.BPE({spelled(token): rank for token, rank in ranks.items()}, pairs))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(to_json({**about, "model_max_length": 131072}))


def download(folder: Path, package: str, *options: str) -> None:
    """Download a package without what it depends on."""
    call = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, "--dest", str(folder), package]
    subprocess.run(call, check=True, stderr=subprocess.DEVNULL)


def qwen_ranks(folder: Path) -> dict[bytes, int]:
    """Return token -> rank of Qwen's BPE, from the wheel of `dashscope`."""
    download(folder, "dashscope==2.0.2")
    (wheel,) = folder.glob("dashscope-*.whl")
    lines = zipfile.ZipFile(wheel).read("dashscope/resources/qwen.tiktoken").strip().split(b"\n")
    wheel.unlink()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


def write_qwen(folder: Path, config: Any, ranks: dict[bytes, int]) -> None:
    """Write what a released folder of Qwen2.5-VL has beside weights and configuration."""
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=[151645, 151643], pad_token_id=151643).save_pretrained(folder)
    write_tokenizer(folder, ranks)
    pocket = Path(shipped("harness://pocket/weights"))
    (folder / "chat_template.jinja").write_text((pocket / "chat_template.jinja").read_text())
    processor = json.loads((pocket / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}  # as released
    (folder / "processor_config.json").write_text(to_json(processor))


def llama_tokenizer(folder: Path) -> Any:
    """Return Llama's tokenizer, from the source archive of `llama-cpp-python`."""
    from transformers import AutoTokenizer

    download(folder, "llama-cpp-python==0.3.36", "--no-binary=:all:")
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as members:
        name = next(name for name in members.getnames() if name.endswith("/ggml-vocab-llama-spm.gguf"))
        members.extract(name, folder, filter="data")
    archive.unlink()
    return AutoTokenizer.from_pretrained(folder / Path(name).parent, gguf_file=Path(name).name)


def write_llava(folder: Path, config: Any, tokenizer: Any) -> None:
    """Write what a released folder of LLaVA-1.5 has beside weights and configuration."""
    from transformers import GenerationConfig

    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=32001).save_pretrained(folder)
    tokenizer.add_tokens("<image>", special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(LLAVA_PROMPT)
    side = config.vision_config.image_size
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(to_json({**CLIP_PICTURES, **size}))
    (folder / "processor_config.json").write_text(to_json(LLAVA_PROCESSOR))


LLAVA_PROMPT = """{% for message in messages %}{{ message.role.upper() }}: {% for part in message.content %}\
{{ '<image>\n' if part.type == 'image' else part.text }}{% endfor %} {% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""
CLIP_PICTURES = {
    **{"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "resample": 3},
    **dict.fromkeys(["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"], True),
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
LLAVA_PROCESSOR = {
    **{"processor_class": "LlavaProcessor", "image_token": "<image>", "patch_size": 14},
    **{"num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
}
QWEN = ("Qwen2_5_VLForConditionalGeneration", qwen_ranks, write_qwen)
MODELS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path, Any, Any], None]]] = {
    "qwen25vl3b": QWEN,
    "qwen25vl7b": QWEN,
    "llava15_7b": ("LlavaForConditionalGeneration", llama_tokenizer, write_llava),
}


def write_checkpoint(folder: Path, name: str, vocabulary: Any, tiny: bool = False) -> int:
    """Write everything that a released folder has; return the bytes of its weights."""
    architecture, _, write_rest = MODELS[name]
    folder.mkdir(parents=True)
    config = architectures.config_of(name, tiny)
    total = write_weights(folder, config)
    config.architectures, config.dtype = [architecture], "bfloat16"
    config.save_pretrained(folder)
    write_rest(folder, config, vocabulary)
    width = config.text_config.hidden_size
    hidden = width // 2 if tiny else architectures.scorer_hidden(name)
    save_scorer(VisionSelectorScorer(width, hidden, init_scale=SPREAD), folder / "scorer")
    return total


TASK = """task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {name}.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
"""
UTILS = """def picture(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]
"""
QUESTIONS = {
    "rehearse_choice": "What is in the middle?\\nA. a circle\\nB. a square\\nAnswer with the option's letter.",
    "rehearse_open": "What is drawn here? Answer with one word.",
}


def write_benchmarks(folder: Path, rows: int, side: tuple[int, int] = (1536, 1024)) -> Path:
    """Write two benchmarks as lmms-eval tasks: a choice and an open question about pictures of 1 to 2 megapixels."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture

    folder.mkdir()
    (folder / "utils.py").write_text(UTILS)
    rng = np.random.default_rng(0)
    form = Features({"image": Picture(), "question": Value("string"), "answer": Value("string")})
    for place, (name, question) in enumerate(QUESTIONS.items()):
        table = []
        for row in range(rows):
            width, height = (side[0] + 128 * row, side[1]) if place else (side[1], side[1] + 64 * row)
            picture = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            ImageDraw.Draw(picture).ellipse((width // 3, height // 3, 2 * width // 3, 2 * height // 3), fill="orange")
            stream = io.BytesIO()
            picture.save(stream, "JPEG")
            table.append({"image": {"bytes": stream.getvalue(), "path": None}, "question": question, "answer": "A"})
        Dataset.from_list(table, features=form).to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name))
    return folder


def run(place: Path, model: str, tasks: Path, keep: float, limit: int) -> dict[str, Any]:
    """Run the main job, unpruned and pruned, in a process; return minutes, peak memory, and what both runs recorded."""
    call = [sys.executable, "-m", "harness", "method=idpruner", f"model={model}", f"model.pretrained={place}"]
    call += [f"keep={keep}", "model.dtype=bfloat16", f"tasks=[{','.join(QUESTIONS)}]", f"tasks.include={tasks}"]
    call += [f"limit={limit}", f"runs={place.parent / 'runs'}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(call, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(call)} ended with {os.waitstatus_to_exitcode(status)}")
    found: dict[str, Any] = {
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 1),
    }
    for finished in sorted((place.parent / "runs" / model).glob("*/*/DONE")):
        about, metrics = (json.loads((finished.parent / name).read_text()) for name in ("run.json", "metrics.json"))
        done = json.loads(finished.read_text())
        found[f"{about['method']} {about['budget']}"] = {
            "seconds": done["stages"],
            "decoding": done["decoding"],
            "visual_tokens": metrics["visual_tokens"],
        }
    return found


def main() -> None:
    """Make the folder unless it is there, run both, and print what came out."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--limit", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the JSON that is printed")
    args = parser.parse_args()
    place = args.folder.absolute() / args.model
    began = time.perf_counter()
    if not place.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        total = write_checkpoint(place, args.model, MODELS[args.model][1](args.folder))
        print(f"{total / 1e9:.1f} GB of weights in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    tasks = args.folder.absolute() / "tasks"
    tasks = tasks if tasks.exists() else write_benchmarks(tasks, args.limit)
    found = {"model": args.model, "cores": os.cpu_count(), **run(place, args.model, tasks, args.keep, args.limit)}
    text = to_json(found)
    print(text, end="")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()

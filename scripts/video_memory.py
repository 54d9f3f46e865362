"""Measure the peak memory of one question about a long clip, by the number of frames.

`python scripts/video_memory.py` (half an hour on one core) prints the table of docs/videos.md. A clip of 1920 x 1080
pixels is decoded, resized to Qwen2.5-VL's limit of 768 tokens per frame, and asked about. The model is random, in
bfloat16, as wide as Qwen2.5-VL-3B, with two layers in each part. More layers would add weights and KV cache, but
nothing to what a pass holds at once. Each number of frames has processes of its own, whose peak is read after each
step. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.core.console import print_json

METHOD, KEEP = "visionzip", 0.25  # reads the tower, and merges
STEPS = {"at_once": "fetch_video", "decoded": "decoding", "inputs": "inputs", "answer": "answer"}  # and their columns
GB = 2**20  # kB
HELPERS = Path(__file__).parent.parent / "tests" / "helpers"
WIDE = {
    "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_attention_heads": 16, "vocab_size": 151936},
    "vision": {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048},
    "sections": [16, 24, 24],
    "clip": (1920, 1080),
}
SMALL = {
    "text": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 512},
    "vision": {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64},
    "sections": [2, 3, 3],
    "clip": (192, 108),
}


def write_clip(file: Path, frames: int, width: int, height: int) -> None:
    """Write noise that moves."""
    import av
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (height, width + 8 * frames, 3), dtype=np.uint8)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=2, options={"preset": "ultrafast", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.ascontiguousarray(noise[:, 8 * number : 8 * number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())


def peak() -> float:
    """Return the most memory [GB] that this process held since the last call."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().strip().split("\n"))
    Path("/proc/self/clear_refs").write_text("5")  # begins again
    return int(status["VmHWM"].split()[0]) / GB


def random_model(sizes: dict[str, Any]) -> Any:
    """Build a random Qwen2.5-VL."""
    import torch
    from tiny_models import ends, placeholders
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sizes["sections"]}
    layers = {"num_hidden_layers": 2, "num_key_value_heads": 2}
    config = Qwen2_5_VLConfig(
        text_config={**sizes["text"], **layers, "rope_parameters": rope, **ends()},
        vision_config={**sizes["vision"], "depth": 2, "fullatt_block_indexes": [1]},
        tie_word_embeddings=True,
        **placeholders(),
    )
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.pad_token_id = ends()["pad_token_id"]
    return model


def measure(file: str, frames: int, at_once: bool, sizes: dict[str, Any]) -> dict[str, float]:
    """Return the peak [GB] of each step above what the process holds with the model loaded, and counts of tokens."""
    sys.path.insert(0, str(HELPERS))
    import torch
    from qwen_vl_utils import fetch_video
    from tiny_models import tiny_processor

    import harness
    from harness.models.limits import PixelLimits
    from harness.models.preprocessing import to_inputs
    from harness.models.resized_videos import resized_video

    torch.set_grad_enabled(False)
    limits, processor, model = PixelLimits(max_frames=frames), tiny_processor(), random_model(sizes)
    peak()
    rest = peak()
    if at_once:
        fetch_video({"video": file, "nframes": frames, **limits.of_frames(frames, 14, 2)})
        return {"at_once": peak() - rest}
    resized_video(file, limits, 14, 2)
    peaks = {"decoded": peak() - rest}
    content = [{"type": "video", "url": file}, {"type": "text", "text": "What moves?"}]
    inputs = to_inputs(processor, [[{"role": "user", "content": content}]], limits)
    peaks["inputs"] = peak() - rest
    with harness.prune(model, METHOD, keep=KEEP) as pruning:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    (record,) = pruning.records
    return {"tokens": record.n, "kept": record.k, **peaks, "answer": peak() - rest}


def main() -> None:
    """Measure in processes of their own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--small", action="store_true", help="a tiny model and small frames, to try the script")
    parser.add_argument("--in-process", nargs=2, metavar=("FILE", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes: dict[str, Any] = SMALL if args.small else WIDE
    if args.in_process:
        file, steps = args.in_process
        print_json(measure(file, args.frames[0], steps == "at_once", sizes))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_clip(file, max(args.frames), *sizes["clip"])
        print(f"| frames | tokens | kept | {' | '.join(STEPS.values())} |\n|{' ---: |' * (len(STEPS) + 3)}")
        for frames in args.frames:
            row: dict[str, float] = {}
            for steps in ("at_once", "others"):
                command = [sys.executable, __file__, "--frames", str(frames), "--in-process", str(file), steps]
                command += ["--small"] * args.small
                row |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            numbers = " | ".join(f"{row[step]:.2f}" for step in STEPS)
            print(f"| {frames} | {row['tokens']:,} | {row['kept']:,} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()

"""Prompts for the tiny models, and what they generate."""

import numpy as np
from PIL import Image
from tiny_models import IMAGE, VIDEO

TOKENS = 10  # decoded in the generation tests
# name -> (prompt, sizes of its images, frames of its videos); sizes in pixels, 28 per token
SAMPLES = {
    "one image": (f"look {IMAGE} what?", [(112, 140)], []),
    "small image": (f"{IMAGE} and a longer question about it?", [(56, 84)], []),
    "text between": (f"a {IMAGE} then {IMAGE} which?", [(84, 84), (56, 140)], []),
    "adjacent": (f"{IMAGE}{IMAGE}{IMAGE} hm", [(56, 56), (112, 84), (84, 56)], []),
    "video": (f"see {VIDEO} when?", [], [(6, 84, 112)]),
    "mixed": (f"{IMAGE} vs {VIDEO} or {IMAGE}?", [(84, 112), (56, 56)], [(4, 56, 84)]),
}


def inputs_of(processor, samples, side="left"):
    """Process samples, given as names of SAMPLES or as such entries."""
    texts, images, videos = [], [], []
    for sample in samples:
        text, sizes, clips = SAMPLES[sample] if isinstance(sample, str) else sample
        # Pixels depend on the question alone, so that a sample is the same in every batch.
        generator = np.random.default_rng(sum(map(ord, text)))
        texts.append(text)
        images.append([Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes])
        videos += [generator.integers(0, 256, (clip[0], 3, *clip[1:]), dtype=np.uint8) for clip in clips]
    if "batch_num_images" not in processor.image_processor.model_input_names:
        images = [image for prompt in images for image in prompt]
    processor.tokenizer.padding_side = side
    kwargs = {"do_sample_frames": False} if videos else {}
    images = images if any(images) else None
    return processor(text=texts, images=images, videos=videos or None, padding=True, return_tensors="pt", **kwargs)


def equally_long(processor, samples):
    """Return the samples as prompts of equal length, filled up with leading letters, one token each."""
    samples = [SAMPLES[sample] if isinstance(sample, str) else sample for sample in samples]
    lengths = [inputs_of(processor, [sample])["input_ids"].shape[1] for sample in samples]
    fill = ["x" * (max(lengths) - length) for length in lengths]
    return [(letters + text, *rest) for letters, (text, *rest) in zip(fill, samples, strict=True)]


def generate(model, inputs, **kwargs):
    output = model.generate(**inputs, **{"max_new_tokens": TOKENS, "do_sample": False, **kwargs})
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def hooks(model):
    names = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [dict(getattr(module, name)) for module in model.modules() for name in names]

"""Prompts for the tiny model, and the reference for pruning: the kept rows, gathered by hand."""

from dataclasses import dataclass

import numpy as np
import torch
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
        images += [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        videos += [generator.integers(0, 256, (clip[0], 3, *clip[1:]), dtype=np.uint8) for clip in clips]
    processor.tokenizer.padding_side = side
    kwargs = {"do_sample_frames": False} if videos else {}
    return processor(
        text=texts, images=images or None, videos=videos or None, padding=True, return_tensors="pt", **kwargs
    )


def equally_long(processor, samples):
    """Return the samples as prompts of equal length, filled up with leading letters, one token each."""
    samples = [SAMPLES[sample] if isinstance(sample, str) else sample for sample in samples]
    lengths = [inputs_of(processor, [sample])["input_ids"].shape[1] for sample in samples]
    fill = ["x" * (max(lengths) - length) for length in lengths]
    return [(letters + text, *rest) for letters, (text, *rest) in zip(fill, samples, strict=True)]


@dataclass
class Gathered:
    """One sample with its kept rows gathered by hand, without cache and hooks."""

    embeddings: torch.Tensor  # [1, L, D]
    positions: torch.Tensor  # [3, 1, L], or [1, L] where a model counts tokens
    following: torch.Tensor  # [3, 1, 1] or [1, 1] position of the next token

    @classmethod
    def of(cls, model, inputs, kept):
        inner, ids = model.model, inputs["input_ids"]
        embeddings = model.get_input_embeddings()(ids).clone()
        visual = torch.zeros_like(ids, dtype=torch.bool)
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                encode = getattr(inner, f"get_{kind}_features")
                features = encode(inputs[pixels], inputs[f"{kind}_grid_thw"], return_dict=True).pooler_output
                where = ids == getattr(model.config, f"{kind}_token_id")
                embeddings[where] = torch.cat(list(features))
                visual |= where
        positions = _positions(inner, inputs)
        where = visual[0].nonzero().squeeze(1)
        rows = sorted(set(range(ids.shape[1])) - set(where.tolist()) | set(where[kept].tolist()))
        return cls(embeddings[:, rows], positions[..., rows], positions[..., -1:] + 1)

    def logits(self, model):
        return model.lm_head(model.model.language_model(inputs_embeds=self.embeddings, position_ids=self.positions)[0])

    def append(self, model, token):
        self.embeddings = torch.cat([self.embeddings, model.get_input_embeddings()(token.view(1, 1))], dim=1)
        self.positions = torch.cat([self.positions, self.following], dim=-1)
        self.following = self.following + 1

    def answer(self, model, pick=lambda logits: logits.argmax()):
        tokens = []
        for _ in range(TOKENS):
            tokens.append(pick(self.logits(model)[0, -1]))
            if int(tokens[-1]) == model.generation_config.eos_token_id:
                break
            self.append(model, tokens[-1])
        return torch.stack(tokens).tolist()


def _positions(inner, inputs):
    ids = inputs["input_ids"]
    if not hasattr(inner, "get_rope_index"):
        return torch.arange(ids.shape[1]).unsqueeze(0)
    keys = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    return inner.get_rope_index(ids, **{key: inputs[key] for key in keys if key in inputs})[0]


def generate(model, inputs, **kwargs):
    output = model.generate(**inputs, **{"max_new_tokens": TOKENS, "do_sample": False, **kwargs})
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def hooks(model):
    names = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [dict(getattr(module, name)) for module in model.modules() for name in names]

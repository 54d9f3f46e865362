"""Prompts for the tiny model, and the reference that pruning has to equal: kept rows, gathered by hand."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tiny_models import IMAGE, VIDEO

TOKENS = 10  # decoded in the generation tests
# name -> (prompt, sizes of its images, frames of its videos); sizes in pixels, 28 a token
SAMPLES = {
    "one image": (f"look {IMAGE} what?", [(112, 140)], []),
    "small image": (f"{IMAGE} and a longer question about it?", [(56, 84)], []),
    "text between": (f"a {IMAGE} then {IMAGE} which?", [(84, 84), (56, 140)], []),
    "adjacent": (f"{IMAGE}{IMAGE}{IMAGE} hm", [(56, 56), (112, 84), (84, 56)], []),
    "video": (f"see {VIDEO} when?", [], [(6, 84, 112)]),
    "mixed": (f"{IMAGE} vs {VIDEO} or {IMAGE}?", [(84, 112), (56, 56)], [(4, 56, 84)]),
}


def inputs_of(processor, samples, side="left"):
    """Process names of SAMPLES, or entries like theirs."""
    texts, images, videos = [], [], []
    for sample in samples:
        text, sizes, clips = SAMPLES[sample] if isinstance(sample, str) else sample
        # The pixels depend on nothing but the question, so that a sample is the same in every batch.
        generator = np.random.default_rng(sum(map(ord, text)))
        texts.append(text)
        images += [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
        videos += [generator.integers(0, 256, (clip[0], 3, *clip[1:]), dtype=np.uint8) for clip in clips]
    processor.tokenizer.padding_side = side
    kwargs = {"do_sample_frames": False} if videos else {}
    return processor(
        text=texts, images=images or None, videos=videos or None, padding=True, return_tensors="pt", **kwargs
    )


def equally_long():
    """Two prompts with as many tokens and different numbers of visual ones."""
    (large, *visuals), (small, *_) = SAMPLES["one image"], SAMPLES["small image"]
    missing = (len(small) + 6) - (len(large) + 20)  # letters, and visual tokens
    return [("x" * missing + large, *visuals), "small image"]


@dataclass
class Gathered:
    """The reference: one sample, its kept rows gathered by hand, no cache, no hooks."""

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


@dataclass
class GatheredFlat(Gathered):
    """The same for LLaVA-1.5, with positions [1, L]: the original ones, or 0..L-1 if `compact`."""

    @classmethod
    def of(cls, model, inputs, kept, compact=False):
        ids = inputs["input_ids"]
        visual = ids[0] == model.config.image_token_id
        embeddings = model.get_input_embeddings()(ids).clone()
        if bool(visual.any()):
            states = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
            features = model.model.multi_modal_projector(states[model.config.vision_feature_layer][:, 1:])
            embeddings[0, visual] = features.flatten(0, 1)
        where = visual.nonzero().squeeze(1)
        rows = sorted(set(range(ids.shape[1])) - set(where.tolist()) | set(where[kept].tolist()))
        positions = torch.tensor([list(range(len(rows))) if compact else rows])
        return cls(embeddings[:, rows], positions, torch.tensor([[len(rows) if compact else ids.shape[1]]]))

    def logits(self, model):
        length = self.embeddings.shape[1]
        causal = torch.full((1, 1, length, length), torch.finfo(self.embeddings.dtype).min).triu(1)
        mask = causal.to(self.embeddings.dtype)  # without one, jumps of positions would mean packed sequences
        decoder = model.model.language_model
        states = decoder(inputs_embeds=self.embeddings, position_ids=self.positions, attention_mask=mask)[0]
        return model.lm_head(states)

    def append(self, model, token):
        self.embeddings = torch.cat([self.embeddings, model.get_input_embeddings()(token.view(1, 1))], dim=1)
        self.positions = torch.cat([self.positions, self.following], dim=1)
        self.following = self.following + 1


@dataclass
class GatheredInside(Gathered):
    """The same for a cut behind decoder layer `layer`: earlier layers run on all rows, layer by layer, by hand."""

    layer: int = 0
    kept: torch.Tensor | None = None  # rows of the prompt that stay

    @classmethod
    def behind(cls, model, inputs, kept, layer):
        config, ids = model.config, inputs["input_ids"]
        visual = (ids[0] == config.image_token_id) | (ids[0] == getattr(config, "video_token_id", -1))
        where = visual.nonzero().squeeze(1)
        whole = cls.of(model, inputs, list(range(len(where))))
        whole.layer, stay = layer, ~visual
        stay[where[kept]] = True
        whole.kept = stay.nonzero().squeeze(1)
        return whole

    def logits(self, model):
        decoder, states, positions = model.model.language_model, self.embeddings, self.positions
        prompt = int(self.kept.max()) + 1  # the last token is text
        for number, layer in enumerate(decoder.layers):
            if number == self.layer + 1:
                rows = torch.cat([self.kept, torch.arange(prompt, states.shape[1])])
                states, positions = states[:, rows], positions[..., rows]
            length = states.shape[1]
            mask = torch.full((1, 1, length, length), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)
            states = layer(states, attention_mask=mask, position_embeddings=decoder.rotary_emb(states, positions))
        return model.lm_head(decoder.norm(states))


class GatheredFlatInside(GatheredInside, GatheredFlat):
    """The same for LLaVA-1.5."""


def generate(model, inputs, **kwargs):
    made = model.generate(**inputs, **{"max_new_tokens": TOKENS, "do_sample": False, **kwargs})
    return made[:, inputs["input_ids"].shape[1] :].tolist()


def hooks(model):
    names = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")
    return [dict(getattr(module, name)) for module in model.modules() for name in names]

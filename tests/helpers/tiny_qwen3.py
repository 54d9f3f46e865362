"""A tiny random Qwen3-VL with its stock processor, and the reference that pruning it has to equal."""

from dataclasses import dataclass, field

import torch
from reference_prune import Gathered
from tiny_models import CHAT_TEMPLATE, HIDDEN, MROPE, built, placeholders, text_config, tiny_tokenizer
from transformers import (
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

LAYERS, DEPTH = 5, 4
DEEP = [0, 1, 2]  # vision layers whose features are added behind decoder layers 0, 1 and 2


def tiny_qwen3_processor():
    """A processor whose images become 4 to 64 visual tokens of 32 pixels a side."""
    patches = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 4 * 32 * 32, "longest_edge": 64 * 32 * 32}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches, size=pixels),
        tokenizer=tiny_tokenizer(),
        video_processor=Qwen3VLVideoProcessor(**patches, size=pixels),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_qwen3(dtype=torch.float32, attn="sdpa", seed=0):
    """Random weights, large enough that what the model answers depends on what it sees."""
    config = Qwen3VLConfig(
        text_config=text_config(LAYERS, head_dim=16, rope_parameters=MROPE),
        vision_config={
            "depth": DEPTH,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": DEEP,
            "initializer_range": 0.3,
        },
        tie_word_embeddings=False,
        **placeholders(),
    )
    return built(Qwen3VLForConditionalGeneration, config, dtype, attn, seed)


def visual_rows(model, ids):
    """Places [N] of the visual tokens in a prompt [1, S]."""
    mine = (model.config.image_token_id, model.config.video_token_id)
    return [place for place, token in enumerate(ids[0].tolist()) if token in mine]


@dataclass
class GatheredDeep(Gathered):
    """Like `Gathered`, DeepStack included: a dense row of features for every row of the prompt."""

    features: list[torch.Tensor] = field(default_factory=list)  # [1, S, D] for each of the first layers
    visual: torch.Tensor | None = None  # [1, L]

    @classmethod
    def of(cls, model, inputs, kept):
        whole = cls._whole(model, inputs)
        where = visual_rows(model, inputs["input_ids"])
        rows = sorted(set(range(inputs["input_ids"].shape[1])) - set(where) | {where[i] for i in kept})
        return whole.at(rows)

    @classmethod
    def _whole(cls, model, inputs):
        plain = Gathered.of(model, inputs, list(range(len(visual_rows(model, inputs["input_ids"])))))
        features = [torch.zeros_like(plain.embeddings) for _ in DEEP]
        visual = torch.zeros(plain.embeddings.shape[:2], dtype=torch.bool)
        for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if pixels in inputs:
                tower = model.model.visual(inputs[pixels], inputs[f"{kind}_grid_thw"])
                places = inputs["input_ids"] == getattr(model.config, f"{kind}_token_id")
                visual |= places
                for dense, found in zip(features, tower.deepstack_features, strict=True):
                    dense[places] = found
        return cls(plain.embeddings, plain.positions, plain.following, features, visual)

    def at(self, rows):
        """Keep the rows."""
        features = [part[:, rows] for part in self.features]
        return type(self)(
            self.embeddings[:, rows], self.positions[:, :, rows], self.following, features, self.visual[:, rows]
        )

    def logits(self, model):
        """The language model itself, given only what was kept."""
        decoder = model.model.language_model
        embeds = [part[self.visual] for part in self.features]
        return model.lm_head(
            decoder(
                inputs_embeds=self.embeddings,
                position_ids=self.positions,
                visual_pos_masks=self.visual,
                deepstack_visual_embeds=embeds,
            )[0]
        )

    def append(self, model, token):
        super().append(model, token)
        self.features = [torch.cat([part, torch.zeros_like(part[:, :1])], dim=1) for part in self.features]
        self.visual = torch.cat([self.visual, torch.zeros(1, 1, dtype=torch.bool)], dim=1)


@dataclass
class GatheredDeepInside(GatheredDeep):
    """The same for a cut behind decoder layer `layer`: layer by layer, by hand."""

    layer: int = 0
    stay: list[int] | None = None  # rows of the prompt that are kept

    @classmethod
    def behind(cls, model, inputs, kept, layer):
        whole = cls._whole(model, inputs)
        where = visual_rows(model, inputs["input_ids"])
        prompt = range(inputs["input_ids"].shape[1])
        whole.layer, whole.stay = layer, sorted(set(prompt) - set(where) | {where[i] for i in kept})
        return whole

    def logits(self, model):
        decoder, states, positions, features = (
            model.model.language_model,
            self.embeddings,
            self.positions,
            self.features,
        )
        rows = [*self.stay, *range(max(self.stay) + 1, states.shape[1])]  # the last token of the prompt is text
        for number, layer in enumerate(decoder.layers):
            if number == self.layer + 1:
                states, positions, features = (
                    states[:, rows],
                    positions[:, :, rows],
                    [part[:, rows] for part in features],
                )
            length = states.shape[1]
            mask = torch.full((1, 1, length, length), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)
            states = layer(states, attention_mask=mask, position_embeddings=decoder.rotary_emb(states, positions))
            if number < len(features):
                states = states + features[number]
        return model.lm_head(decoder.norm(states))

"""The logits of one prompt, cut once or often, and its answer: without cache, without our hooks, without selection."""

from dataclasses import dataclass

import torch
from transformers_names import states_of


@dataclass
class Cut:
    """The cut of a prompt, to be applied again."""

    layer: int  # decoder layers up to this one see every token; -1: no layer does
    kept: torch.Tensor  # [K] among the N visual tokens that are there
    owner: torch.Tensor | None = None  # [N] row of `kept` into which each token is averaged
    mix: tuple | None = None  # (row of `kept`, token, weight), each [E]: a row becomes the sum of weight x token
    compact: bool = False  # the remaining rows are numbered from 0
    newlines: tuple[int, ...] = ()  # rows of the whole prompt that end lines of patches and stay


@dataclass
class Prompt:
    """One prompt as the plain model passes it to its decoder."""

    states: torch.Tensor  # [1, S, D]
    positions: torch.Tensor  # [3, 1, S], or [1, S] where a model counts tokens
    features: list[torch.Tensor]  # [1, S, D] each: what Qwen3-VL adds to the rows after layers 0, 1, ...
    visual: torch.Tensor  # [N] rows of the visual tokens
    newlines: torch.Tensor  # rows that end lines of patches, in some families

    @classmethod
    def of(cls, model, inputs):
        """Run the plain model on `inputs`, one prompt without padding, and take what its decoder receives."""
        calls, ids = [], inputs["input_ids"]
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        model(**inputs)
        handle.remove()
        (call,) = calls
        states, positions = call["inputs_embeds"], call["position_ids"]
        if positions is None:
            positions = torch.arange(ids.shape[1]).unsqueeze(0)
        if hasattr(model.model, "get_rope_index"):  # three coordinates, in front of which may stand a count
            positions = positions.expand(3, 1, -1) if positions.ndim == 2 else positions[-3:]
        features = []
        for rows in call.get("deepstack_visual_embeds") or []:
            features.append(torch.zeros_like(states))
            features[-1][call["visual_pos_masks"]] = rows
        marks = {model.config.image_token_id, getattr(model.config, "video_token_id", None)} - {None}
        marked = torch.isin(ids[0], torch.tensor(list(marks)))
        newline = getattr(model.model, "image_newline", None)
        ends = torch.zeros_like(marked) if newline is None else (states[0] == newline).all(-1)
        of_images = ids[0] == model.config.image_token_id  # the row that closes a video stays
        rows = [mask.nonzero().squeeze(1) for mask in (marked & ~ends, ends & of_images)]
        return cls(states, positions, features, *rows)

    def logits(self, model, cuts, answer=()):
        """Return the logits [L, V] of every row that is left of this prompt and the tokens `answer`.

        The last row of the prompt is `-len(answer) - 1`: its logits are those before the first token of the answer.
        """
        decoder, visual, newlines, ends = model.model.language_model, self.visual, self.newlines, self.newlines
        left = {cut.layer + 1: cut for cut in (cuts if isinstance(cuts, list) else [cuts])}
        words = model.get_input_embeddings()(torch.tensor([list(answer)], dtype=torch.long))
        rows = [torch.cat([self.states, words], dim=1)]
        rows += [torch.cat([part, torch.zeros_like(words)], dim=1) for part in self.features]
        following = self.positions[..., -1:] + 1 + torch.arange(len(answer))
        positions = torch.cat([self.positions, following], dim=-1)
        for number, layer in enumerate(decoder.layers):
            if (cut := left.pop(number, None)) is not None:
                stay = torch.ones(rows[0].shape[1], dtype=torch.bool)
                stay[visual] = False
                stay[visual[cut.kept]] = True
                if len(cut.kept) < len(visual):  # `ends` are the rows of the whole prompt that are `newlines` now
                    stay[newlines] = torch.isin(ends, torch.tensor(cut.newlines, dtype=ends.dtype))
                ends, newlines = ends[stay[newlines]], (stay.cumsum(0) - 1)[newlines[stay[newlines]]]
                rows = [merged(part, visual, cut)[:, stay] for part in rows]
                visual = (stay.cumsum(0) - 1)[visual[cut.kept]]
                positions = torch.arange(int(stay.sum())).unsqueeze(0) if cut.compact else positions[..., stay]
            states, *features = rows
            length = states.shape[1]
            mask = torch.full((1, 1, length, length), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)
            turns = decoder.rotary_emb(states, positions)
            states = states_of(layer(states, attention_mask=mask, position_embeddings=turns))
            rows = [states + features[number] if number < len(features) else states, *features]
        return model.lm_head(decoder.norm(rows[0][0]))


def merged(rows, visual, cut):
    """Merge the visual rows of [1, S, D] into the kept ones, in float32 as the cut does."""
    rows, tokens = rows.clone(), rows[0, visual].float()
    for number, place in enumerate(visual[cut.kept].tolist()):
        if cut.owner is not None:
            rows[0, place] = tokens[cut.owner == number].mean(0).to(rows.dtype)
        elif cut.mix is not None and number in cut.mix[0].tolist():
            parts = [w * tokens[i] for r, i, w in zip(*(part.tolist() for part in cut.mix), strict=True) if r == number]
            rows[0, place] = sum(parts).to(rows.dtype)
    return rows

"""The logits of one cut prompt and its answer, computed without cache, without our hooks, without selection."""

from dataclasses import dataclass

import torch
from transformers_names import states_of


@dataclass
class Cut:
    """The cut of a prompt, to be applied again."""

    layer: int  # decoder layers up to this one see every token; -1: no layer does
    kept: torch.Tensor  # [K] among the N visual tokens
    owner: torch.Tensor | None = None  # [N] row of `kept` into which each token is averaged
    compact: bool = False  # the remaining rows are numbered from 0


@dataclass
class Prompt:
    """One prompt as the plain model passes it to its decoder."""

    states: torch.Tensor  # [1, S, D]
    positions: torch.Tensor  # [3, 1, S], or [1, S] where a model counts tokens
    features: list[torch.Tensor]  # [1, S, D] each: what Qwen3-VL adds to the rows after layers 0, 1, ...
    visual: torch.Tensor  # [N] rows of the visual tokens

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
        visual = torch.isin(ids[0], torch.tensor(list(marks))).nonzero().squeeze(1)
        return cls(states, positions, features, visual)

    def logits(self, model, cut, answer=()):
        """Return the logits [L, V] of every row that is left of this prompt and the tokens `answer`.

        The last row of the prompt is `-len(answer) - 1`: its logits are those before the first token of the answer.
        """
        decoder = model.model.language_model
        words = model.get_input_embeddings()(torch.tensor([list(answer)], dtype=torch.long))
        rows = [torch.cat([self.states, words], dim=1)]
        rows += [torch.cat([part, torch.zeros_like(words)], dim=1) for part in self.features]
        following = self.positions[..., -1:] + 1 + torch.arange(len(answer))
        positions = torch.cat([self.positions, following], dim=-1)
        for number, layer in enumerate(decoder.layers):
            if number == cut.layer + 1:
                stay = self._remaining(cut, rows[0].shape[1])
                rows = [self._average(part, cut)[:, stay] for part in rows]
                positions = torch.arange(len(stay)).unsqueeze(0) if cut.compact else positions[..., stay]
            states, *features = rows
            length = states.shape[1]
            mask = torch.full((1, 1, length, length), torch.finfo(states.dtype).min, dtype=states.dtype).triu(1)
            turns = decoder.rotary_emb(states, positions)
            states = states_of(layer(states, attention_mask=mask, position_embeddings=turns))
            rows = [states + features[number] if number < len(features) else states, *features]
        return model.lm_head(decoder.norm(rows[0][0]))

    def _remaining(self, cut, length):
        """Return which of `length` rows, prompt and answer, stay."""
        stay = torch.ones(length, dtype=torch.bool)
        stay[self.visual] = False
        stay[self.visual[cut.kept]] = True
        return stay.nonzero().squeeze(1)

    def _average(self, rows, cut):
        """Average the row of every kept token over the rows that it owns, in float32 as the cut does."""
        if cut.owner is None:
            return rows
        rows, visual = rows.clone(), rows[0, self.visual].float()
        for number, place in enumerate(self.visual[cut.kept].tolist()):
            rows[0, place] = visual[cut.owner == number].mean(0).to(rows.dtype)
        return rows

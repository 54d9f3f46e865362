"""What is peculiar to Qwen2.5-VL under `prune`: positions, grids, and the real FlashAttention."""

import importlib.util
import warnings

import pytest
import torch
from reference_prune import generate, inputs_of
from tiny_models import tiny_qwen

import harness
from harness.pruning.gather import count_rows


@torch.no_grad()
def test_rope_deltas_stay(model, processor):
    inputs = inputs_of(processor, ["one image"])
    model(**inputs)
    deltas = model.model.rope_deltas.clone()
    with harness.prune(model, "uniform", keep=0.25):
        model(**inputs)
    assert torch.equal(model.model.rope_deltas, deltas)


@torch.no_grad()
def test_the_scorer_sees_all_visual_tokens_of_a_sample_and_none_of_another(model, processor, scorer):
    inputs = inputs_of(processor, ["text between", "video"])
    seen = []
    handle = scorer.register_forward_hook(lambda module, args, output: seen.append(args[0].clone()))
    with harness.prune(model, "visionselector", keep=0.5, scorer=scorer) as pruning:
        model(**inputs)
    handle.remove()
    assert [len(features) for features in seen] == [record.n for record in pruning.records] == [19, 36]
    images = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    torch.testing.assert_close(seen[0], torch.cat(list(images.pooler_output)))


@torch.no_grad()
def test_grids_come_in_order_of_appearance(model, processor):
    with harness.prune(model, "uniform", keep=0.5) as pruning:
        generate(model, inputs_of(processor, ["mixed", "video", "one image"]))
    assert [record.grids for record in pruning.take()] == [
        [(1, 3, 4), (2, 2, 3), (1, 2, 2)],
        [(3, 3, 4)],
        [(1, 4, 5)],
    ]
    assert pruning.records == []


@torch.no_grad()
def test_seeds(model, processor):
    inputs = inputs_of(processor, ["one image"])
    with harness.prune(model, "random", keep=0.5, seed=4) as pruning:
        model(**inputs)
        model(**inputs)
        pruning.seed(4)
        model(**inputs)
    first, second, again = (record.kept for record in pruning.records)
    assert first == again != second


def test_rows_entering_a_layer_are_counted_under_every_kind_of_mask():
    states, valid = torch.zeros(2, 4, 8), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    causal = torch.ones(4, 4).tril().bool() & valid.bool()[:, None, None]
    assert count_rows(states, None) == [4, 4]
    assert count_rows(states, valid) == [2, 4]
    assert count_rows(states, causal) == [2, 4]
    assert count_rows(states, torch.where(causal, 0.0, torch.finfo(torch.float32).min)) == [2, 4]


@pytest.fixture
def real_flash_attention():
    there = {"flash-attn": importlib.util.find_spec("flash_attn"), "CUDA": torch.cuda.is_available()}
    missing = " and no ".join(name for name, found in there.items() if not found)
    if missing:
        reason = f"THE REAL FlashAttention IS NOT TESTED HERE: no {missing}"
        warnings.warn(reason, stacklevel=1)  # pytest lists warnings, but skips only on demand
        pytest.skip(reason)
    return "flash_attention_2", "cuda"


class TestRealFlashAttention:
    """On a GPU, against PyTorch's own kernel; half precision, so close but not equal."""

    def models(self, attn, device):
        return [tiny_qwen(dtype=torch.bfloat16, attn=kind).to(device) for kind in (attn, "sdpa")]

    def apart(self, a, b):
        return float((a.float() - b.float()).norm() / b.float().norm())

    @torch.no_grad()
    def test_vision_tower(self, processor, real_flash_attention):
        inputs = inputs_of(processor, ["mixed", "one image"]).to(real_flash_attention[1])
        flash, plain = (
            model.model.visual(inputs["pixel_values"].bfloat16(), inputs["image_grid_thw"]).pooler_output
            for model in self.models(*real_flash_attention)
        )
        assert self.apart(flash, plain) < 0.05

    @pytest.mark.parametrize("names", [["one image"], ["one image", "mixed", "video"]])
    @torch.no_grad()
    def test_prefill_and_decoding(self, processor, real_flash_attention, names):
        inputs = inputs_of(processor, names).to(real_flash_attention[1])
        letters = torch.tensor([65, 66, 67, 68]).to(real_flash_attention[1])

        def logits(model, method, keep):
            with harness.prune(model, method, keep=keep):
                answers = generate(model, inputs)
                out = model(**inputs, use_cache=True)
                steps = [out.logits[:, -1]]
                for letter in letters:
                    step = letter.expand(len(names), 1)
                    out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
                    steps.append(out.logits[:, -1])
            assert [answer[0] for answer in answers] == steps[0].argmax(-1).tolist()
            return torch.stack(steps)

        flash, plain = self.models(*real_flash_attention)
        pruned = logits(plain, "uniform", 0.3)
        assert self.apart(logits(flash, "uniform", 0.3), pruned) < 0.05
        assert self.apart(logits(plain, "none", 1.0), pruned) > 0.2

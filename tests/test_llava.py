"""LLaVA-1.5 under `prune`: a pass is the same as gathering by hand, at original positions and at compact ones."""

import pytest
import torch
from gathered import SAMPLES, GatheredFlat, inputs_of
from tiny import tiny_attention, tiny_llava, tiny_llava_processor

import harness

NAMES = [name for name, (_, _, clips) in SAMPLES.items() if not clips]


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


class TestLikeGatheringByHand:
    @pytest.mark.parametrize("positions", ["keep", "compact"])
    @pytest.mark.parametrize("attn", ["sdpa", "eager", "flash_like"])
    @pytest.mark.parametrize("name", NAMES)
    @torch.no_grad()
    def test_logits(self, processor, scorer, name, attn, positions):
        model, inputs = tiny_attention(attn, tiny_llava), inputs_of(processor, [name])
        plain = model(**inputs).logits
        with harness.prune(model, "idpruner", keep=0.4, scorer=scorer, positions=positions) as pruning:
            logits = model(**inputs).logits
        (record,) = pruning.take()
        assert record.k == len(record.kept) == max(1, round(record.n * 0.4)) < record.n
        assert logits.shape[1] == plain.shape[1] - record.n + record.k
        sdpa = tiny_llava()
        expected = GatheredFlat.of(sdpa, inputs, record.kept, positions == "compact").logits(sdpa)
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert (logits[:, -1] - plain[:, -1]).abs().max() > 1e-2

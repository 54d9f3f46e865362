"""A method whose kernel takes several samples gets those of a batch in one call."""

import torch
from reference_prune import generate, inputs_of

import harness
from methods.base import Method, Selection


def test_the_samples_of_a_batch_are_chosen_from_at_once(model, processor):
    seen = []

    class Together(Method):
        def _select_batch(self, samples, ks, generators):
            seen.append([(len(tokens.features), k) for tokens, k in zip(samples, ks, strict=True)])
            return [Selection(torch.arange(k)) for k in ks]

    with harness.prune(model, Together(), keep=0.5) as pruning:
        generate(model, inputs_of(processor, ["mixed", "one image"]))
    assert seen == [[(record.n, record.k) for record in pruning.records]]
    assert [record.kept for record in pruning.records] == [list(range(record.k)) for record in pruning.records]
    assert len(seen[0]) == 2
    assert seen[0][0] != seen[0][1]

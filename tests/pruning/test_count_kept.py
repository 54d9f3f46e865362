"""A method's own K reaches the model: the comparison's three round it for each of three images of 16 tokens."""

import pytest
import torch
from reference_prune import generate, inputs_of
from tiny_families import tiny

import harness
import methods
from harness.models.cost import count
from methods.budget import Budget

BUDGET = Budget(keep=4.5 / 16)


@pytest.mark.parametrize(("variant", "k"), [("paper", 12), ("official", 14)])
@pytest.mark.parametrize("name", ["vispruner", "hiprune", "visionzip"])
@torch.no_grad()
def test_rows_records_and_cost_have_the_methods_count(name, variant, k):
    model, processor = tiny("llava")
    with harness.prune(model, name, keep=BUDGET.keep, variant=variant) as pruning:
        generate(model, inputs_of(processor, ["adjacent"]), max_new_tokens=3)
    (record,) = pruning.records
    assert (record.n, record.k, len(record.kept)) == (48, k, k)
    if variant == "paper":
        assert [sum(start <= i < start + 16 for i in record.kept) for start in (0, 16, 32)] == [4, 4, 4]
    ours = count(model.config, record.grids, 10, pruning.method, BUDGET)
    assert ours.prefill == count(model.config, record.grids, 10, methods.load("random"), Budget(tokens=k)).prefill

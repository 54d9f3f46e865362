"""Every kernel picks what plain loops over the whole similarity matrix pick, whatever ties, sizes and neighbours."""

import traceback
from pathlib import Path

import pytest
import torch
from kernel_cases import KERNELS, KINDS, LAMS, scores_of, tokens_of
from properties import SEEDS, SHARE, randomized

import methods
from harness.pruning.handle import Pruning
from methods.base import Method
from methods.budget import Budget
from methods.kernels import cosine
from methods.kernels.cosine import STEP, CosineRows
from methods.observe import Operations
from methods.samples import make_tokens
from methods.selecting import Selecting, SelectionError

ONE, NAN = torch.tensor([1]), float("nan")


def select(kernel, tokens, k, seed):
    return KERNELS[kernel]([tokens], [k], seed)[0]


def similarities(features, **norm):
    return CosineRows(features, **norm)(torch.arange(len(features))) * STEP


def naive(kernel, tokens, k, seed):
    """Pick `k` tokens by scores that are computed again for each pick, from the similarities that the kernel sees."""
    s = similarities(tokens.features).double()
    scores, picked = scores_of(tokens, seed), []
    while len(picked) < k:
        if kernel == "mmr":
            lam = LAMS[seed % 5]
            score = lam * scores - (1 - lam) * s[picked].amax(0) if picked else scores
        elif kernel == "maxmin":
            score = -s[picked].amax(0) if picked else -(s - torch.eye(len(s)) * 9).amax(1)
        else:
            gain = (
                (s - (s[picked].amax(0).clamp(min=0) if picked else torch.zeros(len(s)))[:, None]).clamp(min=0).sum(0)
            )
            score = gain + scores if seed % 3 == 0 else gain * scores
        score = score.clone()
        score[picked] = -torch.inf
        picked.append(int((score == score.max()).nonzero()[0]))
    return picked


@pytest.mark.parametrize("kernel", ["mmr", "maxmin", "coverage"])
@randomized(60, n=range(2, 81), d=range(1, 41), share=SHARE, seed=SEEDS, kind=KINDS)
def test_picks_are_those_of_the_naive_loop(kernel, n, d, share, seed, kind):
    k, tokens = max(1, int(share * n)), tokens_of(n, d, seed, kind)
    assert select(kernel, tokens, k, seed).tolist() == naive(kernel, tokens, k, seed)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_four_is_four_batches_of_one(kernel, kind):
    sizes, ks = (40, 7, 129, 300), (13, 6, 64, 75)
    samples = [tokens_of(n, 33, n, kind) for n in sizes]
    together = KERNELS[kernel](samples, ks, 4)
    for tokens, k, order in zip(samples, ks, together, strict=True):
        assert torch.equal(order, select(kernel, tokens, k, 4))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("copies", [4, 36, 129, 1000])
def test_ties_go_to_the_lowest_index(kernel, copies):
    """Matrix kernels treat the last rows and columns otherwise than the rest; argmax runs over them in parallel."""
    for seed in range(5):
        one, others = torch.randn(2, 33, generator=torch.Generator().manual_seed(seed))
        tokens = tokens_of(copies + 1, 33, 0, "normal")
        tokens.features[:] = torch.cat([one[None], others.repeat(copies, 1)])
        tokens.importance[:] = torch.zeros(copies + 1).index_fill_(0, torch.tensor([0]), 1.0)
        order = select(kernel, tokens, 4, 0).tolist()
        assert [pick for pick in order if pick] == list(range(1, 4 if 0 in order else 5))


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_pick_is_read_back_by_the_host(kernel):
    """What waits for the device is the same few calls for each sample, however many tokens are kept."""
    waits = []
    for k in (10, 30, 60):
        with Selecting(Method()), Operations(Method()) as seen:
            KERNELS[kernel]([tokens_of(90, 16, 1, "mean")], [k], 4)
        assert seen.total("read") == seen.total("copied") == 0
        waits.append(seen.total("sized"))
    assert 0 < max(waits) <= min(waits) + 2


@pytest.mark.parametrize("kernel", ["mmr", "coverage", "greedy_map"])
def test_scores_that_hold_nan_are_refused(kernel, monkeypatch):
    monkeypatch.setattr("kernel_cases.scores_of", lambda tokens, _: tokens.importance.double().index_fill(0, ONE, NAN))
    with pytest.raises(SelectionError, match="scores that hold NaN"):
        select(kernel, tokens_of(9, 4, 0, "normal"), 3, 0)


@pytest.mark.parametrize("method", ["idpruner", "divprune", "scope", "dpp"])
def test_at_most_eight_of_our_frames_lead_to_the_loop(method, monkeypatch):
    stacks, distinct = [], CosineRows.distinct

    def record(self, tokens):
        stacks.append([frame.filename for frame in traceback.extract_stack()])
        return distinct(self, tokens)

    monkeypatch.setattr(CosineRows, "distinct", record)
    pruning = Pruning(methods.load(method), Budget(keep=0.3), None, 0)
    pruning.select(-1, [make_tokens(40)], [(40, 12)], [torch.Generator()])
    root = str(Path(methods.__file__).parents[1])
    ours = [file for file in stacks[-1] if file.startswith((f"{root}/methods", f"{root}/harness"))]
    loop = [file for file in ours if not file.endswith("cosine.py")]
    assert len(loop) <= 8
    assert loop[0].endswith("handle.py")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["normal", "duplicates", "mean"])
def test_picks_without_a_table_are_those_with_it(kernel, kind, monkeypatch):
    tokens = tokens_of(150, 24, 3, kind)
    expected = select(kernel, tokens, 20, 0)
    monkeypatch.setattr(cosine, "TABLE", 10)
    assert torch.equal(select(kernel, tokens, 20, 0), expected)


@pytest.mark.parametrize("d", [8, 301, 3000])
@pytest.mark.parametrize("outweighing", [1, 200])
@pytest.mark.parametrize("kind", ["normal", "positive", "mean", "half", "huge"])
def test_similarities_are_those_of_float64_to_a_step(d, outweighing, kind):
    x = tokens_of(200, d, 1, kind).features
    x[:, 3] = (x[:, 3] * outweighing).clamp(-3e38, 3e38)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    similar = similarities(x)
    assert torch.equal((similar / STEP).round() * STEP, similar)
    assert (similar - unit @ unit.T).abs().max() < (1.5 if outweighing == 1 else 4) * STEP


@pytest.mark.parametrize("n", [3, 40, 129, 1000])
def test_equal_and_parallel_rows_have_equal_similarities(n):
    x = torch.randn(3, 33, generator=torch.Generator().manual_seed(n)).bfloat16().float()
    rows = x[torch.arange(n) % 3] * (1 + torch.arange(n)[:, None] // 3 % 7)  # products that float32 holds
    similar = similarities(rows)
    for i in range(3):
        assert similar[:, i::3].unique(dim=1).shape[1] == 1
        assert similar[i::3].unique(dim=0).shape[0] == 1


def test_rows_whose_checksums_are_equal_by_chance_stay_apart():
    x = torch.tensor([[1.0, 2, 3, 4], [3, 4, 1, 2], [1, 2, 3, 4]])  # the same numbers, in another order
    similar = similarities(x)
    assert similar[0].tolist() == similar[2].tolist() == [1, pytest.approx(22 / 30, abs=STEP), 1]
    assert similar[1, 1] == 1


def test_zero_rows_are_similar_to_none_and_floors_shorten_rows():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e38, -3e38], [-3.0, -4.0], [3e-30, 4e-30], [1e-45, 0.0]])
    assert similarities(x, floor=1e-50)[0].tolist() == pytest.approx([1, 0, -(0.02**0.5), -1, 1, 0.6], abs=STEP)
    assert similarities(x, floor=1e-8)[0].tolist() == pytest.approx([1, 0, -(0.02**0.5), -1, 0, 0], abs=STEP)
    assert similarities(x, floor=0.0, plus=5.0)[0, :2].tolist() == pytest.approx([0.25, 0], abs=STEP)
    assert not similarities(x)[1].any()

"""D2Pruner and its prior against a plain transcription of their definition."""

import dataclasses
import hashlib
import math
import warnings
from fractions import Fraction

import pytest
import torch
from layer_samples import ATTENTION, attention_of, best, cosine_of, layer_tokens
from properties import SEEDS, SHARE, randomized
from reference_selection import WORKED

from methods import d2pruner_prior
from methods.base import LayerState, Tokens
from methods.d2pruner import D2Pruner
from methods.grids import nearness

IMAGES = d2pruner_prior.digest(["b", "a"])
MADE_FROM = {"prompt": "Describe the image.", "model": "pocket", "layer": "1", "images": IMAGES}


def bilinear(image, h, w):
    """Resample a map [H, W] with cell centres aligned and borders repeated."""
    height, width = len(image), len(image[0])

    def taps(i, size, target):
        x = min(max((i + 0.5) * size / target - 0.5, 0), size - 1)
        low = min(math.floor(x), size - 1)
        return low, min(low + 1, size - 1), x - low

    out = []
    for y in range(h):
        y0, y1, v = taps(y, height, h)
        for x in range(w):
            x0, x1, u = taps(x, width, w)
            top = image[y0][x0] * (1 - u) + image[y0][x1] * u
            out.append(top * (1 - v) + (image[y1][x0] * (1 - u) + image[y1][x1] * u) * v)
    return out


def fitted(prior, h, w):
    values = bilinear(prior.double().tolist(), h, w)
    values = [value / sum(values) for value in values]
    return [max(value, 1e-3 * sum(values) / len(values)) for value in values]


def definition(tokens, k, prior=None, ratio="0.7", theta=0.8, alpha=1.0, sem="cosine", kernel="linear", suppress=False):
    state = tokens.llm
    attention = attention_of(state.q[:, -1], state.k)
    attention = [attention[i] for i in state.visual_idx.tolist()]
    hidden = state.hidden[state.visual_idx].tolist()
    n, r, place, start, step = len(attention), [], [], 0, 0
    for t, h, w in tokens.grids:
        part = attention[start : start + t * h * w]
        bias = [b / t for b in fitted(prior, h, w)] * t if prior is not None else []
        r += [a / sum(part) / (b + 1e-7) for a, b in zip(part, bias, strict=True)] if bias else part
        place += [(step + s, y, x, math.hypot(h - 1, w - 1)) for s in range(t) for y in range(h) for x in range(w)]
        start, step = start + t * h * w, step + t
    cosines = [[cosine_of(a, b) for b in hidden] for a in hidden]
    low, high = min(map(min, cosines)), max(map(max, cosines))

    def alike(i, j):
        scaled = {"cosine": lambda c: c, "affine": lambda c: (1 + c) / 2, "minmax": lambda c: (c - low) / (high - low)}
        distance = math.hypot(place[i][1] - place[j][1], place[i][2] - place[j][2])
        near = 1 / (1 + distance) if kernel == "inverse" else 1 - distance / (place[i][3] or 1)
        near = near if place[i][0] == place[j][0] else 0
        return round(alpha * scaled[sem](cosines[i][j]) + (1 - alpha) * near, 12) > theta  # ties are not for rounding

    count = max(1, math.floor(Fraction(ratio) * k))
    order = best(r, n)
    pivots, rest, chosen = order[:count], order[count:], []
    open_ = {i for i in rest if not (suppress and any(alike(p, i) for p in pivots))}
    for i in rest:
        if len(pivots) + len(chosen) == k:
            break
        if i in open_:
            chosen.append(i)
            open_ -= {j for j in rest if alike(i, j)}
    fill = [i for i in rest if i not in chosen][: k - len(pivots) - len(chosen)]
    return pivots + chosen + fill


def stored(folder, prior):
    d2pruner_prior.save(folder / "prior.safetensors", prior, MADE_FROM)
    return str(folder / "prior.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prior")


@pytest.fixture(scope="module")
def file(folder):
    return stored(folder, torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) ** 4)


@randomized(
    60,
    grids=[[(1, 4, 5)], [(1, 1, 9), (1, 3, 4)], [(3, 2, 3)], [(2, 3, 2), (1, 1, 1), (1, 2, 5)]],
    share=SHARE,
    ratio=["0.7", "0.0", "0.3"],
    theta=[0.1, 0.5, 0.8],
    alpha=[1.0, 1.0, 0.5],
    sem=["cosine", "affine", "minmax"],
    kernel=["linear", "inverse"],
    suppress=[False, True],
    biased=[False, True],
    kind=["normal", "duplicates"],
    seed=SEEDS,
)
def test_same_order_as_the_definition(
    file, grids, share, ratio, theta, alpha, sem, kernel, suppress, biased, kind, seed
):
    tokens = layer_tokens(grids, seed, kind=kind, width=3)
    k = max(1, int(share * len(tokens.features)))
    method = D2Pruner(
        prior=file if biased else "none",
        pivot_ratio=float(ratio),
        theta=theta,
        alpha=alpha,
        sem_norm=sem,
        spat_kernel=kernel,
        pivot_suppress=suppress,
    )
    prior = d2pruner_prior.load(file)[0] if biased else None
    expected = definition(tokens, k, prior, ratio, theta, alpha, sem, kernel, suppress)
    assert method.select(tokens, k).order.tolist() == expected


@pytest.mark.parametrize(("suppress", "order"), [(False, [5, 1, 6, 0, 3, 7, 4]), (True, [5, 1, 6, 0, 3, 7, 2])])
def test_worked_example(tmp_path, suppress, order):
    bias = torch.tensor([[0.30, 0.20, 0.10, 0.10], [0.05, 0.05, 0.10, 0.10]])
    logits = torch.tensor(ATTENTION).log()
    state = LayerState(
        q=torch.ones(1, 9, 1),
        k=torch.cat([logits, torch.tensor([-80.0])])[None, :, None],
        hidden=torch.cat([torch.tensor(WORKED) * 1.0, torch.ones(1, 4)]),
        visual_idx=torch.arange(8),
    )
    tokens = Tokens(torch.zeros(8, 4), [(1, 2, 4)], llm=state)
    method = D2Pruner(prior=stored(tmp_path, bias), pivot_suppress=suppress)
    assert method.select(tokens, 7).order.tolist() == order


def test_the_number_of_pivots_is_exact():
    """0.7 * 90 is 62.99.. in floating point."""
    tokens = layer_tokens([(1, 10, 12)])
    ranked = D2Pruner(prior="none", theta=2.0).select(tokens, 119).order
    rows = torch.eye(len(tokens.llm.hidden))
    rows[tokens.llm.visual_idx[ranked[63]]] = rows[tokens.llm.visual_idx[ranked[62]]]
    tokens = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=rows))
    assert D2Pruner(prior="none").select(tokens, 90).order.tolist() == ranked[:90].tolist()
    assert D2Pruner(prior="none", pivot_ratio=0.69).select(tokens, 90).order.tolist() == [
        *ranked[:63].tolist(),
        *ranked[64:91].tolist(),
    ]


def test_fill_goes_on_by_score_where_all_are_alike():
    tokens = layer_tokens([(1, 5, 6)])
    ranked = D2Pruner(prior="none", theta=2.0).select(tokens, 20).order
    equal = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=torch.ones_like(tokens.llm.hidden)))
    assert torch.equal(D2Pruner(prior="none").select(equal, 20).order, ranked)


def test_without_attention_the_order_is_that_of_the_tokens(file):
    tokens = layer_tokens([(1, 3, 4), (1, 2, 2)])
    k = torch.full_like(tokens.llm.k, -1e30)
    k[:, 0] = 1e30
    state = dataclasses.replace(tokens.llm, q=torch.ones_like(tokens.llm.q), k=k)
    chosen = D2Pruner(prior=file, theta=2.0).select(dataclasses.replace(tokens, llm=state), 6).order
    assert chosen.tolist() == list(range(6))


def test_a_uniform_prior_changes_nothing_in_one_image(tmp_path):
    tokens = layer_tokens([(1, 5, 6)], seed=5)
    uniform = stored(tmp_path, torch.full((24, 24), 0.5))
    assert torch.equal(
        D2Pruner(prior=uniform).select(tokens, 12).order, D2Pruner(prior="none").select(tokens, 12).order
    )


def test_scale_of_the_prior_and_of_rows_does_not_matter(tmp_path, file):
    tokens = layer_tokens([(1, 5, 6)], seed=5)
    double = stored(tmp_path, d2pruner_prior.load(file)[0] * 4)
    scaled = dataclasses.replace(tokens, llm=dataclasses.replace(tokens.llm, hidden=tokens.llm.hidden * 2.0**12))
    assert torch.equal(D2Pruner(prior=double).select(scaled, 12).order, D2Pruner(prior=file).select(tokens, 12).order)


def test_nearness():
    near = nearness([(1, 3, 4), (2, 1, 2), (1, 1, 1)], "linear")(torch.tensor([0, 12, 16]))
    assert near[0, :4].tolist() == pytest.approx([1 - x / math.hypot(2, 3) for x in range(4)])
    assert near[0, 11] == pytest.approx(0)
    assert near[0, 12:].tolist() == [0] * 5
    assert near[1].tolist() == [0] * 12 + [1, 0, 0, 0, 0]
    assert near[2].tolist() == [0] * 16 + [1]
    assert nearness([(1, 1, 3)], "inverse")(torch.tensor([0]))[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3])


def test_where_it_cuts_and_what_it_reads():
    assert (D2Pruner().stage, D2Pruner().hidden_state) == ("layer:1", "output")
    assert D2Pruner(layer=3).stage == "layer:3"
    assert D2Pruner.unpublished_params >= {"prior", "sem_norm"}
    assert "not public" in D2Pruner.__doc__


@pytest.mark.parametrize("size", [(24, 24), (1, 1), (3, 40), (30, 7)])
def test_a_prior_is_fitted_in_two_dimensions(size):
    prior = torch.rand(24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** 3
    assert d2pruner_prior.on_grid(prior, *size).tolist() == pytest.approx(fitted(prior, *size))


def test_a_cell_that_is_never_attended_to_has_a_floor():
    prior = torch.ones(24, 24)
    prior[3, 4] = 0
    cells = d2pruner_prior.on_grid(prior, 24, 24)
    assert cells[3 * 24 + 4] == pytest.approx(1e-3 / 576)
    assert cells.max() == pytest.approx(1 / 575)


def test_the_average_counts_every_image_alike():
    small, large = torch.rand(6, 8), torch.rand(2, 24, 24) * 100
    prior = d2pruner_prior.average([(small.flatten(), (1, 6, 8)), (large.flatten(), (2, 24, 24))])
    first = torch.tensor(bilinear((small / small.sum()).double().tolist(), 24, 24)).double()
    second = large.double().sum(0).flatten()
    expected = (first / first.sum() + second / second.sum()) / 2
    assert prior.shape == (24, 24)
    assert prior.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert prior.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one image"):
        d2pruner_prior.average([])
    with pytest.raises(ValueError, match="finite"):
        d2pruner_prior.average([(torch.zeros(4), (1, 2, 2))])


def test_a_prior_is_stored_with_what_it_was_made_from(tmp_path):
    prior = torch.rand(24, 24)
    method = D2Pruner(prior=stored(tmp_path, prior))
    assert torch.equal(d2pruner_prior.load(method.prior)[0], prior)
    digest = hashlib.sha256((tmp_path / "prior.safetensors").read_bytes()).hexdigest()
    assert method.file_metadata == {"prior": MADE_FROM | {"digest": digest}}
    assert D2Pruner(prior="none").file_metadata == {"prior": {"digest": "none"}}
    with pytest.raises(ValueError, match="was made at decoder layer 1, the method is at layer:2"):
        D2Pruner(prior=method.prior, layer=2)
    assert d2pruner_prior.digest(["a", "b"]) == d2pruner_prior.digest(["b", "a"]) != d2pruner_prior.digest(["ab"])
    with pytest.raises(ValueError, match="missing: layer, images"):
        d2pruner_prior.save(tmp_path / "x", prior, {"prompt": "p", "model": "m"})


def test_what_is_no_prior_is_refused(tmp_path):
    (tmp_path / "text").write_text("no prior")
    for path in (tmp_path / "text", tmp_path / "absent"):
        with pytest.raises(ValueError, match=r"prior '.*' cannot be read"):
            D2Pruner(prior=str(path))
    for bad in (torch.zeros(2, 2), torch.tensor([[1.0, -1.0]]), torch.tensor([[torch.nan]]), torch.ones(4)):
        with pytest.raises(ValueError, match="the prior must be"):
            d2pruner_prior.save(tmp_path / "bad", bad, MADE_FROM)


def test_plain_attention_has_to_be_asked_for():
    """In a run; a program that calls `select` is warned."""
    tokens = layer_tokens([(1, 5, 6)])
    with pytest.raises(ValueError, match=r"no debiasing prior: make one with python -m harness\.d2prior .*prior=none"):
        D2Pruner().check()
    with pytest.warns(UserWarning, match="d2pruner ranks by plain attention"):
        unsaid = D2Pruner().select(tokens, 12)
    asked = D2Pruner(prior="none")
    asked.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(asked.select(tokens, 12).order, unsaid.order)
    with pytest.raises(ValueError, match="d2pruner: prior must be the name of a file, or none, not 3"):
        D2Pruner(prior=3)

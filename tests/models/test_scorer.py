"""The VisionSelector scorer: its formula, and finding its four tensors in whatever layout they were released."""

import argparse
import json
import shutil

import pytest
import torch
from properties import randomized
from safetensors.torch import save_file

from harness.models.scorer import PARTS, VisionSelectorScorer, load_scorer, save_scorer, shipped_scorer

D, H = 24, 10
PREFIXES = ["", "visual.importance_scorer.", "model.visual.importance_scorer.", "module.", "_orig_mod.module."]


@pytest.fixture
def scorer():
    torch.manual_seed(0)
    scorer = VisionSelectorScorer(D, H, init_scale=0.3)
    for layer in (scorer.q_proj, scorer.k_proj):
        torch.nn.init.normal_(layer.bias)
    return scorer


def tensors_of(scorer, prefix=""):
    return {f"{prefix}{name}": tensor.detach().clone() for name, tensor in scorer.state_dict().items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@randomized(25, n=range(1, 41), seed=range(1001))
def test_equals_the_mean_over_all_pairs(n, seed):
    generator = torch.Generator().manual_seed(seed)
    scorer = VisionSelectorScorer(D, H)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in scorer.state_dict().items()}
    scorer.load_state_dict(state)
    x = torch.randn(n, D, generator=generator)
    w = {k: v.double() for k, v in state.items()}
    q = x.double() @ w["q_proj.weight"].T + w["q_proj.bias"]
    k = x.double() @ w["k_proj.weight"].T + w["k_proj.bias"]
    expected = (q @ k.T / H**0.5).mean(1)
    torch.testing.assert_close(scorer(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_computes_in_float32_whatever_comes(scorer):
    x = torch.randn(9, D).bfloat16()
    expected = scorer(x.float())
    assert torch.equal(scorer(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scorer(x), expected)
    assert scorer.bfloat16()(x).dtype == torch.float32


def test_gradients_reach_all_four_tensors(scorer):
    scorer(torch.randn(7, D)).square().sum().backward()
    assert all(scorer.get_parameter(name).grad.abs().sum() > 0 for name in PARTS)


class TestLoading:
    def test_round_trip_in_the_released_layout(self, tmp_path, scorer):
        save_scorer(scorer, tmp_path / "selector")
        config = json.loads((tmp_path / "selector" / "config.json").read_text())
        assert config == {
            "in_features": D,
            "hidden_dim": H,
            "init_scale": 0.3,
            "architecture": "TransformerScorer",
        }
        loaded = load_scorer(tmp_path / "selector", D)
        assert same(loaded, scorer)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())

    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    @pytest.mark.parametrize("as_file", [True, False])
    def test_any_prefix(self, tmp_path, scorer, prefix, suffix, as_file):
        file = tmp_path / f"weights{suffix}"
        tensors = tensors_of(scorer, prefix) | {f"{prefix}norm.weight": torch.ones(D)}
        save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
        assert same(load_scorer(file if as_file else tmp_path, D), scorer)

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_a_sharded_checkpoint_reads_only_its_shards(self, tmp_path, scorer, suffix):
        index = write_checkpoint(tmp_path, scorer, suffix)
        unrelated = tmp_path / index["model.layers.0.self_attn.q_proj.weight"]
        unrelated.unlink()  # it would be missed if it were opened
        assert same(load_scorer(tmp_path, D), scorer)

    def test_stored_in_half_precision(self, tmp_path, scorer):
        scorer.bfloat16()
        save_file(tensors_of(scorer), tmp_path / "model.safetensors")
        loaded = load_scorer(tmp_path, D)
        assert loaded.q_proj.weight.dtype == torch.float32
        assert same(loaded, scorer.float())

    def test_a_checkpoint_with_nested_state_dict(self, tmp_path, scorer):
        torch.save({"state_dict": tensors_of(scorer), "step": 3}, tmp_path / "last.pt")
        assert same(load_scorer(tmp_path / "last.pt", D), scorer)

    @pytest.mark.parametrize("name", ["scorer.bin", "zcorer.bin", "scorer.pt"])
    def test_other_files_that_cannot_be_read_do_not_matter(self, tmp_path, scorer, name):
        torch.save(argparse.Namespace(lr=1), tmp_path / "training_args.bin")
        (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
        torch.save(tensors_of(scorer), tmp_path / name)
        assert same(load_scorer(tmp_path, D), scorer)

    @pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
    def test_of_several_the_one_of_the_width(self, tmp_path, scorer, suffix):
        other = VisionSelectorScorer(D + 8, H)
        tensors = tensors_of(other, "audio.importance_scorer.") | tensors_of(scorer, "visual.importance_scorer.")
        file = tmp_path / f"model{suffix}"
        save_file(tensors, file) if suffix == ".safetensors" else torch.save(tensors, file)
        assert same(load_scorer(tmp_path, D), scorer)
        assert same(load_scorer(tmp_path, D + 8), other)
        refused(tmp_path, f"more than one scorer, .*, none of width {D - 8}", dim=D - 8)

    def test_no_code_is_executed(self, tmp_path, scorer):
        trap = "raise SystemExit('the folder was executed')"
        save_scorer(scorer, tmp_path)
        (tmp_path / "modeling_scorer.py").write_text(trap)
        assert same(load_scorer(tmp_path, D), scorer)
        (tmp_path / "model.safetensors").unlink()
        torch.save({**tensors_of(scorer), "q_proj.extra": Trap()}, tmp_path / "scorer.bin")
        refused(tmp_path, "cannot be read as plain tensors")
        assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung = True
    return Trap()


def write_checkpoint(folder, scorer, suffix):
    """A whole model over three files with an index: attention layers, the scorer cut in two, something else."""
    attention = {f"model.layers.0.self_attn.{part}": torch.randn(D, D) for part in PARTS}
    attention["model.layers.0.self_attn.v_proj.weight"] = torch.randn(D, D)
    mine = list(tensors_of(scorer, "visual.importance_scorer.").items())
    index = {}
    for number, shard in enumerate([attention, dict(mine[:2]), dict(mine[2:]) | {"lm_head.weight": torch.ones(4, D)}]):
        name = f"model-{number}{suffix}"
        save_file(shard, folder / name) if suffix == ".safetensors" else torch.save(shard, folder / name)
        index |= dict.fromkeys(shard, name)
    (folder / f"model{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def refused(path, message, dim=D):
    with pytest.raises(ValueError, match=message) as caught:
        load_scorer(path, dim)
    assert "\n" not in str(caught.value)


class TestRefused:
    @pytest.mark.parametrize("part", PARTS)
    def test_a_missing_tensor_is_named(self, tmp_path, scorer, part):
        tensors = tensors_of(scorer, "visual.importance_scorer.")
        del tensors[f"visual.importance_scorer.{part}"]
        save_file(tensors, tmp_path / "model.safetensors")
        refused(tmp_path, f"incomplete: visual.importance_scorer.{part} is missing")

    def test_another_width(self, tmp_path, scorer):
        save_scorer(scorer, tmp_path)
        refused(tmp_path, "width 24, this model's have 32", dim=32)

    def test_shapes_that_do_not_fit(self, tmp_path, scorer):
        tensors = tensors_of(scorer) | {"k_proj.weight": torch.zeros(H + 1, D)}
        save_file(tensors, tmp_path / "model.safetensors")
        refused(tmp_path, "shapes that do not fit")

    def test_two_scorers(self, tmp_path, scorer):
        save_file(tensors_of(scorer, "a.") | tensors_of(scorer, "b."), tmp_path / "model.safetensors")
        refused(tmp_path, "more than one scorer, under 'a.', 'b.', 2 of width 24: ")

    def test_a_model_without_scorer(self, tmp_path):
        attention = {f"layers.0.self_attn.{part}": torch.randn(D, D) for part in (*PARTS, "v_proj.weight")}
        save_file(attention, tmp_path / "model.safetensors")
        refused(tmp_path, "no scorer in .*: expected tensors q_proj.weight")

    def test_nothing_there(self, tmp_path, scorer):
        refused(tmp_path / "nowhere", "no scorer at")
        refused(tmp_path, "has no .safetensors")
        (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
        refused(tmp_path, "cannot be read")
        index = write_checkpoint(tmp_path, scorer, ".safetensors")
        (tmp_path / index["visual.importance_scorer.q_proj.weight"]).unlink()
        refused(tmp_path, "is missing, which holds visual.importance_scorer.q_proj.")

    def test_what_could_not_be_read_is_told_if_nothing_is_found(self, tmp_path):
        torch.save(argparse.Namespace(lr=1), tmp_path / "training_args.bin")
        refused(tmp_path, "no scorer in .*training_args.bin cannot be read as plain tensors")
        torch.save({"lm_head.weight": torch.ones(4, D)}, tmp_path / "pytorch_model.bin")
        refused(tmp_path, "no scorer in .*training_args.bin cannot be read as plain tensors")

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
    def test_a_damaged_index(self, tmp_path, content):
        save_file({"lm_head.weight": torch.ones(3, D)}, tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        refused(tmp_path, "model.safetensors.index.json is damaged")
        with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged"):
            shipped_scorer(str(tmp_path))

    @pytest.mark.parametrize("content", [[1], {"weight_map": None}, {}])
    def test_an_index_of_something_else_is_not_asked(self, tmp_path, scorer, content):
        (tmp_path / "search.index.json").write_text(json.dumps(content))
        save_scorer(scorer, tmp_path)
        assert same(load_scorer(tmp_path, D), scorer)


class TestShippedWithAModel:
    def test_folder_beside_the_weights_comes_first(self, tmp_path, scorer):
        save_scorer(scorer, tmp_path / "scorer")
        write_checkpoint(tmp_path, scorer, ".safetensors")
        assert shipped_scorer(str(tmp_path)) == tmp_path / "scorer"
        shutil.rmtree(tmp_path / "scorer")
        assert shipped_scorer(str(tmp_path)) == tmp_path
        assert same(load_scorer(tmp_path, D), scorer)

    @pytest.mark.parametrize("name", ["", "some-org/some-model-that-is-not-cached", "/moved/since/then"])
    def test_nothing_shipped(self, name):
        assert shipped_scorer(name) is None

    def test_plain_weights(self, tmp_path):
        save_file({"lm_head.weight": torch.ones(3, D)}, tmp_path / "model.safetensors")
        assert shipped_scorer(str(tmp_path)) is None


JUNK = [
    b"",
    b"x",
    b"PK\3\4",
    b"\x80\2N.",
    b"\x80\2}q\0.",
    b"\x80\2cos\nsystem\n.",
    b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    bytes(256),
]


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
@pytest.mark.parametrize("junk", JUNK)
def test_a_file_of_junk_is_named(junk, suffix, tmp_path):
    file = tmp_path / f"scorer{suffix}"
    file.write_bytes(junk)
    with pytest.raises(ValueError, match=rf"scorer file .*scorer\{suffix} cannot be read"):
        load_scorer(file, D)


@pytest.mark.parametrize("error", [KeyError("0"), UnicodeDecodeError("utf-8", b"", 0, 1, "bad"), MemoryError()])
def test_whatever_unpickling_raises_is_one_line(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "scorer.pt").touch()
    with pytest.raises(ValueError, match=r"scorer\.pt cannot be read as plain tensors: ."):
        load_scorer(tmp_path / "scorer.pt", D)


NAMES = {f"s.{part}": "scorer.bin" for part in PARTS}
INDICES = {
    "empty": (b"", "is damaged, it is no JSON"),
    "no text": (b"\xff", "is damaged, it is no JSON"),
    "deep": (b"[" * 100_000, "is damaged, it is no JSON"),
    "a number for a file": (json.dumps({"weight_map": {**NAMES, "other": 3}}).encode(), "names no file for other"),
    "a list": (b'{"weight_map": []}', "no scorer in"),
    "missing files": (json.dumps({"weight_map": NAMES}).encode(), r"scorer\.bin is missing"),
    "a folder": (json.dumps({"weight_map": dict.fromkeys(NAMES, ".")}).encode(), "is missing"),
    "a NUL": (json.dumps({"weight_map": dict.fromkeys(NAMES, "a\0")}).encode(), "is missing"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_of_junk_is_named(name, tmp_path):
    content, message = INDICES[name]
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_scorer(tmp_path, D)

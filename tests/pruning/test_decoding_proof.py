"""The proof of decoding: passes where decoding is right, stops a run where it is not, and says what it compared."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from composed_sweeps import composed
from in_process import run
from reference_prune import generate, inputs_of
from run_folders import make_run, sealed_again
from tiny_families import BUILDERS

import harness
from harness.core.errors import UserError
from harness.evaluation import lmms_model
from harness.models import FAMILIES, adapter_for, calls
from harness.pruning import decoding_proof as decoding
from harness.pruning import kv_cache
from harness.pruning.decoding_proof import DecodingError, Proof, deviation, prove
from harness.results.response_log import ResponseLog
from harness.results.result import Result, unproven
from harness.results.run_folder import RunFolder
from harness.tables import of_runs

SETTINGS = [("random", "keep"), ("visionzip", "keep"), ("fastv", "keep"), ("random", "compact")]
UNEQUAL = ["one image", "small image"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    build, process = BUILDERS[request.param]
    return build(), inputs_of(process(), UNEQUAL)


def proof_of(model, inputs, method="random", positions="keep", fault=None):
    adapter = adapter_for(model)
    with (
        torch.no_grad(),
        harness.prune(model, method, keep=0.25, positions=positions) as pruning,
        fault or nullcontext(),
    ):
        found = prove(model, inputs, pruning.replaying, adapter.placeholders)
        return found, pruning.take()


@pytest.mark.parametrize(("method", "positions"), SETTINGS)
def test_it_holds_in_every_family(family, method, positions):
    model, inputs = family
    if positions == "compact" and not adapter_for(model).decoder.one_dimensional:
        with pytest.raises(ValueError, match="positions=compact does not fit family"):
            proof_of(model, inputs, method, positions)
        return
    proof, records = proof_of(model, inputs, method, positions)
    assert (proof.questions, proof.comparisons, proof.unequal) == (2, 4, True)
    assert 0 <= proof.largest < proof.tolerance == 1e-6  # the models are of float64
    assert len(records) == 2  # what was replayed is not recorded


def test_a_method_chooses_once(family):
    model, inputs = family
    with torch.no_grad(), harness.prune(model, "random", keep=0.25) as pruning:
        with mock.patch.object(pruning.method, "select_batch", wraps=pruning.method.select_batch) as select:
            prove(model, inputs, pruning.replaying, adapter_for(model).placeholders)
        assert select.call_count == 1


def test_steps_that_see_padding_are_found(family):
    """A fault of our own record, which every guard of a step believes."""
    fault = mock.patch.object(kv_cache, "_extended", return_value=None)
    with pytest.raises(DecodingError, match="logits deviate by") as stopped:
        proof_of(*family, fault=fault)
    assert "\n" not in str(stopped.value)


def test_a_short_answer_gives_as_many_comparisons(family):
    model, inputs = family
    answers = generate(model, inputs, max_new_tokens=1)
    with mock.patch.object(model.generation_config, "eos_token_id", [answers[0][0], answers[1][0]]):
        assert len(generate(model, inputs)[0]) == 1
        assert proof_of(model, inputs)[0].comparisons == 4


@pytest.mark.parametrize("step", [1, 2])
def test_each_step_is_compared(family, step):
    model, inputs = family
    plain = model.generate

    def wrong(**kwargs):
        output = plain(**kwargs)
        if kwargs["max_new_tokens"] == decoding.STEPS:
            output.logits[step][0, 0] += 1
        return output

    with mock.patch.object(model, "generate", wrong), pytest.raises(DecodingError, match="logits deviate by"):
        proof_of(model, inputs)


def test_images_are_announced_before_they_are_shown_again(family):
    model, inputs = family
    again = mock.Mock()
    with torch.no_grad(), harness.prune(model, "random", keep=0.25) as pruning:
        prove(model, inputs, pruning.replaying, adapter_for(model).placeholders, again)
    assert again.call_count == 2


@pytest.mark.parametrize("setting", [{"do_sample": True, "temperature": 50.0}, {"num_beams": 3}])
def test_the_answer_is_greedy_whatever_the_model_prefers(family, setting):
    model, inputs = family
    _, expected = proof_of(model, inputs)
    with (
        mock.patch.multiple(model.generation_config, **setting),
        mock.patch.object(model, "generate", wraps=model.generate) as plain,
    ):
        proof, records = proof_of(model, inputs)
        assert proof.comparisons == 4
        answers = [model.generate(**call.kwargs).sequences.tolist() for call in plain.call_args_list[:1] for _ in "ab"]
    assert records == expected
    assert answers[0] == answers[1]


def test_prompts_of_equal_length_are_not_the_batch_that_is_sought(family):
    model, _ = family
    inputs = inputs_of(BUILDERS[model.config.model_type][1](), ["one image", "one image"])
    assert not proof_of(model, inputs)[0].unequal


def test_an_answer_holds_no_placeholder(family):
    """The prefill that repeats it would look for an image there."""
    model, inputs = family
    (placeholder, *_) = adapter_for(model).placeholders

    def prefer(module, args, logits):
        logits[..., placeholder] += 100

    handle = model.lm_head.register_forward_hook(prefer)
    try:
        assert proof_of(model, inputs)[0].comparisons == 4
    finally:
        handle.remove()


def test_what_cannot_be_prolonged_with_the_prompt_is_refused(family):
    _, inputs = family
    weights = torch.ones_like(inputs["input_ids"], dtype=torch.float)
    with pytest.raises(DecodingError, match="the processor made weights, one entry per token"):
        decoding._extended({**inputs, "weights": weights}, torch.tensor([[1], [2]]))


def test_an_answer_that_is_cut_off_proves_nothing(family):
    model, inputs = family
    with (
        mock.patch.object(model.generation_config, "max_time", 1e-9),  # stops after the first token
        pytest.raises(DecodingError, match=r"^1 tokens were decoded where 3 were asked for$"),
    ):
        proof_of(model, inputs)


def test_a_replay_of_other_prompts_is_refused(family):
    model, inputs = family
    other = inputs_of(BUILDERS[model.config.model_type][1](), ["one image"])

    def mixed_up():
        with torch.no_grad(), harness.prune(model, "random", tokens=3) as pruning:
            generate(model, inputs, max_new_tokens=1)
            with pruning.replaying():
                generate(model, other, max_new_tokens=1)

    with pytest.raises(RuntimeError, match="the one to repeat cut"):
        mixed_up()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_deviate(value):
    logits = torch.randn(2, 9)
    other = logits.clone()
    other[1, 3] = value
    assert deviation(logits, logits) == 0
    assert deviation(other, logits) == deviation(logits, other) == float("inf")
    assert deviation(logits + 5, logits) > 0.1
    assert deviation(torch.ones(1, 3), torch.ones(1, 3)) == 0  # where the mean is all


def test_tf32_products_are_as_exact_as_float16():
    assert decoding.tolerance_of(torch.float32) == decoding.TOLERANCE[torch.float32]
    torch.set_float32_matmul_precision("high")
    try:
        assert decoding.tolerance_of(torch.float32) == decoding.TOLERANCE[torch.float16]
        assert decoding.tolerance_of(torch.bfloat16) == decoding.TOLERANCE[torch.bfloat16]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("proof", "alone", "batched"),
    [
        (Proof(), False, False),
        (Proof(questions=1, batches=1), False, False),
        (Proof(questions=2, batches=2), True, False),
        (Proof(questions=2, batches=1, unequal=True), True, True),
        (Proof(questions=16, batches=4), True, True),
    ],
)
def test_when_there_is_enough(proof, alone, batched):
    assert (proof.complete(1), proof.complete(4)) == (alone, batched)


def test_parts_are_joined():
    first, second = Proof(2, 4, 1e-7, 1e-4, 1, True), Proof(1, 2, 3e-7, 1e-4, 1)
    assert first | second == Proof(3, 6, 3e-7, 1e-4, 2, True)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))

    def of(*overrides):
        plain = ["tasks=[pocket_existence]", "limit=3", "method=uniform", "keep=0.5", f"runs={tmp_path / 'runs'}"]
        return composed(*plain, *overrides)

    return of


@pytest.mark.parametrize(("batch", "questions"), [(1, 2), (3, 3)])
def test_a_run_says_what_it_compared(job, batch, questions):
    for folder in run(job(f"model.batch_size={batch}")):
        done = json.loads((folder.path / "DONE").read_text())
        proof = done["decoding"]["proof"]
        assert done["decoding"]["verified"]
        assert proof["questions"] == questions
        assert proof["comparisons"] == 2 * questions
        assert 0 <= proof["largest"] < proof["tolerance"] == decoding.TOLERANCE[torch.float32]
        assert folder.about()["decoding"] == done["decoding"]
        assert done["stages"]["verify"] > 0
        assert unproven([Result.of(folder)]) == []


@pytest.mark.parametrize("overrides", [[], ["method=fastv"]])
def test_a_mismatch_stops_a_run_in_one_line_and_leaves_nothing_that_looks_finished(job, overrides, monkeypatch):
    run(job("method=none", "keep=1"))
    plain = decoding.deviation
    monkeypatch.setattr(decoding, "deviation", lambda a, b: 1e-3 + plain(a, b))
    with pytest.raises(
        UserError, match=r"task pocket_existence: decoding through the key-value cache is not"
    ) as stopped:
        run(job(*overrides))
    assert "\n" not in str(stopped.value)
    (folder,) = [path.parent for path in Path(job().runs).rglob("run.json") if "none" not in path.parent.name]
    assert not (folder / "DONE").exists()
    assert not any(path.stat().st_size for path in folder.glob("*.jsonl"))
    assert "decoding" not in json.loads((folder / "run.json").read_text())


def test_verify_false_is_recorded_and_noted(job, monkeypatch):
    monkeypatch.setattr(lmms_model, "prove", None)  # not called
    folder, base = run(job("verify=false"))
    for each in (folder, base):
        assert json.loads((each.path / "DONE").read_text())["decoding"] == {"verified": False, "reason": "verify=false"}
    results = [Result.of(base), Result.of(folder)]
    assert unproven(results) == ["decoding was not verified (verify=false) in any run"]
    tables, _ = of_runs(results)
    assert any("decoding was not verified (verify=false)" in note for note in tables[0].notes)


def test_questions_without_images_prove_nothing(job, monkeypatch):
    monkeypatch.setattr(lmms_model, "PIXELS", {})  # so that none seems to be shown
    folder, _ = run(job())
    reason = "no question with visual tokens was answered"
    assert json.loads((folder.path / "DONE").read_text())["decoding"] == {"verified": False, "reason": reason}
    assert unproven([Result.of(folder)]) == [f"decoding was not verified ({reason}) in any run"]


def test_a_run_that_goes_on_keeps_what_its_first_part_compared(job, monkeypatch):
    """Killed after everything was answered: nothing is left to compare, and the proof is still there."""
    finish = RunFolder.finish
    monkeypatch.setattr(RunFolder, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(job("method=none", "keep=1"))
    monkeypatch.setattr(RunFolder, "finish", finish)
    folder, _ = run(job("method=none", "keep=1"))
    assert json.loads((folder.path / "DONE").read_text())["decoding"]["proof"]["questions"] == 3


def test_what_was_compared_is_on_disk_before_the_answers_that_it_covers(job, monkeypatch):
    """A run is killed twice while it writes an answer; each part compares two questions."""
    add, written = ResponseLog.add, []

    def interrupted(self, *lines):
        written.append(1)
        if len(written) in (2, 4):
            raise KeyboardInterrupt
        add(self, *lines)

    monkeypatch.setattr(ResponseLog, "add", interrupted)
    four = job("method=none", "keep=1", "model.batch_size=1", "limit=4")
    for compared in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            run(four)
        (file,) = Path(four.runs).rglob("run.json")
        assert json.loads(file.read_text())["decoding"]["proof"]["questions"] == compared
    folder, _ = run(four)
    assert json.loads((folder.path / "DONE").read_text())["decoding"]["proof"]["questions"] == 6


def test_a_repeated_run_counts_anew(job):
    for overrides in ([], ["force=true"]):
        folder, _ = run(job("method=none", "keep=1", *overrides))
        assert json.loads((folder.path / "DONE").read_text())["decoding"]["proof"]["questions"] == 3


def test_a_library_that_the_hooks_do_not_know_stops_a_run_in_one_line(job, monkeypatch):
    monkeypatch.setitem(calls.NAMES, "cache", ("another_name",))
    with pytest.raises(UserError, match="another_name") as stopped:
        run(job())
    assert "\n" not in str(stopped.value)
    assert not list(Path(job().runs).rglob("run.json"))


def test_which_runs_were_not_verified(tmp_path):
    def result(method, reason=None, **more):
        decoding = {"verified": reason is None, "reason": reason}
        folder = make_run(tmp_path, method, {"t": [1.0, 0.0]}, **more)
        folder.amend({"decoding": decoding} if reason != "older" else {})
        sealed_again(folder.path)
        return Result.of(folder)

    base, one, two = result("none"), result("random", "why"), result("dart", "older")
    assert unproven([base]) == []
    assert unproven([base, one]) == ["decoding was not verified (why) in random keep=0.25"]
    assert unproven([one]) == ["decoding was not verified (why) in any run"]
    assert unproven([two]) == ["decoding was not verified (the run is older than this check) in any run"]
    assert unproven([replace(base, parts=(base, one))]) == ["decoding was not verified (why) in any run"]


def test_it_changes_no_answer(job):
    """A method that draws, draws the same whether or not its batch was answered before."""
    (verified, _), (plain, _) = (
        run(job("method=random", f"runs={job().runs}-{v}", f"verify={v}")) for v in (True, False)
    )
    for name in ("responses.jsonl", "kept.jsonl"):
        assert (verified.path / name).read_bytes() == (plain.path / name).read_bytes()


def test_a_record_for_every_question(job, monkeypatch):
    monkeypatch.setattr(harness.Pruning, "take", lambda self: [])
    with pytest.raises(RuntimeError, match="3 samples went in but the pruner saw 0: nothing can be scored"):
        run(job())

"""A model within what another library put around it is pruned as it is, or refused in one line."""

import peft
import pytest
import torch
from reference_prune import generate, inputs_of
from tiny_families import BUILDERS
from tiny_models import tiny_qwen
from torch.distributed import HashStore
from torch.nn.parallel import DataParallel, DistributedDataParallel

import harness
from harness.models import adapter_for

LORA = peft.LoraConfig(target_modules=["q_proj", "k_proj", "up_proj"], r=2, init_lora_weights=False)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def answered(pruned, asked, inputs, method="random"):
    """Prune one model object and ask another; return logits, answer and record of the last prompt."""
    with harness.prune(pruned, method, keep=0.3) as pruning:
        return asked(**inputs).logits, generate(asked, inputs), pruning.records[-1]


def check(answers, expected):
    assert torch.equal(answers[0], expected[0])
    assert answers[1:] == expected[1:]


class TestLookedInto:
    @pytest.mark.parametrize("method", ["random", "hiprune", "fastv"])
    @pytest.mark.parametrize("family", BUILDERS)
    def test_a_peft_model(self, family, method):
        build, process = BUILDERS[family]
        model, inputs = build(), inputs_of(process(), ["one image"])
        plain = answered(model, model, inputs, method)
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, LORA, autocast_adapter_dtype=False).eval()
        assert adapter_for(wrapped).model is model
        adapted = answered(wrapped, wrapped, inputs, method)
        check(adapted, answered(model, model, inputs, method))
        assert not torch.equal(adapted[0], plain[0])  # the adapter took part
        with wrapped.disable_adapter():
            check(answered(wrapped, wrapped, inputs, method), plain)

    def test_a_peft_model_of_mixed_adapters(self, processor):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        wrapped = peft.get_peft_model(model, LORA, mixed=True).eval()
        assert adapter_for(wrapped).model is model
        check(answered(wrapped, wrapped, inputs), answered(model, model, inputs))

    def test_a_tuned_model_without_its_outer_wrapper(self):
        model = tiny_qwen()
        assert adapter_for(peft.get_peft_model(model, LORA).base_model).model is model

    @pytest.mark.usefixtures("one_process")
    def test_data_parallel_processes(self, processor):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        wrapped = DistributedDataParallel(model)
        assert adapter_for(wrapped).model is model
        with harness.prune(wrapped, "uniform", keep=0.3):
            assert torch.equal(wrapped(**inputs).logits, model(**inputs).logits)

    def test_a_prompt_that_is_tuned_is_refused(self, processor):
        model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        wrapped = peft.get_peft_model(model, config).eval()
        with pytest.raises(ValueError, match="by their ids"), harness.prune(wrapped, "random", keep=0.3):
            wrapped(**inputs)


class Holder:
    """As a pipeline of transformers."""

    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", r"got the text 'Qwen.*: load it first, as AutoModel.*\('Qwen/"),
        (torch.nn.Linear, r"got the class Linear: load a model first"),
        (None, "got an object of type NoneType$"),
        (Holder(torch.nn.Linear(1, 1)), "type Holder, which holds one: pass its .model"),
        (DataParallel(torch.nn.Linear(1, 1)), "copies of the model in threads.*: prune and call its .module"),
    ],
)
def test_what_is_no_model_is_refused(thing, message):
    with pytest.raises(TypeError, match=message) as error:
        harness.prune(thing, "random", keep=0.3)
    assert "\n" not in str(error.value)


def compile_part(path, how):
    """Return a model of which a part is compiled; nothing is traced before the first pass."""
    model = tiny_qwen()
    part = model.get_submodule(path)
    if how == "forward":
        part.forward = torch.compile(part.forward)
    elif how == "in place":
        part.compile()
    elif path:
        model.set_submodule(path, torch.compile(part))
    else:
        return torch.compile(model)
    return model


@pytest.mark.parametrize("how", ["wrapped", "in place", "forward"])
@pytest.mark.parametrize("path", ["", "model", "model.visual", "model.language_model.layers.1"])
def test_a_compiled_model_is_refused(path, how):
    where = f"'{path}' of" if path else "this model"
    model = compile_part(path, how)
    with (
        pytest.raises(RuntimeError, match=f"{where}.* is compiled, .*: prune and call the plain model") as error,
        harness.prune(model, "random", keep=0.3),
    ):
        pass
    assert "\n" not in str(error.value)


def test_code_that_was_compiled_before_is_never_silent(processor, monkeypatch):
    """Nothing of it shows on the model; it calls the functions of modules, and not their hooks."""
    model, inputs = tiny_qwen(), inputs_of(processor, ["one image"])

    class Traced(type(model.model)):
        def __call__(self, *args, **kwargs):
            return self.forward(*args, **kwargs)

    monkeypatch.setattr(model.model, "__class__", Traced)
    with pytest.raises(RuntimeError, match=r"unpruned .*compiled code"), harness.prune(model, "random", keep=0.3):
        model(**inputs)

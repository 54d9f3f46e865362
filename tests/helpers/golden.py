"""Golden results of every method: on tiny models of every family, and on embedded questions.

    python tests/helpers/golden.py [llava pocket_clip ...]

writes golden.json again, or its cases of the named models alone. It refuses if an answer changed and the version that
has to rise did not.

Kept tokens and answers are stored as digests. Logits and pixels are stored as projections on a few fixed directions, so
that they can be compared with a tolerance. Models run in float64, so that the rounding of a CPU changes no choice.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from reference_prune import inputs_of
from tiny_families import BUILDERS, OTHER_TOWERS, exactly_k, variants
from tiny_models import HIDDEN

import harness
import methods
from harness.doctor.reproduction import PocketModel, Setting
from harness.evaluation import identity, task_overrides
from harness.models import FAMILIES, adapter_class, adapter_for
from harness.models.scorer import VisionSelectorScorer

FILE = Path(__file__).with_name("golden.json")
TOKENS = 4  # decoded per prompt
TOLERANCE = 1e-3  # of a projection; norms and rotations are float32 in any model
QUESTIONS = 10  # of each embedded model
POCKET = {"pocket": "qwen2_5_vl", "pocket_llava": "llava", "pocket_clip": "qwen2_5_vl"}  # embedded model -> its family


def family_of(which: str) -> str:
    """Return the family of a tiny or embedded model."""
    return POCKET.get(which, which.partition("-")[0])


def digest(value) -> str:
    """Digest a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def projections(tensors) -> list[float]:
    """Project tensors, as one vector of length n, on three random directions of length sqrt(1/n): means of its size."""
    values = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (3, len(values)), generator=generator, dtype=torch.int8)
    return [round(float(((2 * row - 1) * values).sum() / len(values) ** 0.5), 6) for row in signs.double()]


def same(first, other) -> bool:
    """Tell whether two entries of a case are equal, projections up to rounding."""
    if isinstance(first, str) or isinstance(other, str) or first is None or other is None:
        return first == other
    return all(abs(a - b) <= TOLERANCE for a, b in zip(first, other, strict=True))


def versions() -> dict:
    """Return the versions that the code declares today, those of methods by default and with each variant."""
    cases = [(name, {}) for name in methods.BUILT_IN] + [case.values for case in variants() if case.values[1]]
    return {
        "preprocessing": identity.PREPROCESSING,
        "cut": identity.CUT,
        "scoring": task_overrides.SCORING,
        **{f"family {family}": adapter_class(family).version for family in FAMILIES},
        **{
            " ".join(["method", name, *params.values()]): identity.method_version(methods.load(name, **params))
            for name, params in cases
        },
    }


@torch.no_grad()
def tiny_cases(which: str) -> Iterator[tuple[str, dict]]:
    """Yield (name, results) of every method and variant on a tiny model of BUILDERS or OTHER_TOWERS."""
    build, process = (BUILDERS | OTHER_TOWERS)[which]
    family = family_of(which)
    model, processor = build(), process()
    video = "video" in adapter_class(family).media and family != "internvl"  # its results are older than its videos
    inputs = inputs_of(processor, ["mixed" if video else "adjacent", "one image"])
    yield f"{which} inputs", {"inputs": projections(value for _, value in sorted(inputs.items()))}
    torch.manual_seed(1)
    scorer = VisionSelectorScorer(HIDDEN, 16, init_scale=0.5)
    for name, params in [("none", {}), *(case.values for case in variants())]:
        keep = 1.0 if name == "none" else 0.3
        arguments = params | exactly_k(name)
        if adapter_class(family).refusal(methods.load(name, **arguments)):
            continue
        with harness.prune(model, name, keep=keep, scorer=scorer, **arguments) as pruning:
            length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
            output = model.generate(**inputs, **length, return_dict_in_generate=True, output_logits=True)
        yield (
            " ".join([which, name, *params.values()]),
            {
                "kept": digest([record.kept for record in pruning.records]),
                "logits": projections(output.logits),
                "answers": digest(output.sequences[:, inputs["input_ids"].shape[1] :].tolist()),
            },
        )


@torch.no_grad()
def pocket_cases(name: str) -> Iterator[tuple[str, dict]]:
    """Yield (name, results) of every method on the first questions of each embedded task."""
    pocket = PocketModel(name)
    model = pocket.loaded.model.double()
    for method in methods.BUILT_IN:
        if method == "resize" and adapter_class(POCKET[name]).fixed_size:
            continue
        with recorded(model) as (inputs, logits):
            answers = pocket.answers(Setting(name, method), QUESTIONS, verify=False)
        if method == "none":
            yield f"{name} inputs", {"inputs": projections(inputs)}
        yield (
            f"{name} {method}",
            {
                "kept": digest([answer.kept for answer in answers]),
                "logits": projections(logits),
                "answers": digest([answer.text for answer in answers]),
            },
        )


@contextmanager
def recorded(model) -> Iterator[tuple[list, list]]:
    """Collect what reaches the vision tower, and the logits before each token."""
    inputs, logits = [], []

    def see(module, args, kwargs):
        inputs.extend(value.clone() for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))

    handles = [
        adapter_for(model).modules()["vision"].register_forward_pre_hook(see, with_kwargs=True),
        model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output[:, -1].clone())),
    ]
    try:
        yield inputs, logits
    finally:
        for handle in handles:
            handle.remove()


def cases(which: str) -> dict[str, dict]:
    """Return the results with a tiny model, or with an embedded model."""
    return dict(pocket_cases(which) if which in POCKET else tiny_cases(which))


def to_raise(before: dict, today: dict) -> dict[str, str]:
    """Return which versions have to rise, each with the first case that says so.

    `before` and `today` are the cases of one model.
    """
    changed = {
        name: [key for key, value in case.items() if not same(value, today.get(name, {}).get(key))]
        for name, case in before.items()
    }
    changed = {name: keys for name, keys in changed.items() if keys}
    model = next(iter(before)).partition(" ")[0]
    family = f"family {family_of(model)}"
    if f"{model} inputs" in changed:
        return {"preprocessing": f"{model} inputs"}
    if f"{model} none" in changed:
        return {family: f"{model} none"}
    versions_to_raise = {}
    for name, keys in changed.items():
        method = name.partition(" ")[2]
        versions_to_raise.setdefault(f"method {method}" if "kept" in keys else "cut", name)
    # If most methods keep other tokens, the model's output changed.
    kept = [name for name, keys in changed.items() if "kept" in keys]
    return {family: kept[0]} if len(kept) > len(before) / 2 else versions_to_raise


def main(wanted: list[str]) -> None:
    """Write the file again; of models that are not `wanted`, what it holds."""
    old = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"versions": {}, "cases": {}}
    today, results = versions(), {}
    every = (*FAMILIES, *OTHER_TOWERS, *POCKET)
    if unknown := {*wanted} - {*every}:
        sys.exit(f"no model {', '.join(unknown)} among {', '.join(every)}")
    if len({*wanted}) < len(every) and today != old["versions"]:
        sys.exit("versions are not those of the file: write the cases of all models")
    for which in every:
        results[which] = cases(which) if which in wanted else old["cases"][which]
        for version, case in to_raise(old["cases"].get(which, results[which]), results[which]).items():
            if today[version] <= old["versions"][version]:
                sys.exit(f"{case} changed: raise the version of {version} (now {today[version]}) first")
    declared = ",\n".join(f'  "{name}": {version}' for name, version in today.items())
    lines = [
        f'  "{which}": {{\n' + ",\n".join(f'   "{name}": {json.dumps(case)}' for name, case in group.items()) + "\n  }"
        for which, group in results.items()
    ]
    text = f' "versions": {{\n{declared}\n }},\n "cases": {{\n' + ",\n".join(lines) + "\n }"
    FILE.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or [*FAMILIES, *OTHER_TOWERS, *POCKET])

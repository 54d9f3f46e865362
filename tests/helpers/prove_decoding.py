"""Prove decoding on a device: tiny random models of every family, pruned, under each attention kernel.

    python tests/helpers/prove_decoding.py [--device cuda] [--families qwen2_5_vl ...] [--out FILE]

The logits of the second and third token, decoded through the KV cache, are compared with those of fresh prefills of the
same tokens (`decoding_proof.prove`), in a batch of prompts of unequal lengths. In controls, fresh prefills keep other
tokens, and the comparison has to fail. Small errors of positions can pass the wide tolerance of bfloat16, so float32
under sdpa is also run. Prints a line per case, then the verdict.

Exit codes: 0 everything passed, 1 something failed, 3 nothing failed, but something could not be run.
"""

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from attention_kernels import with_kernel
from reference_prune import inputs_of
from tiny_families import BUILDERS

import harness
from harness.bench.environment import machine
from harness.core.errors import one_line
from harness.core.files import write_atomic
from harness.models import adapter_for
from harness.pruning.decoding_proof import DecodingError, prove
from methods.base import Selection

RUNS = (("float32", "sdpa"), ("bfloat16", "sdpa"), ("bfloat16", "flash_attention_2"))
METHODS = {"none": 1.0, "random": 0.25, "visionzip": 0.25, "fastv": 0.25}  # no cut, two before layer 0, one inside
CONTROLS = ("random", "fastv")
PROMPTS = ["one image", "small image"]
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
EXIT_CODES = {PASSED: 0, FAILED: 1, NOT_RUN: 3}


@dataclass(frozen=True)
class Case:
    """One model with one method, and the outcome; a `control` passes if the comparison fails."""

    family: str
    dtype: str
    kernel: str
    method: str
    control: bool
    state: str = NOT_RUN
    note: str = ""


def cases(families: list[str]) -> Iterator[Case]:
    """Yield all cases, not yet run."""
    for dtype, kernel in RUNS:
        for family in families:
            yield from (Case(family, dtype, kernel, method, control=False) for method in METHODS)
            yield from (Case(family, dtype, kernel, method, control=True) for method in CONTROLS)


def checked(case: Case, device: str) -> Case:
    """Run a case and return it with its outcome; any exception is a failure."""
    if reason := obstacle(case.kernel, device):
        return replace(case, note=reason)
    build, process = BUILDERS[case.family]
    try:
        model = with_kernel(build(), case.kernel).to(device, getattr(torch, case.dtype))
        inputs = inputs_of(process(), PROMPTS).to(device)
        with torch.no_grad(), harness.prune(model, case.method, keep=METHODS[case.method]) as pruning:
            replaying = partial(replaying_others, pruning) if case.control else pruning.replaying
            proof = prove(model, inputs, replaying, adapter_for(model).placeholders)
    except Exception as error:  # a kernel may raise anything; the other cases are still of interest
        noticed = case.control and isinstance(error, DecodingError)
        return replace(case, state=PASSED if noticed else FAILED, note=f"{type(error).__name__}: {one_line(error)}")
    note = f"{proof.comparisons} comparisons, deviation {proof.largest:.1e}, {proof.tolerance:g} is allowed"
    passed = not case.control and proof.comparisons > 0
    return replace(case, state=PASSED if passed else FAILED, note=note)


@contextmanager
def replaying_others(pruning: harness.Pruning) -> Iterator[None]:
    """Make prefills within the block keep the right neighbour of each token that the latest prefill kept."""
    right = pruning._asked
    pruning._asked = {
        layer: (sizes, [Selection.of((s.kept + 1) % n) for s, (n, _) in zip(selections, sizes, strict=True)])
        for layer, (sizes, selections) in right.items()
    }
    try:
        with pruning.replaying():
            yield
    finally:
        pruning._asked = right


def obstacle(kernel: str, device: str) -> str:
    """Return the reason why a kernel cannot run on a device; empty if it can."""
    if kernel != "flash_attention_2":
        return ""
    if not device.startswith("cuda"):
        return f"needs a GPU, the device is {device}"
    return "" if importlib.util.find_spec("flash_attn") else "flash-attn is not installed: pip install flash-attn"


def verdict(checked: list[Case]) -> str:
    """Return "passed" only if every case was run and passed."""
    states = {case.state for case in checked}
    return next((state for state in (FAILED, NOT_RUN) if state in states), PASSED if checked else NOT_RUN)


def main() -> None:
    """Run every case, print a line per case and the verdict, and exit with its code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--families", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--out", type=Path, help="JSON file of all cases and the machine")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: torch sees no GPU; try DEVICE=cpu or --device cpu", file=sys.stderr)
        sys.exit(2)
    done = []
    for case in cases(args.families):
        done.append(checked(case, args.device))
        name = case.method + ", control" * case.control
        print(f"{done[-1].state:<8} {case.family:<18} {case.dtype:<9} {case.kernel:<18} {name:<16} {done[-1].note}")
        sys.stdout.flush()
    counts, state = Counter(case.state for case in done), verdict(done)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"verdict": state, "counts": counts, "machine": machine(torch.device(args.device))}
        write_atomic(args.out, json.dumps({**about, "cases": [asdict(case) for case in done]}, indent=1) + "\n")
    listed = ", ".join(f"{counts[name]} {name}" for name in EXIT_CODES)
    print(f"decoding on {args.device}: {'NOT PASSED: ' if state != PASSED else ''}{listed}")
    sys.exit(EXIT_CODES[state])


if __name__ == "__main__":
    main()

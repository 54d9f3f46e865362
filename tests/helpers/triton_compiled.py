"""Run by test_kernels_triton.py in a process of its own: compiles every Triton kernel for an H200, without one."""

import json
import sys
from importlib import import_module

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from methods.kernels.gpu.novelty import PICKING

HOPPER = GPUTarget("cuda", 90, 32)
POOL = {"tokens": "*i64", "similar": "*fp64", "floor": "*fp64", "rival": "*i64"}
SCORES = {
    "q": "*bf16",
    "k": "*bf16",
    "scale": "*fp32",
    "total": "*fp32",
    "queries": "i32",
    "keys": "i32",
    "width": "i32",
}
COMPARE = {
    **dict.fromkeys(("factor", "nearest"), "*fp32"),
    **dict.fromkeys(("starts", "sizes", "picks", "before", "made"), "*i64"),
    **dict.fromkeys(("n", "d", "most"), "i32"),
}
SHAPE = {"SELVES": True, "PICKS": 64, "TOKENS": 64, "WIDTH": 64}
GIVEN = {
    "batch._compare": {"features": "*bf16", **COMPARE, **SHAPE},
    "batch._compare float32": {"features": "*fp32", **COMPARE, **SHAPE, "SELVES": False},
    "novelty._pick": {
        **POOL,
        **dict.fromkeys(("relevance", "near", "weight"), "*fp64"),
        **dict.fromkeys(("order", "made", "most", "count"), "*i64"),
        **dict.fromkeys(("size", "room"), "i32"),
        "SIZE": 256,
    },
    "volume._pick": {
        **POOL,
        **dict.fromkeys(("left", "weight", "volume", "limit", "part"), "*fp64"),
        **dict.fromkeys(("most", "members", "told"), "*i64"),
        "size": "i32",
        "SIZE": 64,
    },
    "cover._choose": {
        **dict.fromkeys(("gain", "weight", "open_"), "*fp64"),
        **{"pick": "*i64", "n": "i32", "ADD": False, "SIZE": 4096},
    },
    "cover._lift": {
        **dict.fromkeys(("similar", "covered", "lifted", "gain"), "*fp64"),
        **{"pick": "*i64", "n": "i32", "GAINS": 32, "COVERED": 64},
    },
    "received._totals": {**SCORES, "WIDTH": 128, "MINE": 64, "OTHERS": 64},
    "received._given": {**SCORES, "given": "*fp32", "WIDTH": 128, "MINE": 64, "OTHERS": 64},
}
ONE_BLOCK = ("novelty._pick", "volume._pick", "cover._choose")


def built(name: str) -> int:
    """Compile one kernel down to machine code and return its size in bytes."""
    module, _, function = name.split()[0].partition(".")
    kernel = getattr(import_module(f"methods.kernels.gpu.{module}"), function)
    given = {arg: GIVEN[name][arg] for arg in kernel.arg_names}
    constants = {arg: value for arg, value in given.items() if not isinstance(value, str)}
    signature = {arg: "constexpr" if arg in constants else value for arg, value in given.items()}
    how = PICKING if name in ONE_BLOCK else {"enable_fp_fusion": name != "cover._lift"}
    return len(compile(ASTSource(kernel, signature, constants), HOPPER, how).asm["cubin"])


if __name__ == "__main__":
    print(json.dumps({name: built(name) for name in sys.argv[1:] or GIVEN}))

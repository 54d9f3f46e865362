#!/usr/bin/env bash
# The first day on a GPU, in one command:   scripts/first_gpu.sh [FOLDER]        (results/gpu)
#   proof    decoding of every family's tiny model in bfloat16, under sdpa and flash_attention_2 (tests/helpers/prove_decoding.py)
#   latency  stages, memory and selection loops at full size, on random weights (scripts/gpu_bench.sh)
# Nothing is downloaded. A failed proof ends it: how fast wrong decoding is says nothing. Exit code 0: everything passed;
# 3: something could not be run, such as FlashAttention where it is not installed; anything else: something failed.
#
# DEVICE=cpu scripts/first_gpu.sh FOLDER tries the script itself on any machine, with small inputs; FlashAttention is then
# not run. STEPS="kernels table4" measures some of what scripts/gpu_bench.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-results/gpu}
device=${DEVICE:-cuda}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

echo "== proof"
proof=0
"$python" tests/helpers/prove_decoding.py --device "$device" --out "$out/proof.json" || proof=$?
if [ "$proof" != 0 ] && [ "$proof" != 3 ]; then
    echo "first day on a GPU: FAILED, decoding is not proven; nothing was measured" >&2
    exit "$proof"
fi

if [ "$device" = cpu ]; then scripts/gpu_bench.sh --smoke "$out"; else scripts/gpu_bench.sh "$out"; fi

if [ "$proof" = 3 ]; then
    echo "first day on a GPU: NOT PASSED, some of it could not be run (see \"not run\" above and $out/proof.json)" >&2
    exit 3
fi
echo "first day on a GPU: passed, results in $out"
